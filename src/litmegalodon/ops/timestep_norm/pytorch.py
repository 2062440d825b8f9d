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

from litmegalodon.ops import segments
from litmegalodon.ops.dispatch import backward_pass, compute_dtype
from litmegalodon.ops.tiles import tiles
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


class _TimestepNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, num_groups, eps, count, mean, var, resets, padding_mask):
        dtype = compute_dtype(x)
        batch, length, _ = x.shape
        flat = x.reshape(batch * length, num_groups, -1)  # BL x G x d
        g, s = moments(x, num_groups)

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
        y = torch.empty_like(flat)
        scale, shift = (
            weight.to(dtype).view(num_groups, -1) + 1,
            bias.to(dtype).view(num_groups, -1),
        )
        for tile in tiles(flat):
            normed = _normed(flat, means, rstd, tile, dtype)
            y[tile] = torch.addcmul(shift, normed, scale)
        y = y.view(x.shape)
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
        ctx.mark_non_differentiable(out_count := seen[:, -1, 0].round().long())
        return y, out_count, means[:, -1].clone(), variances[:, -1].clone()

    @staticmethod
    @backward_pass
    def backward(ctx, grad_y, _, grad_mean, grad_var):
        x, weight, bias, g, means, rstd, n, before, continues, mean_0, tokens, seen, mask = (
            ctx.saved_tensors
        )
        dtype = compute_dtype(x)
        batch, length, groups = g.shape
        flat = x.reshape(batch * length, groups, -1)  # BL x G x d
        size = flat.shape[2]
        dy = grad_y.reshape(flat.shape)
        scale = weight.to(dtype).view(groups, -1) + 1
        d_weight, d_bias = torch.zeros_like(scale), torch.zeros_like(scale)
        # Sums over each group of dy w and of dy w (x - mean) rstd.
        along, across = (
            torch.empty(flat.shape[:2], dtype=torch.float64, device=x.device) for _ in range(2)
        )
        for tile in tiles(flat):
            dy_tile, normed = (
                _cotangent(dy, tile, dtype, mask),
                _normed(flat, means, rstd, tile, dtype),
            )
            if mask is not None:
                normed = torch.where(mask.view(-1, 1, 1)[tile], 0, normed)
            d_weight += (dy_tile * normed).sum(0)
            d_bias += dy_tile.sum(0)
            dyw = dy_tile * scale
            along[tile] = dyw.sum(-1)
            across[tile] = torch.linalg.vecdot(dyw, normed)
        d_means = -rstd * along.view_as(rstd)
        d_vars = -0.5 * rstd**2 * across.view_as(rstd)
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
        slope = 2 * d_s / size / rstd
        level = (d_g + 2 * d_s * (means - g)) / size
        d_x = torch.empty_like(flat)
        for tile in tiles(flat):
            normed = _normed(flat, means, rstd, tile, dtype)
            out = (_cotangent(dy, tile, dtype, mask) * scale).mul_(column(rstd, tile, dtype))
            out.addcmul_(normed, column(slope, tile, dtype)).add_(column(level, tile, dtype))
            if mask is not None:
                out = torch.where(mask.view(-1, 1, 1)[tile], 0, out)
            d_x[tile] = out

        d_mean_0 = before * (per_mean + 2 * per_var * (mean_0 - means))
        d_var_0 = before * per_var
        d_mean_0 = torch.where(told, d_mean_0, d_means)
        d_var_0 = torch.where(told, d_var_0, d_vars)
        d_mean_0, d_var_0 = (torch.where(continues, v, 0).sum(1) for v in (d_mean_0, d_var_0))
        return (
            d_x.view(x.shape),
            d_weight.flatten().to(weight.dtype),
            d_bias.flatten().to(bias.dtype),
            None,
            None,
            None,
            d_mean_0,
            d_var_0,
            None,
            None,
        )


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each token's groups of features, float64 [B, L, G]."""
    dtype = compute_dtype(x)
    flat = x.reshape(x.shape[0] * x.shape[1], num_groups, -1)  # BL x G x d
    g = torch.empty(flat.shape[:2], dtype=torch.float64, device=x.device)
    s = torch.empty_like(g)
    for tile in tiles(flat):
        x_c = flat[tile].to(dtype)
        centred = x_c - (g_tile := x_c.mean(-1, keepdim=True))
        g[tile] = g_tile.squeeze(-1)
        s[tile] = torch.linalg.vecdot(centred, centred).div_(flat.shape[2])
    return g.view(*x.shape[:2], num_groups), s.view(*x.shape[:2], num_groups)


def column(values: Tensor, tile: slice, dtype: torch.dtype) -> Tensor:
    """A tile of [B, L, G] values, to be broadcast over a group's features."""
    return values.flatten(0, 1)[tile].to(dtype).unsqueeze(-1)


def _normed(flat: Tensor, means: Tensor, rstd: Tensor, tile: slice, dtype: torch.dtype) -> Tensor:
    """A tile of (x - mean) rstd, x [BL, G, d]."""
    off_mean = flat[tile].to(dtype) - column(means, tile, dtype)
    return off_mean.mul_(column(rstd, tile, dtype))


def _cotangent(dy: Tensor, tile: slice, dtype: torch.dtype, mask: Tensor | None) -> Tensor:
    """A tile of dy [BL, G, d], zero where padded."""
    part = dy[tile].to(dtype)
    return part if mask is None else torch.where(mask.view(-1, 1, 1)[tile], 0, part)


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
