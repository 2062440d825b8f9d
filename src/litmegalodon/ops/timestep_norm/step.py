"""TimestepNorm of a single token a row, without gradients: the recurrence as it is written.

Shapes: B batch, D features, G groups.
"""

from torch import Tensor, var_mean

from litmegalodon.ops.dispatch import compute_dtype
from litmegalodon.ops.timestep_norm.state import NormState


def timestep_norm_step(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, state: NormState
) -> tuple[Tensor, NormState]:
    """x [B, D] -> normalised [B, D] in x's dtype, statistics; see `litmegalodon.ops`."""
    dtype = compute_dtype(x)
    groups = x.to(dtype).unflatten(1, (num_groups, -1))
    var, mean = (u.double() for u in var_mean(groups, -1, correction=0))  # B x G
    count = state.count + 1
    share = count.double().reciprocal_()[:, None]
    before = state.mean.double()
    off = mean - before
    # var + (1 - share) off^2, the new token's part of the variance
    var.addcmul_(off, off * (1 - share))
    mean = before.addcmul(off, share)
    var = state.var.double().lerp(var, share)
    rstd = (var + eps).rsqrt_()
    y = groups - mean.to(dtype)[..., None]
    y = y.mul_(rstd.to(dtype)[..., None]).flatten(1)
    y = bias.to(dtype).addcmul(y, weight.to(dtype) + 1)
    return y.to(x.dtype), NormState(count, mean, var)
