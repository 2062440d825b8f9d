"""Chunk attention on a GPU through Triton: the form behind impl="triton" and its autograd.

passes.py starts the kernels, forward and backward; here they become two operators of torch.library,
so that torch.compile and fake tensors see them as one node each.

Shapes: B batch, L length, S slots of the cache, H heads, C chunk, z and e head sizes.
"""

import torch
from torch import Tensor

from litmegalodon.ops.chunk_attention.dropkey import seed_counter
from litmegalodon.ops.chunk_attention.passes import (
    Settings,
    attention_backward,
    attention_forward,
)
from litmegalodon.ops.chunk_attention.places import Places, bounds
from litmegalodon.ops.chunk_attention.state import KeyValueState, advance
from litmegalodon.ops.dispatch import compute_dtype

__all__ = ["Settings", "attention_backward", "attention_forward", "chunk_attention_triton"]


def chunk_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    rope_base: float,
    places: Places,
    kv: KeyValueState,
    resets: Tensor | None,
    drop: tuple[float, int] | None,
) -> tuple[Tensor, KeyValueState]:
    """See `litmegalodon.ops.chunk_attention`."""
    seed, threshold = (seed_counter(drop[1]), int(drop[0] * 2**32)) if drop else (0, 0)
    # Tensors of two dtypes would meet in one product.
    q, k, k_cache, v_cache = (u.to(v.dtype) for u in (q, k, kv.k, kv.v))
    position = places.position
    first, last = places.bounds or bounds(position, kv.length, resets, q.shape[1], chunk_size)
    out, _, rotated_k, _ = torch.ops.litmegalodon.chunk_attention_forward(
        q, k, v, k_cache, v_cache, position, first, last, chunk_size, rope_base,
        _signed(seed), _signed(threshold), drop is not None,
    )  # fmt: skip
    return out, advance(rotated_k, v, chunk_size, places, kv, resets)


def _signed(value: int) -> int:
    """The 32-bit pattern as a signed number: an int32 argument whatever its value."""
    return value - 2**32 if value >= 2**31 else value


@torch.library.custom_op("litmegalodon::chunk_attention_forward", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    first: Tensor,
    last: Tensor,
    chunk_size: int,
    rope_base: float,
    seed: int,
    threshold: int,
    drop: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    settings = Settings(chunk_size, rope_base, seed, threshold, drop)
    return attention_forward(q, k, v, k_cache, v_cache, position, first, last, settings)


@_forward.register_fake
def _(q, k, v, k_cache, v_cache, position, first, last, *settings):
    batch, length, heads, _ = v.shape
    lse = v.new_empty(batch, heads, length, dtype=compute_dtype(v))
    return (*(u.new_empty(u.shape) for u in (v, q, k)), lse)


@torch.library.custom_op("litmegalodon::chunk_attention_backward", mutates_args=())
def _backward(
    d_out: Tensor,
    d_rotated_k: Tensor | None,
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lse: Tensor,
    position: Tensor,
    first: Tensor,
    last: Tensor,
    chunk_size: int,
    rope_base: float,
    seed: int,
    threshold: int,
    drop: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    settings = Settings(chunk_size, rope_base, seed, threshold, drop)
    return attention_backward(
        d_out, d_rotated_k, out, q, k, v, k_cache, v_cache, lse, position, first, last, settings
    )


@_backward.register_fake
def _(d_out, d_rotated_k, out, q, k, v, k_cache, v_cache, *_):
    return tuple(u.new_empty(u.shape) for u in (q, k, v, k_cache, v_cache))


def _save(ctx, inputs, output):
    tensors, ctx.settings = inputs[2:8], inputs[8:]
    out, q, k, lse = output
    ctx.mark_non_differentiable(q, lse)
    ctx.set_materialize_grads(False)
    v, k_cache, v_cache, *places = tensors
    ctx.save_for_backward(out, q, k, v, k_cache, v_cache, lse, *places)


def _gradients(ctx, d_out, _, d_rotated_k, __):
    if d_out is None:
        d_out = torch.zeros_like(ctx.saved_tensors[0])
    grads = torch.ops.litmegalodon.chunk_attention_backward(
        d_out, d_rotated_k, *ctx.saved_tensors, *ctx.settings
    )
    return *grads, *[None] * 8


_forward.register_autograd(_gradients, setup_context=_save)
