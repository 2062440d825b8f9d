"""The normalised feed-forward network with its two-hop residual.

Shapes: R rows (tokens of all batch rows), D model_dim, F inner width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.models.layers import LayerNorm, Linear
from litmegalodon.models.rows import (
    Dropout,
    accumulators,
    cast,
    product_dtype,
)
from litmegalodon.models.step import feed_forward_step, is_step
from litmegalodon.ops.dispatch import backward_pass, compute_dtype, forward_pass
from litmegalodon.ops.products import add_product
from litmegalodon.ops.tiles import tiles


class NormalizedFeedForward(nn.Module):
    """silu(F W1) [* F W3] W2 with F = LayerNorm(Y), added to the block's input X, not to Y.

    With `residual=plain` X is Y.

    Source:
        paper, section 3.4 (two-hop residual); released reference.
    """

    def __init__(self, config: MegalodonConfig):
        super().__init__()
        dim, hidden = config.model_dim, config.ffn_hidden_dim
        self.config = config
        self.norm = LayerNorm(dim, config.norm_eps, config.norm_affine)
        self.fc1 = Linear(dim, hidden, bias=False)
        self.fc2 = Linear(hidden, dim, bias=False)
        self.fc3 = Linear(dim, hidden, bias=False) if config.swiglu else None
        self.alpha = nn.Parameter(torch.empty(dim)) if config.rescale_nffn else None

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Attention's output y and the block's input x, both [B, L, D] -> the block's output."""
        if is_step(self, y):
            return feed_forward_step(self, y, x)
        c, rows = self.config, y.shape[0] * y.shape[1]
        inner, outer = (c.hidden_dropout, c.dropout) if self.training else (0.0, 0.0)
        drop_inner = Dropout.draw(inner, rows, c.ffn_hidden_dim, y.device)
        drop_outer = Dropout.draw(outer, rows, c.model_dim, y.device)
        return _FeedForward.apply(
            y,
            x,
            self.norm.weight,
            self.norm.bias,
            self.fc1.weight,
            self.fc3.weight if self.fc3 is not None else None,
            self.fc2.weight,
            self.alpha,
            drop_inner.mask,
            drop_outer.mask,
            (c.norm_eps, inner, outer),
            product_dtype(y),
        )


def _norm(y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    """LayerNorm with a weight stored minus one, the mean and 1 / deviation."""
    scale = None if weight is None else weight + 1
    return torch.native_layer_norm(y, y.shape[-1:], scale, bias, eps)


class _FeedForward(torch.autograd.Function):
    """Saves y and the pre-activations a = F W1 and b = F W3."""

    @staticmethod
    @forward_pass
    def forward(ctx, y, x, weight, bias, w1, w3, w2, alpha, keep, keep_outer, settings, dtype):
        wide, (eps, *probabilities) = compute_dtype(y), settings
        drop_inner, drop_outer = map(Dropout, probabilities, (keep, keep_outer))
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        # Flattened in here: what a block returns must not be a view, FSDP2 warns of those.
        y, x, out = (u.flatten(0, 1) for u in (y, x, result))
        first, gate, last = cast(dtype, w1, w3, w2)
        a = y.new_empty(len(y), len(w1), dtype=dtype)  # R x F
        b = None if w3 is None else torch.empty_like(a)
        for tile in tiles(y):
            f = _norm(y[tile].to(wide), weight, bias, eps)[0].to(dtype)
            u = silu(torch.mm(f, first.t(), out=a[tile]))
            if b is not None:
                u.mul_(torch.mm(f, gate.t(), out=b[tile]))
            p = drop_outer(drop_inner(u, tile) @ last.t(), tile)
            torch.add(x[tile], p if alpha is None else p * alpha, out=out[tile])
        ctx.save_for_backward(y, weight, bias, w1, w3, w2, alpha, a, b, keep, keep_outer)
        ctx.settings, ctx.dtype = settings, dtype
        return result

    @staticmethod
    @backward_pass
    def backward(ctx, grad):
        y, weight, bias, w1, w3, w2, alpha, a, b, keep, keep_outer = ctx.saved_tensors
        dtype, wide, (eps, *probabilities) = ctx.dtype, compute_dtype(y), ctx.settings
        drop_inner, drop_outer = map(Dropout, probabilities, (keep, keep_outer))
        d_x, grad = grad, grad.flatten(0, 1)
        first, gate, last = cast(dtype, w1, w3, w2)
        parameters = (weight, bias, w1, w3, w2, alpha)
        totals = accumulators(*parameters)
        d_weight, d_bias, d_w1, d_w3, d_w2, d_alpha = totals
        d_y = torch.empty_like(y)
        for tile in tiles(y):
            s = silu(a[tile])
            u = drop_inner(s if b is None else s * b[tile], tile)
            d_p = grad[tile]
            if alpha is not None:
                d_alpha += (d_p * drop_outer(u @ last.t(), tile)).sum(0)
                d_p = d_p * alpha
            d_p = drop_outer(d_p, tile).to(dtype)
            add_product(d_w2, d_p.t(), u)
            d_u = drop_inner(d_p @ last, tile)
            f, mean, rstd = _norm(y[tile].to(wide), weight, bias, eps)
            f = f.to(dtype)
            if b is not None:
                d_b = d_u * s
                d_u.mul_(b[tile])
            d_a = torch.ops.aten.silu_backward(d_u, a[tile])
            d_f = d_a @ first
            add_product(d_w1, d_a.t(), f)
            if b is not None:
                d_f.addmm_(d_b, gate)
                add_product(d_w3, d_b.t(), f)
            parts = torch.ops.aten.native_layer_norm_backward(
                d_f.to(wide),
                y[tile].to(wide),
                y.shape[-1:],
                mean,
                rstd,
                None if weight is None else weight + 1,
                bias,
                [True, weight is not None, bias is not None],
            )
            d_y[tile] = parts[0]
            if weight is not None:
                d_weight += parts[1]
                d_bias += parts[2]
        return d_y.view(d_x.shape), d_x, *totals, *[None] * 4
