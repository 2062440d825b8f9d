"""Chunk attention on a GPU through Triton: what is prepared on the host, launches, autograd.

Forward: queries and keys are rotated once (the rotated keys are also what the outgoing state
keeps), then each program of `forward_kernel` makes one tile of queries times a slice of v's columns
by online softmax and the log-sum-exp is kept. Backward: delta, then dQ, dK and dV by an owner each,
then the rotation back. kernels.py says how chunks, documents and the incoming cache are seen.

Under `recording()` both passes run through on device="meta"; nothing here reads a value, except
that the outgoing state's size is read from `position` (`_places`).

Shapes: B batch, L length, S slots of the cache, H heads, C chunk, z and e head sizes.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from litmegalodon.ops.chunk_attention.backward_kernels import (
    delta_kernel,
    key_kernel,
    query_kernel,
    value_kernel,
)
from litmegalodon.ops.chunk_attention.dropkey import seed_counter
from litmegalodon.ops.chunk_attention.kernels import forward_kernel, rotate_kernel
from litmegalodon.ops.chunk_attention.rope import table
from litmegalodon.ops.chunk_attention.state import KeyValueState, advance
from litmegalodon.ops.chunk_attention.tiles import configs, target
from litmegalodon.ops.dispatch import compute_dtype
from litmegalodon.ops.launch import INTERPRETED, Config, launch

MAX_Z = 256


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
    """See `litmegalodon.ops.chunk_attention`.

    Raises:
        ValueError: z is above 256, or the tensors are where no kernel can run.
    """
    if q.shape[-1] > MAX_Z:
        raise ValueError(
            f"chunk_attention: {q.shape[-1]} features a head in q; impl='triton' takes up to "
            f"{MAX_Z}; use impl='torch'"
        )
    if q.device.type == "cpu" and not INTERPRETED and not isinstance(q, FakeTensor):
        raise ValueError(
            "chunk_attention: impl='triton' needs tensors on a GPU; use impl='torch' on a CPU, or "
            "set TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's interpreter"
        )
    seed, threshold = (seed_counter(drop[1]), int(drop[0] * 2**32)) if drop else (0, 0)
    # Tensors of two dtypes would meet in one product.
    q, k, k_cache, v_cache = (u.to(v.dtype) for u in (q, k, kv.k, kv.v))
    out, _, rotated_k, _ = torch.ops.litmegalodon.chunk_attention_forward(
        q, k, v, k_cache, v_cache, kv.length, position, resets, chunk_size, rope_base,
        _signed(seed), _signed(threshold), drop is not None,
    )  # fmt: skip
    slots, aligned = _places((position + q.shape[1]) % chunk_size, q.shape[1] % chunk_size)
    return out, advance(rotated_k, v, chunk_size, position, kv, resets, slots, aligned)


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


class Settings(NamedTuple):
    """What is the same for every kernel of a call."""

    chunk_size: int
    rope_base: float
    # DropKey's counter after the seed and its threshold, 32 bits each as int32.
    seed: int
    threshold: int
    drop: bool


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    known: Tensor,
    position: Tensor,
    resets: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Start all kernels of the forward pass.

    Args:
        q, k: [B, L, H, z], not rotated; v: [B, L, H, e].
        k_cache, v_cache: [B, S, H, *], rotated keys and values of the chunk the call begins in.
        known: int64 [B], how many slots before (position mod C) may be seen.
        position: int64 [B]; resets: bool [B, L].

    Returns:
        out [B, L, H, e], rotated q and k, log-sum-exp [B, H, L].
    """
    q, k, v, k_cache, v_cache = (u.contiguous() for u in (q, k, v, k_cache, v_cache))
    batch, length, heads, e = v.shape
    q, k = (_rotate(u, position, settings, 1, u.dtype) for u in (q, k))
    out = torch.empty_like(v)
    lse = torch.empty(batch, heads, length, dtype=compute_dtype(v), device=v.device)
    tensors = dict(p_q=q, p_k=k, p_v=v, p_k_cache=k_cache, p_v_cache=v_cache, p_out=out, p_lse=lse)
    shared = _shared(q, v, k_cache, known, position, resets, settings)
    launch(
        forward_kernel,
        lambda t: (_tiles(length, t["M"]), triton.cdiv(e, t["W"]), batch * heads),
        tensors | shared,
        _configs("forward", shared, v),
    )
    return out, q, k, lse


def attention_backward(
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
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Start all kernels of the backward pass.

    Args:
        d_out: [B, L, H, e], cotangent of out.
        d_rotated_k: [B, L, H, z], cotangent that the rotated keys have through the outgoing state.
        q, k: as returned by attention_forward, rotated. Others as there.

    Returns:
        Gradients of attention_forward's q, k, v, k_cache and v_cache.
    """
    d_out, v, k_cache, v_cache = (u.contiguous() for u in (d_out, v, k_cache, v_cache))
    batch, length, heads, e = v.shape
    acc = compute_dtype(v)
    delta = torch.empty_like(lse)
    launch(
        delta_kernel,
        lambda t: (triton.cdiv(length, t["T"]), batch * heads),
        dict(p_out=out, p_d_out=d_out, p_delta=delta, L=length, H=heads, E=e, ACC=_ACC[acc]),
        (Config({"T": 16, "W": min(256, triton.next_power_of_2(e))}),),
    )
    # Rows' gradients before they are rotated back keep the sums' precision.
    dq, dk = (torch.empty_like(u, dtype=acc) for u in (q, k))
    dv = torch.empty_like(v)
    # Slots that no query sees are written by no program.
    dk_cache, dv_cache = torch.zeros_like(k_cache, dtype=acc), torch.zeros_like(v_cache)
    shared = _shared(q, v, k_cache, known, position, resets, settings)
    keys = dict(p_q=q, p_k=k, p_k_cache=k_cache, p_d_out=d_out, p_lse=lse)
    scores = keys | dict(p_v=v, p_v_cache=v_cache, p_delta=delta)
    launch(
        query_kernel,
        lambda t: (_tiles(length, t["M"]), batch * heads),
        scores | dict(p_dq=dq) | shared,
        _configs("query", shared, v),
    )
    places = length + k_cache.shape[1]
    launch(
        key_kernel,
        lambda t: (_tiles(places, t["N"]), batch * heads),
        scores | dict(p_dk=dk, p_dk_cache=dk_cache) | shared,
        _configs("key", shared, v),
    )
    launch(
        value_kernel,
        lambda t: (_tiles(places, t["N"]), triton.cdiv(e, t["W"]), batch * heads),
        keys | dict(p_dv=dv, p_dv_cache=dv_cache) | shared,
        _configs("value", shared, v),
    )
    if d_rotated_k is not None:
        dk += d_rotated_k
    dq, dk = (_rotate(u, position, settings, -1, v.dtype) for u in (dq, dk))
    return dq, dk, dv, dk_cache.to(v.dtype), dv_cache


_ACC = {torch.float32: triton.language.float32, torch.float64: triton.language.float64}


def _rotate(x: Tensor, position: Tensor, settings: Settings, sign: int, dtype: torch.dtype):
    """x [B, L, H, z] rotated by its places (sign 1) or back (-1)."""
    batch, length, heads, z = x.shape
    acc = compute_dtype(x)
    y = torch.empty_like(x, dtype=dtype)
    angles = table(settings.chunk_size, z, settings.rope_base, acc, x.device)
    launch(
        rotate_kernel,
        lambda t: (triton.cdiv(length, t["T"]), batch),
        dict(
            p_x=x,
            p_y=y,
            p_table=torch.view_as_real(angles),
            p_position=position,
            L=length,
            C=settings.chunk_size,
            H=heads,
            Z=z,
            SIGN=sign,
            ACC=_ACC[acc],
            BLOCK_Z=triton.next_power_of_2(z),
        ),
        (Config({"T": 16}),),
    )
    return y


def _shared(q, v, k_cache, known, position, resets, settings) -> dict:
    """Arguments that all kernels over tiles of queries and keys take."""
    slots = k_cache.shape[1]
    first, last = _bounds(position, known, slots, resets, q.shape[1], settings.chunk_size)
    return dict(
        p_first=first,
        p_last=last,
        p_position=position,
        L=q.shape[1],
        S=slots,
        C=settings.chunk_size,
        seed=settings.seed,
        threshold=settings.threshold,
        H=q.shape[2],
        Z=q.shape[3],
        E=v.shape[3],
        DROP=settings.drop,
        CACHED=slots > 0,
        ACC=_ACC[compute_dtype(v)],
        # float32 means float32: a GPU's own shortcut would keep 10 bits.
        PRECISION="ieee",
        BLOCK_Z=max(16, triton.next_power_of_2(q.shape[3])),
    )


def _bounds(
    position: Tensor,
    known: Tensor,
    slots: int,
    resets: Tensor | None,
    length: int,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """first, last int32 [B, L]: a token sees places first .. its own; before last its run ends."""
    offset = position % chunk_size
    place = (offset[:, None] + torch.arange(length, device=position.device)).int()  # B x L
    end = (offset + length).int()[:, None]
    into_chunk = place % chunk_size
    first = torch.maximum(
        place - into_chunk, (offset - torch.minimum(known, offset).clamp(max=slots)).int()[:, None]
    )
    last = torch.minimum(place - into_chunk + chunk_size, end)
    if resets is not None:
        first = torch.maximum(first, torch.where(resets, place, 0).cummax(1).values)
        # The next document begins at the first reset after a token.
        following = torch.cat([torch.where(resets, place, end)[:, 1:], end], dim=1)
        last = torch.minimum(last, following.flip(1).cummin(1).values.flip(1))
    return first.contiguous(), last.contiguous()


def _tiles(places: int, size: int) -> int:
    """Tiles on the grid of `size` that a stretch of places may touch, wherever it begins."""
    return triton.cdiv(places + size - 1, size)


def _configs(kernel: str, shared: dict, v: Tensor):
    return configs(kernel, target(v.device), v.dtype, shared["Z"], shared["E"], shared["CACHED"])


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
