"""Sharding, applied to a model from outside: the model itself knows of one process only."""

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from litmegalodon.models.megalodon import Megalodon


def parallelize(model: Megalodon, mesh: DeviceMesh) -> Megalodon:
    """Shard parameters, gradients and optimizer state over the mesh's `data` axis (FSDP2).

    Call it on a model on the meta device; then `to_empty` and `initialise` make only this process'
    share.
    """
    for block in model.layers:
        fully_shard(block, mesh=mesh["data"])
    # Embedding, final norm and head form the root group, which keeps a tied matrix in one place.
    fully_shard(model, mesh=mesh["data"])
    register_fsdp_forward_method(model, "loss")
    return model


def shard_rows(value: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor of all data-parallel processes' rows from this process' ones, which are its share
    of them in order.
    """
    return DTensor.from_local(value, mesh["data"], [Shard(0)], run_check=False)
