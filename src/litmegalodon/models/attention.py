"""Moving-average equipped gated attention: how a block looks back.

Shapes: B batch, L length, D model_dim, H heads, Z z_dim, E value_dim (over all heads), z = Z / H, e
= E / H.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.models.layers import ComplexEMA, Linear, RMSNorm, input_norm
from litmegalodon.models.rows import (
    Dropout,
    accumulators,
    cast,
    product_dtype,
    rms,
    rms_backward,
)
from litmegalodon.models.span import Span
from litmegalodon.models.state import LayerState
from litmegalodon.models.step import attention_step, is_step
from litmegalodon.ops import Places, chunk_attention
from litmegalodon.ops.dispatch import backward_pass, compute_dtype, forward_pass
from litmegalodon.ops.products import add_product
from litmegalodon.ops.tiles import tiles


class MovingAverageGatedAttention(nn.Module):
    """The attention half of a block, its residual included.

    T = TimestepNorm(X), M = RMSNorm(CEMA(T)); queries and keys from M, values from T, gate from M;
    Y = M Wh1 + (attention * gate) Wh2 + X.

    Source:
        paper, section 3; released reference.
    """

    def __init__(self, config: MegalodonConfig, impl: str):
        super().__init__()
        dim, z, value = config.model_dim, config.z_dim, config.value_dim
        self.config, self.impl = config, impl
        self.timenorm = input_norm(config, impl)
        self.cema = ComplexEMA(dim, config.cema_ndim, impl, config.ema == "real")
        self.rmsnorm = RMSNorm(dim, config.norm_eps, config.norm_affine)
        self.wv = Linear(dim, value)
        self.wz = Linear(dim, z)
        self.wr = Linear(dim, value)
        self.wh1 = Linear(dim, dim)
        self.wh2 = Linear(value, dim, bias=False)
        # Affine of queries (row 0) and keys (row 1) on the shared normalised Z; gamma stored minus
        # one.
        self.gamma = nn.Parameter(torch.empty(2, z))
        self.beta = nn.Parameter(torch.empty(2, z))

    def forward(
        self,
        x: Tensor,
        state: LayerState | None,
        places: Places,
        resets: Tensor | None,
        seed: int | None,
        span: Span | None = None,
    ) -> tuple[Tensor, LayerState]:
        """x [B, L, D], where its tokens stand, seed of DropKey -> Y [B, L, D], state."""
        c, (batch, length, dim) = self.config, x.shape
        continues = resets is None and span is None and state is not None
        if continues and is_step(self, x, self.impl):
            normalised = c.attention == "normalised"
            affine = _affine(self.gamma, self.beta, c.num_heads, compute_dtype(x), normalised)
            return attention_step(self, x, state, places, affine)
        hidden, outer = (c.hidden_dropout, c.dropout) if self.training else (0.0, 0.0)
        t, norm_state = self.timenorm(x, state.norm if state else None, resets, span)
        # The values need T only: they are computed while other processes' states arrive.
        moving_average = self.cema.begin(t, state.h if state else None, resets, span)
        v = _Values.apply(t.flatten(0, 1), self.wv.weight, self.wv.bias, product_dtype(t))
        ema, h = moving_average()

        m, q, k, r = _Projections.apply(
            ema.flatten(0, 1),
            self.rmsnorm.weight,
            self.wz.weight,
            self.wz.bias,
            self.gamma,
            self.beta,
            self.wr.weight,
            self.wr.bias,
            Dropout.draw(hidden, batch * length, dim, x.device).mask,
            (c.num_heads, c.norm_eps, hidden, c.attention == "normalised"),
            product_dtype(ema),
        )
        a, kv = chunk_attention(
            *(u.view(batch, length, c.num_heads, -1) for u in (q, k, v)),
            chunk_size=c.attention_chunk,
            rope_base=c.rope_base or 10_000.0,
            position=places,
            kv=state.kv if state else None,
            resets=resets,
            dropkey=c.attention_dropout if self.training else 0.0,
            seed=seed,
            impl=self.impl,
        )
        y = _GatedOutput.apply(
            x.flatten(0, 1),
            m,
            a.flatten(0, 1).flatten(1),
            r,
            self.wh1.weight,
            self.wh1.bias,
            self.wh2.weight,
            Dropout.draw(hidden, batch * length, c.value_dim, x.device).mask,
            Dropout.draw(outer, batch * length, dim, x.device).mask,
            (hidden, outer),
        )
        return y.view_as(x), LayerState(norm_state, h, kv)


class _Values(torch.autograd.Function):
    """v = silu(T Wv + bv)."""

    @staticmethod
    @forward_pass
    def forward(ctx, t, wv, bv, dtype):
        to_v, v_bias = cast(dtype, wv, bv)
        pre, v = (t.new_empty(len(t), len(wv), dtype=dtype) for _ in range(2))
        for tile in tiles(t):
            torch.addmm(v_bias, t[tile].to(dtype), to_v.t(), out=pre[tile])
            v[tile] = silu(pre[tile])
        ctx.save_for_backward(t, wv, bv, pre)
        ctx.dtype = dtype
        return v

    @staticmethod
    @backward_pass
    def backward(ctx, d_v):
        t, *parameters, pre = ctx.saved_tensors
        (to_v,) = cast(ctx.dtype, parameters[0])
        totals = accumulators(*parameters)
        d_wv, d_bv = totals
        d_t = torch.empty_like(t)
        for tile in tiles(t):
            d_pre = torch.ops.aten.silu_backward(d_v[tile], pre[tile])
            add_product(d_wv, d_pre.t(), t[tile].to(ctx.dtype))
            d_bv += d_pre.sum(0)
            d_t[tile] = d_pre @ to_v
        return d_t, *totals, None


class _Projections(torch.autograd.Function):
    """From CEMA's output to M, queries, keys and the gate's pre-activation.

    M = RMSNorm(ema); Z = M Wz + bz normalised per head; q, k = Z * (gamma + 1) / sqrt(z) + beta; r
    = M Wr + br. Plain, as in Mega: Z = silu(M Wz + bz); q, k = (Z * (gamma + 1) + beta) / z^(1/4),
    so that scores are divided by sqrt(z).
    """

    @staticmethod
    @forward_pass
    def forward(ctx, ema, weight, wz, bz, gamma, beta, wr, br, keep, settings, dtype):
        wide, (heads, eps, hidden, normalised) = compute_dtype(ema), settings
        drop = Dropout(hidden, keep)
        to_z, z_bias, to_r, r_bias = cast(dtype, wz, bz, wr, br)
        rows, z = len(ema), len(wz)
        m = ema.new_empty(rows, ema.shape[1], dtype=dtype)
        zs, q, k = (ema.new_empty(rows, z, dtype=dtype) for _ in range(3))
        r = ema.new_empty(rows, len(wr), dtype=dtype)
        scale, shift = _affine(gamma, beta, heads, wide, normalised)
        for tile in tiles(ema):
            m[tile] = drop(_scaled(rms(ema[tile].to(wide), eps)[0], weight), tile)
            torch.addmm(z_bias, m[tile], to_z.t(), out=zs[tile])
            normed = zs[tile].to(wide).unflatten(1, (heads, -1))
            normed = rms(normed, eps)[0] if normalised else silu(normed)
            q[tile] = torch.addcmul(shift[0], normed, scale[0]).flatten(1)
            k[tile] = torch.addcmul(shift[1], normed, scale[1]).flatten(1)
            torch.addmm(r_bias, m[tile], to_r.t(), out=r[tile])
        ctx.save_for_backward(ema, weight, wz, bz, gamma, beta, wr, br, m, zs, keep)
        ctx.settings, ctx.dtype = settings, dtype
        return m, q, k, r

    @staticmethod
    @backward_pass
    def backward(ctx, d_m, d_q, d_k, d_r):
        ema, *parameters, m, zs, keep = ctx.saved_tensors
        weight, wz, _, gamma, beta, wr, _ = parameters
        dtype, wide = ctx.dtype, compute_dtype(ema)
        heads, eps, hidden, normalised = ctx.settings
        drop = Dropout(hidden, keep)
        to_z, to_r = cast(dtype, wz, wr)
        totals = accumulators(*parameters)
        d_weight, d_wz, d_bz, d_gamma, d_beta, d_wr, d_br = totals
        d_ema = torch.empty_like(ema)
        scale, _ = _affine(gamma, beta, heads, wide, normalised)
        by, shift_by = _divisors(len(wz) // heads, normalised)
        for tile in tiles(ema):
            z = zs[tile].to(wide).unflatten(1, (heads, -1))
            normed, factor = rms(z, eps) if normalised else (silu(z), None)
            d_normed = torch.zeros_like(normed)
            for i, d_affine in enumerate((d_q[tile], d_k[tile])):
                d_affine = d_affine.to(wide).view_as(normed)
                d_gamma[i] += (d_affine * normed).sum(0).flatten() / by
                d_beta[i] += d_affine.sum(0).flatten() / shift_by
                d_normed.addcmul_(d_affine, scale[i])
            if normalised:
                d_z = rms_backward(d_normed, normed, factor)
            else:
                d_z = torch.ops.aten.silu_backward(d_normed, z)
            d_z = d_z.flatten(1).to(dtype)
            d_m_tile = (d_z @ to_z).addmm_(d_r[tile], to_r)
            for d_out, d_matrix, d_bias in ((d_z, d_wz, d_bz), (d_r[tile], d_wr, d_br)):
                add_product(d_matrix, d_out.t(), m[tile])
                d_bias += d_out.sum(0)
            d_m_tile = drop(d_m_tile.to(wide).add_(d_m[tile]), tile)
            normed, factor = rms(ema[tile].to(wide), eps)
            if weight is not None:
                d_weight += (d_m_tile * normed).sum(0)
                d_m_tile = d_m_tile * (weight + 1)
            d_ema[tile] = rms_backward(d_m_tile, normed, factor)
        return d_ema, *totals, None, None, None


def _scaled(normed: Tensor, weight: Tensor | None) -> Tensor:
    return normed if weight is None else normed * (weight + 1)


def _divisors(size: int, normalised: bool) -> tuple[float, float]:
    """What (gamma + 1) and beta are divided by in heads of `size` features."""
    return (math.sqrt(size), 1.0) if normalised else (size**0.25, size**0.25)


def _affine(
    gamma: Tensor, beta: Tensor, heads: int, dtype: torch.dtype, normalised: bool
) -> tuple[Tensor, Tensor]:
    """Scale and shift of queries and keys, both [2, H, z]; the scores' scale is a part of them."""
    scale, shift = (u.to(dtype).unflatten(-1, (heads, -1)) for u in (gamma, beta))
    # Added in the wider dtype: in bfloat16 a small gamma is lost beside 1.
    by, shift_by = _divisors(scale.shape[-1], normalised)
    return (scale + 1) / by, shift / shift_by


class _GatedOutput(torch.autograd.Function):
    """Y = M Wh1 + bh1 + (A * silu(r)) Wh2 + X."""

    @staticmethod
    @forward_pass
    def forward(ctx, x, m, a, r, wh1, bh1, wh2, keep_inner, keep_outer, probabilities):
        drop_inner, drop_outer = map(Dropout, probabilities, (keep_inner, keep_outer))
        h1, b1, h2 = cast(m.dtype, wh1, bh1, wh2)
        y = torch.empty_like(x)
        for tile in tiles(x):
            gated = drop_inner(silu(r[tile]).mul_(a[tile]), tile)
            out = torch.addmm(b1, m[tile], h1.t()).addmm_(gated, h2.t())
            torch.add(x[tile], drop_outer(out, tile), out=y[tile])
        ctx.save_for_backward(m, a, r, wh1, bh1, wh2, keep_inner, keep_outer)
        ctx.probabilities = probabilities
        return y

    @staticmethod
    @backward_pass
    def backward(ctx, grad):
        m, a, r, *parameters, keep_inner, keep_outer = ctx.saved_tensors
        drop_inner, drop_outer = map(Dropout, ctx.probabilities, (keep_inner, keep_outer))
        h1, _, h2 = cast(m.dtype, *parameters)
        totals = accumulators(*parameters)
        d_wh1, d_bh1, d_wh2 = totals
        d_m, d_a, d_r = torch.empty_like(m), torch.empty_like(a), torch.empty_like(r)
        for tile in tiles(grad):
            d_out = drop_outer(grad[tile], tile)
            d_bh1 += d_out.sum(0)
            d_out = d_out.to(m.dtype)
            add_product(d_wh1, d_out.t(), m[tile])
            torch.mm(d_out, h1, out=d_m[tile])
            gate = silu(r[tile])
            add_product(d_wh2, d_out.t(), drop_inner(gate * a[tile], tile))
            d_gated = drop_inner(d_out @ h2, tile)
            torch.mul(d_gated, gate, out=d_a[tile])
            d_r[tile] = torch.ops.aten.silu_backward(d_gated.mul_(a[tile]), r[tile])
        return grad, d_m, d_a, d_r, *totals, None, None, None
