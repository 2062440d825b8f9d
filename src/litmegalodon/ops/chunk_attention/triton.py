"""Chunk attention on a GPU through Triton: the form behind impl="triton" and its autograd.

passes.py starts the kernels, forward and backward; here they become two operators of torch.library,
so that torch.compile and fake tensors see them as one node each.

Shapes: B batch, L length, S slots of the cache, H heads, C chunk, z and e head sizes.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from litmegalodon.ops.chunk_attention.dropkey import seed_counter
from litmegalodon.ops.chunk_attention.passes import (
    Settings,
    attention_backward,
    attention_forward,
)
from litmegalodon.ops.chunk_attention.state import KeyValueState, advance
from litmegalodon.ops.dispatch import compute_dtype

__all__ = ["Settings", "attention_backward", "attention_forward", "chunk_attention_triton"]


def chunk_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    rope_base: float,
    position: Tensor,
    kv: KeyValueState,
    resets: Tensor | None,
    drop: tuple[float, int] | None,
) -> tuple[Tensor, KeyValueState]:
    """See `litmegalodon.ops.chunk_attention`."""
    # How far rows are in their chunks has to be read where they are not at a chunk's first token;
    # torch.compile leaves those calls, of generation mostly, as they are.
    run = _run if kv.k.shape[1] == 0 else _run_untraced
    return run(q, k, v, chunk_size, rope_base, position, kv, resets, drop)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk_size: int,
    rope_base: float,
    position: Tensor,
    kv: KeyValueState,
    resets: Tensor | None,
    drop: tuple[float, int] | None,
) -> tuple[Tensor, KeyValueState]:
    seed, threshold = (seed_counter(drop[1]), int(drop[0] * 2**32)) if drop else (0, 0)
    # Tensors of two dtypes would meet in one product.
    q, k, k_cache, v_cache = (u.to(v.dtype) for u in (q, k, kv.k, kv.v))
    out, _, rotated_k, _ = torch.ops.litmegalodon.chunk_attention_forward(
        q, k, v, k_cache, v_cache, kv.length, position, resets, chunk_size, rope_base,
        _signed(seed), _signed(threshold), drop is not None,
    )  # fmt: skip
    slots, aligned = _places((position + q.shape[1]) % chunk_size, q.shape[1] % chunk_size)
    return out, advance(rotated_k, v, chunk_size, position, kv, resets, slots, aligned)


_run_untraced = torch.compiler.disable(_run)


def _places(end: Tensor, likely: int) -> tuple[int, bool]:
    """How far the furthest row is in its chunk, and whether all rows are equally far.

    It is the size of the outgoing state, so it has to be read from the device. Where there is no
    value to read (meta and fake tensors, tracing), rows are taken to have begun at a chunk's first
    token, as in training; a traced program that is then run with others stops with this assertion.
    """
    if end.device.type == "meta":
        return likely, True
    if isinstance(end, FakeTensor) or torch.compiler.is_compiling():
        torch._assert_async(
            (end == likely).all(),
            "chunk_attention: traced for rows that begin at a chunk boundary, run with others",
        )
        return likely, True
    low, high = torch.stack([end.min(), end.max()]).tolist()
    return high, low == high


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
    known: Tensor,
    position: Tensor,
    resets: Tensor | None,
    chunk_size: int,
    rope_base: float,
    seed: int,
    threshold: int,
    drop: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    settings = Settings(chunk_size, rope_base, seed, threshold, drop)
    return attention_forward(q, k, v, k_cache, v_cache, known, position, resets, settings)


@_forward.register_fake
def _(q, k, v, k_cache, v_cache, known, position, resets, *settings):
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
    known: Tensor,
    position: Tensor,
    resets: Tensor | None,
    chunk_size: int,
    rope_base: float,
    seed: int,
    threshold: int,
    drop: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    settings = Settings(chunk_size, rope_base, seed, threshold, drop)
    return attention_backward(
        d_out, d_rotated_k, out, q, k, v, k_cache, v_cache, lse, known, position, resets, settings
    )


@_backward.register_fake
def _(d_out, d_rotated_k, out, q, k, v, k_cache, v_cache, *_):
    return tuple(u.new_empty(u.shape) for u in (q, k, v, k_cache, v_cache))


def _save(ctx, inputs, output):
    _, _, v, k_cache, v_cache, known, position, resets, *ctx.settings = inputs
    out, q, k, lse = output
    ctx.mark_non_differentiable(q, lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(out, q, k, v, k_cache, v_cache, lse, known, position, resets)


def _gradients(ctx, d_out, _, d_rotated_k, __):
    if d_out is None:
        d_out = torch.zeros_like(ctx.saved_tensors[0])
    grads = torch.ops.litmegalodon.chunk_attention_backward(
        d_out, d_rotated_k, *ctx.saved_tensors, *ctx.settings
    )
    return *grads, *[None] * 8


_forward.register_autograd(_gradients, setup_context=_save)
