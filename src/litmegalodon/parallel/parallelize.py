"""Sharding, applied to a model from outside: the model itself knows of one process only."""

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard

from litmegalodon.models.language_model import LanguageModel
from litmegalodon.parallel.mesh import Degrees


def build_mesh(device_type: str, degrees: Degrees) -> DeviceMesh:
    """All processes as a mesh with the axes replicate, data and chunk."""
    return init_device_mesh(device_type, tuple(degrees), mesh_dim_names=degrees._fields)


def parallelize(model: LanguageModel, mesh: DeviceMesh) -> LanguageModel:
    """Shard parameters, gradients and optimizer state over a mesh of `build_mesh` (FSDP2).

    They are sharded over data x chunk and copied over replicate: processes that share rows share
    the memory too, and their gradients are summed for free. Call it on a model on the meta device;
    then `to_empty` and `initialise` make only this process' share.
    """
    shards = mesh["data", "chunk"]._flatten("shard")
    if mesh["replicate"].size() > 1:
        shards = DeviceMesh._concatenate([mesh["replicate"], shards])
    for block in model.layers:
        fully_shard(block, mesh=shards)
    # Embedding, final norm and head form the root group, which keeps a tied matrix in one place.
    fully_shard(model, mesh=shards)
    register_fsdp_forward_method(model, "loss")
    return model


def shard_rows(value: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor of all rows from those of this process, over a mesh of `build_mesh`: processes that
    share rows have the same ones, the others a share of them in order.
    """
    return DTensor.from_local(value, mesh, [Shard(0), Shard(0), Replicate()], run_check=False)
