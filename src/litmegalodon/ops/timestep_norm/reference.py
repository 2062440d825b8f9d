"""TimestepNorm as its definition says it, one token after another."""

import torch
from torch import Tensor

from litmegalodon.ops.dispatch import compute_dtype
from litmegalodon.ops.timestep_norm.state import NormState


def timestep_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    state: NormState,
    resets: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, NormState]:
    """See `litmegalodon.ops.timestep_norm`; statistics in float64, the rest float32 or better."""
    dtype = compute_dtype(x)
    count, mean, var = state.count, state.mean.double(), state.var.double()
    scale, shift = weight.to(dtype) + 1, bias.to(dtype)
    outputs = []
    for t in range(x.shape[1]):
        # B x G x d
        x_t = x[:, t].to(dtype).unflatten(-1, (num_groups, -1))
        if resets is not None:
            forget = resets[:, t, None]
            count = torch.where(resets[:, t], 0, count)
            mean, var = torch.where(forget, 0, mean), torch.where(forget, 1, var)
        g = x_t.double().mean(-1)
        s = x_t.double().var(-1, correction=0)
        new_count = count + 1
        c = 1 / new_count.double()[:, None]
        new_mean = mean + c * (g - mean)
        new_var = (1 - c) * var + c * s + c * (1 - c) * (g - mean) ** 2
        rstd = (new_var + eps).rsqrt()
        y = (x_t - new_mean.to(dtype)[..., None]) * rstd.to(dtype)[..., None]
        y = y.flatten(1) * scale + shift
        if padding_mask is not None:
            skip = padding_mask[:, t]
            y = torch.where(skip[:, None], 0, y)
            new_count = torch.where(skip, count, new_count)
            new_mean = torch.where(skip[:, None], mean, new_mean)
            new_var = torch.where(skip[:, None], var, new_var)
        count, mean, var = new_count, new_mean, new_var
        outputs.append(y)
    return torch.stack(outputs, dim=1).to(x.dtype), NormState(count, mean, var)
