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
from litmegalodon.parallel.parallelize import build_mesh, in_bf16, parallelize
from litmegalodon.planning.plan import Elements


def elements(config: MegalodonConfig, degrees: Degrees, bf16_parameters: bool = False) -> Elements:
    """What the first process holds of a model sharded over a mesh, and what each process sends. No
    memory is taken: the model is on the meta device, the processes are pretended.
    """
    with pretended(degrees.readers * degrees.chunk):
        with torch.device("meta"):
            model = Megalodon(config)
        parallelize(model, build_mesh("cpu", degrees), bf16_parameters)
        held = sum(p.to_local().numel() for p in model.parameters())
        return Elements(held, *_sent(model.layers[0]), *_sent(model))


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


def _sent(module: nn.Module) -> tuple[int, int]:
    """Elements that a process sends of a module's own group of parameters, padding included, and
    how many of them in bfloat16.
    """
    assert isinstance(module, FSDPModule)
    group = module._get_fsdp_state()._fsdp_param_group
    assert group is not None
    sizes = {p: p.padded_sharded_param_size.numel() for p in group.fsdp_params}
    halved = 0
    if group.mp_policy.param_dtype == torch.bfloat16:
        halved = sum(size for p, size in sizes.items() if in_bf16(p))
    elif group.mp_policy.param_dtype is not None:
        raise RuntimeError("parameters are gathered in a dtype that plans do not know")
    return sum(sizes.values()), halved
