"""A block's step by a single token a row, as writing makes it: without gradients, on a CPU.

Here a call takes as long as what surrounds the products, so nothing does that is not needed: no
tiles, no dropout, no functions with a backward pass, no coefficients made anew. The mathematics is
that of `attention.py` and `ffn.py`.

Shapes: B batch, D model_dim, H heads.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from litmegalodon.models.rows import cast, rms
from litmegalodon.models.state import LayerState
from litmegalodon.ops import Places, chunk_attention
from litmegalodon.ops.cema.step import cema_step
from litmegalodon.ops.chunk_attention.step import chunk_attention_step
from litmegalodon.ops.dispatch import compute_dtype

if TYPE_CHECKING:
    from litmegalodon.models.attention import MovingAverageGatedAttention
    from litmegalodon.models.ffn import NormalizedFeedForward


def is_step(module: nn.Module, x: Tensor, impl: str = "auto") -> bool:
    """Whether a call of x [B, L, D] is such a step, as far as the module itself can tell."""
    return (
        x.shape[1] == 1
        and x.device.type == "cpu"
        and impl in ("auto", "torch")
        and not module.training
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def attention_step(
    mega: "MovingAverageGatedAttention",
    x: Tensor,
    state: LayerState,
    places: Places,
    affine: tuple[Tensor, Tensor],
) -> tuple[Tensor, LayerState]:
    """x [B, 1, D], where its tokens stand, scale and shift of queries and keys, both [2, H, z] ->
    Y [B, 1, D], state.
    """
    c, wide, x_dtype = mega.config, compute_dtype(x), x.dtype
    heads, ema = c.num_heads, mega.cema
    t, norm_state = mega.timenorm(x, state.norm, None)
    x, t = x.squeeze(1), t.squeeze(1)
    v = silu(linear(t, *cast(x_dtype, mega.wv.weight, mega.wv.bias)))
    y, h = cema_step(t, ema.step_coefficients(wide), ema.omega, state.h)

    weight = mega.rmsnorm.weight
    m = rms(y.to(wide), c.norm_eps)[0]
    m = (m if weight is None else m.mul_(weight + 1)).to(x_dtype)
    z = linear(m, *cast(x_dtype, mega.wz.weight, mega.wz.bias))
    z = z.to(wide).unflatten(1, (1, heads, -1))  # B x 1 x H x z
    z = rms(z, c.norm_eps)[0] if c.attention == "normalised" else silu(z)
    scale, shift = affine
    qk = torch.addcmul(shift, z, scale).to(x_dtype)  # B x 2 x H x z
    v, base = v.unflatten(1, (heads, -1)), c.rope_base or 10_000.0
    if places.aligned:
        a, kv = chunk_attention_step(qk, v, c.attention_chunk, base, places, state.kv)
    else:
        q, k, v = (u[:, None] for u in (*qk.unbind(1), v))
        where = {"chunk_size": c.attention_chunk, "rope_base": base, "position": places}
        a, kv = chunk_attention(q, k, v, **where, kv=state.kv, impl=mega.impl)
        a = a.squeeze(1)

    gate = silu(linear(m, *cast(x_dtype, mega.wr.weight, mega.wr.bias)))
    out = linear(m, *cast(x_dtype, mega.wh1.weight, mega.wh1.bias))
    (wh2,) = cast(x_dtype, mega.wh2.weight)
    out.addmm_(gate.mul_(a.flatten(1)), wh2.t()).add_(x)
    return out[:, None], LayerState(norm_state, h, kv)


def feed_forward_step(nffn: "NormalizedFeedForward", y: Tensor, x: Tensor) -> Tensor:
    """Attention's output y and the block's input x, both [B, 1, D] -> the block's output."""
    weight, bias = nffn.norm.weight, nffn.norm.bias
    scale = None if weight is None else weight + 1
    f = layer_norm(y.to(compute_dtype(y)), y.shape[-1:], scale, bias, nffn.config.norm_eps)
    f = f.to(y.dtype)
    w1, w2 = cast(y.dtype, nffn.fc1.weight, nffn.fc2.weight)
    u = silu(linear(f, w1))
    if nffn.fc3 is not None:
        u.mul_(linear(f, nffn.fc3.weight.to(y.dtype)))
    out = linear(u, w2)
    return x + (out if nffn.alpha is None else out.mul_(nffn.alpha))
