"""TimestepNorm over a row that several processes share: a stretch's statistics, and their merge.

Shapes: B batch, L length, D features, G groups, d = D / G, J stretches.
"""

import torch
from torch import Tensor

from litmegalodon.ops.dispatch import backward_pass, compute_dtype
from litmegalodon.ops.segments import last_run
from litmegalodon.ops.tiles import tiles
from litmegalodon.ops.timestep_norm.pytorch import column, moments
from litmegalodon.ops.timestep_norm.state import NormState


def end_pytorch(x: Tensor, num_groups: int, resets: Tensor | None) -> NormState:
    """See `litmegalodon.ops.timestep_norm_end`: the moments of the last document's features."""
    batch, length, _ = x.shape
    if resets is None or not resets.any():
        last = None
        count = torch.full((batch,), length, dtype=torch.int64, device=x.device)
    else:
        last = last_run(resets)
        count = last.sum(1)
    return NormState(count, *_Moments.apply(x, num_groups, last, count))


class _Moments(torch.autograd.Function):
    """Mean and biased variance [B, G], float64, of the tokens where bool [B, L] `last` is True."""

    @staticmethod
    def forward(ctx, x, num_groups, last, count):
        g, s = moments(x, num_groups)
        if last is not None:
            g, s = (torch.where(last[..., None], u, 0) for u in (g, s))
        n = count[:, None].double()
        mean = g.sum(1) / n
        off = g - mean[:, None]
        if last is not None:
            off = torch.where(last[..., None], off, 0)
        var = (s + off.square()).sum(1) / n
        ctx.save_for_backward(x, last, n, mean)
        return mean, var

    @staticmethod
    @backward_pass
    def backward(ctx, d_mean, d_var):
        x, last, n, mean = ctx.saved_tensors
        batch, length, _ = x.shape
        dtype = compute_dtype(x)
        flat = x.reshape(batch * length, mean.shape[1], -1)  # BL x G x d
        per_feature = n * flat.shape[2]
        level, slope, mean = (
            u[:, None].expand(-1, length, -1)
            for u in (d_mean / per_feature, 2 * d_var / per_feature, mean)
        )
        d_x = torch.empty_like(flat)
        for tile in tiles(flat):
            off = flat[tile].to(dtype) - column(mean, tile, dtype)
            out = off.mul_(column(slope, tile, dtype)).add_(column(level, tile, dtype))
            if last is not None:
                out = torch.where(last.view(-1, 1, 1)[tile], out, 0)
            d_x[tile] = out
        return d_x.view(x.shape), None, None, None


def timestep_norm_merge(ends: NormState, reach: Tensor) -> NormState:
    """The statistics of several stretches of tokens together, in float64.

    Args:
        ends: count [J, B], mean and var [J, B, G] of each stretch.
        reach: bool [J, B], which of them count; what the others hold is not looked at, NaN neither.

    Source:
        Chan, Golub and LeVeque 1979, for J sets at once.
    """
    counts = torch.where(reach, ends.count, 0)
    mean, var = (torch.where(reach[..., None], u.double(), 0) for u in (ends.mean, ends.var))
    total = counts.sum(0)
    weights = (counts.double() / total.clamp(min=1))[..., None]
    merged = (weights * mean).sum(0)
    spread = torch.where(reach[..., None], mean - merged, 0).square()
    return NormState(total, merged, (weights * (var + spread)).sum(0))
