"""Sharding, applied to a model from outside: the model itself knows of one process only."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.tensor import DTensor, Replicate, Shard

from litmegalodon.models.language_model import LanguageModel
from litmegalodon.parallel.mesh import Degrees


def build_mesh(device_type: str, degrees: Degrees) -> DeviceMesh:
    """All processes as a mesh with the axes replicate, data and chunk."""
    return init_device_mesh(device_type, tuple(degrees), mesh_dim_names=degrees._fields)


def parallelize(
    model: LanguageModel, mesh: DeviceMesh, bf16_parameters: bool = False
) -> LanguageModel:
    """Shard parameters, gradients and optimizer state over a mesh of `build_mesh` (FSDP2).

    They are sharded over data x chunk and copied over replicate: processes that share rows share
    the memory too, and their gradients are summed for free. Call it on a model on the meta device;
    then `to_empty` and `initialise` make only this process' share.

    Args:
        bf16_parameters: gather the matrices of linear layers in bfloat16. The shares that are
            trained stay float32, all other parameters are gathered in float32, and gradients are
            float32 from where they are summed over the tokens on, reduced so too.
    """
    shards = mesh["data", "chunk"]._flatten("shard")
    if mesh["replicate"].size() > 1:
        shards = DeviceMesh._concatenate([mesh["replicate"], shards])
    policy = MixedPrecisionPolicy()
    if bf16_parameters:
        # Activations are autocast's business.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=shards, mp_policy=policy)
    # Embedding, final norm and head form the root group, which keeps a tied matrix in one place.
    fully_shard(model, mesh=shards, mp_policy=policy)
    if bf16_parameters:
        for module in (*model.layers, model):
            for parameter in module._get_fsdp_state()._fsdp_param_group.fsdp_params:
                _use_float32(parameter)
    register_fsdp_forward_method(model, "loss")
    return model


def in_bf16(parameter: FSDPParam) -> bool:
    """Whether a parameter is gathered in bfloat16 where any is.

    An embedding is not: its rows begin the residual stream, and their gradients are summed by
    torch, which would do it in bfloat16.
    """
    info = parameter._module_info
    users = (info.module, *info.shared_modules)
    return all(isinstance(module, nn.Linear) for module in users) and info.param_name == "weight"


def _use_float32(parameter: FSDPParam) -> None:
    """Float32 where a group's policy, which is one for all of its parameters, says bfloat16: all of
    a parameter that is not in bfloat16, of the others the gradients.

    FSDP gathers parameters of several dtypes together, and wants gradients of one.
    """
    set_dtypes, gather = parameter.init_dtype_attrs, parameter.init_unsharded_param
    if not in_bf16(parameter):
        policy = MixedPrecisionPolicy(None, torch.float32)
        parameter.init_dtype_attrs = lambda _: set_dtypes(policy)
        return

    def gathered() -> None:
        gather()
        parameter._unsharded_param.grad_dtype = torch.float32

    parameter.init_unsharded_param = gathered


def shard_rows(value: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor of all rows from those of this process, over a mesh of `build_mesh`: processes that
    share rows have the same ones, the others a share of them in order.
    """
    return DTensor.from_local(value, mesh, [Shard(0), Shard(0), Replicate()], run_check=False)
