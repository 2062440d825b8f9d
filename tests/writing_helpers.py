"""A writer of checkpoints in one process, and what it has written."""

from datetime import timedelta

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from litmegalodon.checkpoints.files import read_meta, read_tensors
from litmegalodon.parallel.checkpoint_writing import CheckpointWriter

META = {"hyper_parameters": {"config": {}}, "global_step": 3}
SHARD = "__0_0.distcp"


def writer(asynchronous=True, failures_allowed=2):
    return CheckpointWriter(
        asynchronous, failures_allowed, timedelta(minutes=1), torch.device("cpu")
    )


def state(value=0.0):
    """A sharded tensor, one that is not, a number; values that no other call gives."""
    mesh = init_device_mesh("cpu", (1,))
    sharded = distribute_tensor(torch.arange(5000.0) + value, mesh, [Shard(0)])
    return {"state_dict": {"a": sharded, "b": torch.full((7,), value)}, "optimizer_0": {"lr": 0.5}}


def save(writer, path, tensors, then=(), wait=False):
    rest = path.parent.parent / "rest"
    torch.save(META, rest)
    writer.save(path, tensors, rest.read_bytes(), list(then), wait)


def loaded(path):
    read_meta(path, "setting")
    tensors = {"state_dict.a": torch.zeros(5000), "state_dict.b": torch.zeros(7)}
    read_tensors(path, tensors, "setting")
    return tensors


def holds(path, value):
    got = loaded(path)
    assert torch.equal(got["state_dict.a"], torch.arange(5000.0) + value)
    assert torch.equal(got["state_dict.b"], torch.full((7,), value))
