"""Chunk attention's two passes as launches of kernels: what is prepared on the host for them.

Forward: queries and keys are rotated once (the rotated keys are also what the outgoing state
keeps), then each program of `forward_kernel` makes one tile of queries times a slice of v's columns
by online softmax; the log-sum-exp is kept. Backward: weights and score gradients of as many chunks
as fit in SCRATCH, dQ, dK and dV from these by an owner each, then the rotation back. kernels.py
says how chunks, documents and the incoming cache are seen.

Nothing here reads a value of a tensor: both passes run through under `recording()` on
device="meta".

Shapes: B batch, L length, S slots of the cache, H heads, C chunk, z and e head sizes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from litmegalodon.ops.chunk_attention.backward_kernels import (
    delta_kernel,
    finish_kernel,
    weights_kernel,
)
from litmegalodon.ops.chunk_attention.kernels import forward_kernel, rotate_kernel
from litmegalodon.ops.chunk_attention.product_kernels import key_kernel, query_kernel
from litmegalodon.ops.chunk_attention.rope import table
from litmegalodon.ops.chunk_attention.tiles import cache_access, configs, grid_tile
from litmegalodon.ops.dispatch import compute_dtype
from litmegalodon.ops.launch import launch

# Bytes of P and X that a backward pass may hold at a time, if one chunk of one head fits.
SCRATCH = 512 * 2**20


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
    position: Tensor,
    first: Tensor,
    last: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Start all kernels of the forward pass.

    Args:
        q, k: [B, L, H, z], not rotated; v: [B, L, H, e].
        k_cache, v_cache: [B, S, H, *], rotated keys and values of the chunk the call begins in.
        position: int64 [B]; first, last: int32 [B, L], see places.py.

    Returns:
        out [B, L, H, e], rotated q and k, log-sum-exp [B, H, L].
    """
    q, k, v, k_cache, v_cache, position = (
        u.contiguous() for u in (q, k, v, k_cache, v_cache, position)
    )
    batch, length, heads, e = v.shape
    q, k = (_rotate(u, position, settings, 1, u.dtype) for u in (q, k))
    out = torch.empty_like(v)
    lse = torch.empty(batch, heads, length, dtype=compute_dtype(v), device=v.device)
    tensors = dict(p_q=q, p_k=k, p_v=v, p_k_cache=k_cache, p_v_cache=v_cache, p_out=out, p_lse=lse)
    shared = _shared(q, v, k_cache, position, first, last, settings)
    launch(
        forward_kernel,
        lambda t: (_tiles(length, t["M"]), triton.cdiv(e, t["W"]), batch * heads),
        tensors | shared,
        configs("forward", v, shared["CACHED"]),
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
    position: Tensor,
    first: Tensor,
    last: Tensor,
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
    d_out, v, k_cache, v_cache, position = (
        u.contiguous() for u in (d_out, v, k_cache, v_cache, position)
    )
    batch, length, heads, e = v.shape
    acc = compute_dtype(v)
    delta = torch.empty_like(lse)
    launch(
        delta_kernel,
        lambda t: (triton.cdiv(length, t["T"]), batch * heads),
        dict(p_out=out, p_d_out=d_out, p_delta=delta, L=length, H=heads, E=e, ACC=_ACC[acc]),
        configs("delta", v, 0),
    )
    # Rows' gradients before they are rotated back keep the sums' precision.
    dq, dk = (torch.empty_like(u, dtype=acc) for u in (q, k))
    dv = torch.empty_like(v)
    # Slots that no query sees are written by no program.
    dk_cache, dv_cache = torch.zeros_like(k_cache, dtype=acc), torch.zeros_like(v_cache)
    shared = _shared(q, v, k_cache, position, first, last, settings)
    grid = grid_tile(v)
    plan = Plan.of(v.shape, k_cache.shape[1], settings.chunk_size, v.element_size(), grid)
    split = v.dtype == torch.bfloat16
    weight, high, low = (v.new_empty(n * plan.size) for n in (1, 1, int(split)))
    for count, part in plan.parts():
        places = shared | part | dict(GRID_M=grid[0], GRID_N=grid[1])
        launch(
            weights_kernel,
            lambda t, count=count: (plan.K // t["N"], plan.chunks * plan.R // t["M"], count),
            dict(p_q=q, p_k=k, p_v=v, p_k_cache=k_cache, p_v_cache=v_cache, p_d_out=d_out)
            | dict(p_lse=lse, p_delta=delta, p_weight=weight, p_high=high, p_low=low)
            | _without(places, "BLOCK_Z"),
            configs("weights", v, shared["CACHED"]),
        )
        products = _without(places, "seed", "threshold", "DROP")
        launch(
            finish_kernel,
            lambda t, count=count: (plan.chunks * plan.R // t["M"], count),
            dict(p_weight=weight, p_high=high, p_low=low)
            | _without(products, "S", "Z", "E", "CACHED", "PRECISION", "BLOCK_Z"),
            configs("finish", v, 0),
        )
        launch(
            query_kernel,
            lambda t, count=count: (plan.chunks * plan.R // t["M"], count),
            dict(p_k=k, p_k_cache=k_cache, p_high=high, p_low=low, p_dq=dq)
            | _without(products, "E"),
            configs("query", v, shared["CACHED"]),
        )
        products = _without(products, "Z", "BLOCK_Z")
        for x, y, of_tokens, of_cache in ((high, q, dk, dk_cache), (weight, d_out, dv, dv_cache)):
            width = y.shape[3]
            launch(
                key_kernel,
                lambda t, count=count, width=width: (
                    plan.chunks * plan.K // t["N"],
                    triton.cdiv(width, t["W"]),
                    count,
                ),
                dict(p_x=x, p_low=low, p_y=y, p_out=of_tokens, p_out_cache=of_cache)
                | products
                | dict(E=width, SPLIT=split and x is high),
                configs("key" if x is high else "value", y, shared["CACHED"]),
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
        configs("rotate", x, 0),
    )
    return y


def _shared(q, v, k_cache, position, first, last, settings) -> dict:
    """Arguments that all kernels over tiles of queries and keys take."""
    slots = k_cache.shape[1]
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
        CACHED=cache_access(v.device) if slots > 0 else 0,
        ACC=_ACC[compute_dtype(v)],
        # float32 means float32: a GPU's own shortcut would keep 10 bits.
        PRECISION="ieee",
        BLOCK_Z=max(16, triton.next_power_of_2(q.shape[3])),
    )


def _without(arguments: dict, *names: str) -> dict:
    return {name: value for name, value in arguments.items() if name not in names}


def _tiles(places: int, size: int) -> int:
    """Tiles on the grid of `size` that a stretch of places may touch, wherever it begins."""
    return triton.cdiv(places + size - 1, size)


@dataclass(frozen=True)
class Plan:
    """How the backward pass is cut into parts whose P and X fit into SCRATCH.

    A query with a key takes up to three elements: P and the two parts of X. Heads are numbered over
    all rows, b H + h: each is worked on as if it were alone.

    Attributes:
        heads, part: all heads of all rows, those of a part.
        total, chunks: chunks that a row's places may touch, those of a part.
        R, K: rows and columns of a chunk's P, whole tiles.
        size: elements of a part's P.
    """

    heads: int
    part: int
    total: int
    chunks: int
    R: int
    K: int
    size: int

    @classmethod
    def of(cls, shape, slots: int, chunk_size: int, element: int, grid: tuple[int, int]) -> "Plan":
        """For v of `shape` [B, L, H, e] with elements of `element` bytes."""
        batch, length, heads, _ = shape
        tile_m, tile_n = grid
        # A row may begin anywhere in its first tile and chunk.
        r = triton.cdiv(min(chunk_size, length + tile_m - 1), tile_m) * tile_m
        k = triton.cdiv(min(chunk_size, slots + length + tile_n - 1), tile_n) * tile_n
        total = triton.cdiv(length + chunk_size - 1, chunk_size)
        fit = SCRATCH // (3 * element * r * k)
        part = max(1, min(batch * heads, fit))
        chunks = max(1, min(total, fit // part))
        return cls(batch * heads, part, total, chunks, r, k, part * chunks * r * k)

    def parts(self) -> Iterator[tuple[int, dict[str, int]]]:
        """Each part's number of heads and its arguments to a kernel."""
        for head in range(0, self.heads, self.part):
            for chunk in range(0, self.total, self.chunks):
                heads = min(self.part, self.heads - head)
                yield heads, dict(head=head, chunk=chunk, R=self.R, K=self.K)
