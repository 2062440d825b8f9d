"""TimestepNorm over a whole sequence at once.

The statistics need only each token's group means g_t and variances s_t, 1 / d of the data, so those
small arrays are accumulated in float64 and the data is normalised in one pass:

    n_t    = n_0 + tokens so far
    mean_t = c + (n_0 (mean_0 - c) + sum (g - c)) / n_t
    var_t  = (n_0 (var_0 + (mean_0 - c)^2) + sum (s + (g - c)^2)) / n_t - (mean_t - c)^2

with c a centre near the data (the first token's mean, or the incoming one), which keeps the
difference of squares harmless. The backward pass uses that var_t does not depend on mean_t to first
order (mean_t is its minimum).

Shapes: B batch, L length, D features, G groups, d = D / G.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litmegalodon.ops import segments
from litmegalodon.ops.dispatch import compute_dtype
from litmegalodon.ops.timestep_norm.state import NormState


def timestep_norm_pytorch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    state: NormState,
    resets: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, NormState]:
    """See `litmegalodon.ops.timestep_norm`."""
    if resets is not None and not resets.any():
        resets = None
    y, count, mean, var = _TimestepNorm.apply(
        x, weight, bias, num_groups, eps, state.count, state.mean, state.var, resets, padding_mask
    )
    return y, NormState(count, mean, var)


def _averager(dim: int, groups: int, like: Tensor) -> Tensor:
    """[D, G] matrix whose product takes each group's mean: it beats a reduction over d."""
    matrix = torch.eye(groups, dtype=like.dtype, device=like.device)
    return matrix.repeat_interleave(dim // groups, dim=0) / (dim // groups)


class _TimestepNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, num_groups, eps, count, mean, var, resets, padding_mask):
        dtype = compute_dtype(x)
        batch, length, dim = x.shape
        grouped = (batch, length, num_groups, dim // num_groups)
        average = _averager(dim, num_groups, x.new_empty(0, dtype=dtype))
        x_c = x.to(dtype)
        g = x_c @ average  # B x L x G
        centred = x_c.view(grouped) - g[..., None]
        s = centred.square_().view(x.shape) @ average
        g, s = g.double(), s.double()

        runs = None if resets is None else segments.Segments(resets)
        continues, before = _before(count, resets, runs, (batch, length))
        mean_0, var_0 = mean.double()[:, None], var.double()[:, None]  # B x 1 x G
        first = g[:, :1] if runs is None else runs.first(g)
        centre = torch.where(continues & (count > 0)[:, None, None], mean_0, first)
        if padding_mask is None:
            tokens = torch.ones(batch, length, 1, dtype=torch.float64, device=x.device)
        else:
            tokens = (~padding_mask).double()[..., None]
            skip = padding_mask[..., None]
            # A padded first token is no centre: it may hold anything.
            centre = torch.where(skip.any(1, keepdim=True) | ~centre.isfinite(), mean_0, centre)
            g, s = torch.where(skip, centre, g), torch.where(skip, 0, s)
        off = g - centre
        sums = torch.cat([tokens, off, s + off.square()], dim=-1)
        sums = segments.cumsum(sums) if runs is None else runs.cumsum(sums)
        seen = before + sums[..., :1]
        n = seen.clamp(min=1)
        off_0 = torch.where(continues, mean_0 - centre, 0)
        past = torch.where(continues, var_0, 0) + off_0.square()
        shift = (before * off_0 + sums[..., 1 : num_groups + 1]) / n
        means = centre + shift
        variances = (before * past + sums[..., num_groups + 1 :]) / n - shift.square()
        variances = variances.clamp(min=0)
        if padding_mask is not None:
            means = torch.where(seen > 0, means, torch.where(continues, mean_0, 0))
            variances = torch.where(seen > 0, variances, torch.where(continues, var_0, 1))

        rstd = (variances + eps).rsqrt()
        y = x_c.view(grouped) - means.to(dtype)[..., None]
        y.mul_(rstd.to(dtype)[..., None])
        y = y.view(x.shape).mul_(weight.to(dtype) + 1).add_(bias.to(dtype))
        if padding_mask is not None:
            y = torch.where(padding_mask[..., None], 0, y)

        ctx.save_for_backward(
            x,
            weight,
            bias,
            g,
            means,
            rstd,
            n,
            before,
            continues,
            mean_0,
            tokens,
            seen,
            padding_mask,
        )
        ctx.runs = runs
        ctx.average = average
        ctx.mark_non_differentiable(out_count := seen[:, -1, 0].round().long())
        return y.to(x.dtype), out_count, means[:, -1].clone(), variances[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, _, grad_mean, grad_var):
        x, weight, bias, g, means, rstd, n, before, continues, mean_0, tokens, seen, mask = (
            ctx.saved_tensors
        )
        dtype = compute_dtype(x)
        groups = g.shape[-1]
        grouped = (*g.shape, x.shape[-1] // groups)
        dy = grad_y.to(dtype)
        if mask is not None:
            dy = torch.where(mask[..., None], 0, dy)
        sum_of_group = ctx.average * grouped[-1]
        off_mean = (x.to(dtype).view(grouped) - means.to(dtype)[..., None]).view(x.shape)
        if mask is not None:
            off_mean = torch.where(mask[..., None], 0, off_mean)
        dyw = dy * (weight.to(dtype) + 1)
        d_means = -rstd * (dyw @ sum_of_group).double()
        d_vars = -0.5 * rstd**3 * ((dyw * off_mean) @ sum_of_group).double()
        d_means[:, -1] += grad_mean
        d_vars[:, -1] += grad_var

        # A count of 0 means that mean and variance are still the incoming ones.
        told = seen > 0
        per_mean = torch.where(told, d_means / n, 0)
        per_var = torch.where(told, d_vars / n, 0)
        # The product below needs means close to g: take them from one centre for the whole run.
        centre = g[:, :1] if ctx.runs is None else ctx.runs.first(g)
        cots = torch.cat([per_mean, per_var, per_var * (means - centre)], dim=-1)
        cumsum = segments.cumsum if ctx.runs is None else ctx.runs.cumsum
        r_mean, r_var, r_cross = cumsum(cots, reverse=True).chunk(3, dim=-1)
        d_g = (r_mean + 2 * (r_var * (g - centre) - r_cross)) * tokens
        d_s = r_var * tokens

        # dx = dy w rstd + (d_g + 2 d_s (x - g)) / d, with x - g written as (x - mean) + (mean - g)
        size = grouped[-1]
        slope = (2 * d_s / size).to(dtype)[..., None]
        level = ((d_g + 2 * d_s * (means - g)) / size).to(dtype)[..., None]
        normed = off_mean.view(grouped) * rstd.to(dtype)[..., None]
        d_weight = (dy * normed.view(x.shape)).sum((0, 1))
        d_x = dyw.view(grouped) * rstd.to(dtype)[..., None]
        d_x.add_(off_mean.view(grouped) * slope).add_(level)
        if mask is not None:
            d_x = torch.where(mask[..., None, None], 0, d_x)

        d_mean_0 = before * (per_mean + 2 * per_var * (mean_0 - means))
        d_var_0 = before * per_var
        d_mean_0 = torch.where(told, d_mean_0, d_means)
        d_var_0 = torch.where(told, d_var_0, d_vars)
        d_mean_0, d_var_0 = (torch.where(continues, v, 0).sum(1) for v in (d_mean_0, d_var_0))
        return (
            d_x.view(x.shape).to(x.dtype),
            d_weight.to(weight.dtype),
            dy.sum((0, 1)).to(bias.dtype),
            None,
            None,
            None,
            d_mean_0,
            d_var_0,
            None,
            None,
        )


def _before(
    count: Tensor, resets: Tensor | None, runs: segments.Segments | None, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Whether a token belongs to the incoming document, and how many tokens preceded its run.

    bool and float64, both [B, L, 1].
    """
    if runs is None:
        continues = torch.ones(shape[0], 1, 1, dtype=torch.bool, device=count.device)
    else:
        continues = (resets.long().cumsum(1) == 0)[..., None]
    return continues, torch.where(continues, count.double()[:, None, None], 0)
