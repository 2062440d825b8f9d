"""Moving-average equipped gated attention: how a block looks back.

Shapes: B batch, L length, D model_dim, H heads, Z z_dim, E value_dim (over all heads), z = Z / H, e
= E / H.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, rms_norm, silu

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.models.layers import ComplexEMA, Linear, RMSNorm, TimestepNorm
from litmegalodon.models.state import LayerState
from litmegalodon.ops import chunk_attention
from litmegalodon.ops.dispatch import compute_dtype


class MovingAverageGatedAttention(nn.Module):
    """The attention half of a block, its residual included.

    T = TimestepNorm(X), M = RMSNorm(CEMA(T)); queries and keys from M, values from T, gate from M;
    Y = M Wh1 + (attention * gate) Wh2 + X.

    Source: paper, section 3; released reference.
    """

    def __init__(self, config: MegalodonConfig, impl: str):
        super().__init__()
        dim, z, value = config.model_dim, config.z_dim, config.value_dim
        self.config, self.impl = config, impl
        self.timenorm = TimestepNorm(dim, config.norm_num_groups, config.norm_eps, impl)
        self.cema = ComplexEMA(dim, config.cema_ndim, impl)
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
        position: Tensor,
        resets: Tensor | None,
        seed: int | None,
    ) -> tuple[Tensor, LayerState]:
        """x [B, L, D], position int64 [B], seed of DropKey -> Y [B, L, D], state."""
        c = self.config
        hidden_dropout = c.hidden_dropout if self.training else 0.0
        t, norm_state = self.timenorm(x, state.norm if state else None, resets)
        m, h = self.cema(t, state.h if state else None, resets)
        m = dropout(self.rmsnorm(m), hidden_dropout)

        q, k = self._queries_and_keys(self.wz(m))
        v = silu(self.wv(t))  # B x L x E
        gate = silu(self.wr(m))
        a, kv = chunk_attention(
            q.to(v.dtype),
            k.to(v.dtype),
            v.unflatten(-1, (c.num_heads, -1)),
            chunk_size=c.chunk_size,
            rope_base=c.rope_base or 10_000.0,
            position=position,
            kv=state.kv if state else None,
            resets=resets,
            dropkey=c.attention_dropout if self.training else 0.0,
            seed=seed,
            impl=self.impl,
        )
        gated = dropout(a.flatten(2) * gate, hidden_dropout)
        y = self.wh1(m) + self.wh2(gated)
        y = dropout(y, c.dropout, self.training) + x
        return y, LayerState(norm_state, h, kv)

    def _queries_and_keys(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, L, Z] -> q, k [B, L, H, z]: normalised per head, then an affine each."""
        heads, dtype = self.config.num_heads, compute_dtype(z)
        z = z.unflatten(-1, (heads, -1)).to(dtype)
        z = rms_norm(z, (z.shape[-1],), eps=self.config.norm_eps)
        scale = (self.gamma.to(dtype) + 1) / math.sqrt(z.shape[-1])
        scale, shift = (u.unflatten(-1, (heads, -1)) for u in (scale, self.beta.to(dtype)))
        return z * scale[0] + shift[0], z * scale[1] + shift[1]
