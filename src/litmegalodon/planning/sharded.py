"""A model's shares as the real sharding makes them, for any number of processes, in one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

# Registers the backend `fake`, whose collectives do nothing.
from torch.testing._internal.distributed.fake_pg import FakeStore

from litmegalodon.models import Megalodon, MegalodonConfig
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.parallel.parallelize import build_mesh, parallelize


def elements(config: MegalodonConfig, degrees: Degrees) -> tuple[int, int, int]:
    """Elements that the first process holds of a model sharded over a mesh, and that each process
    sends where a block and where the rest is gathered. No memory is taken: the model is on the meta
    device, the processes are pretended.
    """
    with pretended(degrees.readers * degrees.chunk):
        with torch.device("meta"):
            model = Megalodon(config)
        parallelize(model, build_mesh("cpu", degrees))
        held = sum(p.to_local().numel() for p in model.parameters())
        return held, _sent(model.layers[0]), _sent(model)


@contextmanager
def pretended(processes: int) -> Iterator[None]:
    """The first of many processes, of which the others do not exist."""
    if dist.is_initialized():
        raise RuntimeError("a process group exists already")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _sent(module: nn.Module) -> int:
    """Elements that a process sends of a module's own group of parameters, padding included."""
    assert isinstance(module, FSDPModule)
    state = module._get_fsdp_state()
    if (state._mp_policy.param_dtype, state._mp_policy.reduce_dtype) != (None, None):
        raise RuntimeError("parameters are not gathered as they are, and plans count float32")
    parameters = state._fsdp_param_group.fsdp_params
    return sum(p.padded_sharded_param_size.numel() for p in parameters)
