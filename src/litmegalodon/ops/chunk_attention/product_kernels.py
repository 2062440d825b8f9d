"""Triton kernels of the products that end chunk attention's backward pass: dQ, dK and dV.

They read what backward_kernels.py leaves: the weights P and the gradients dS of the scores.

Shapes: as there.
"""

import triton
import triton.language as tl

from litmegalodon.ops.chunk_attention.backward_kernels import origins, tile_of_queries
from litmegalodon.ops.chunk_attention.kernels import add_product, load_rows, store_rows


@triton.jit(do_not_specialize=["head", "chunk"])
def query_kernel(
    p_k,
    p_k_cache,
    p_high,
    p_low,
    p_first,
    p_last,
    p_position,
    p_dq,
    L,
    S,
    C,
    head,
    chunk,
    R,
    K,
    H: tl.constexpr,
    Z: tl.constexpr,
    CACHED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    GRID_M: tl.constexpr,
    GRID_N: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """dQ = dS K [B, L, H, z] of the rotated queries."""
    i_b = ((head + tl.program_id(1)) // H).to(tl.int64)
    i_h = (head + tl.program_id(1)) % H
    offset = (tl.load(p_position + i_b) % C).to(tl.int32)
    p_k += (i_b * L * H + i_h) * Z
    p_k_cache += (i_b * S * H + i_h) * Z
    p_dq += (i_b * L * H + i_h) * Z
    p_first += i_b * L
    p_last += i_b * L

    # The last tiles of a chunk have most keys: they go first.
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    i_chunk, first_m, first_n, begin, tile_end = tile_of_queries(
        i_tile, p_first, chunk, L, C, R, offset, GRID_M, GRID_N, M
    )
    chunks = tl.num_programs(0) // (R // M)
    o_chunk = (tl.program_id(1) * chunks + i_chunk).to(tl.int64) * R * K
    p_high += o_chunk
    p_low += o_chunk
    o_z = tl.arange(0, BLOCK_Z)
    now = tl.maximum(begin, offset)
    while now < tile_end:
        lower = tl.load(p_first + (now - offset))
        upper = tl.minimum(tl.load(p_last + (now - offset)), tile_end)
        o_m = now + tl.arange(0, M)
        m_m = o_m < upper
        o_row = (o_m - first_m) * K
        first_column = (lower - first_n) // N * N
        b_dq = tl.zeros((M, BLOCK_Z), ACC)
        for column in range(first_column, upper - first_n, N):
            o_column = tl.multiple_of(column, N) + tl.arange(0, N)
            o_tile = o_row[:, None] + o_column[None, :]
            # M x N
            b_high = tl.load(p_high + o_tile, mask=m_m[:, None], other=0.0)
            # N x z
            b_k = load_rows(
                p_k, p_k_cache, first_n + column, upper, offset, o_z, H * Z, Z, N, BLOCK_Z, CACHED,
                lower,
            )  # fmt: skip
            b_dq = add_product(b_dq, b_high, b_k, PRECISION)
            if b_high.dtype == tl.bfloat16:
                b_low = tl.load(p_low + o_tile, mask=m_m[:, None], other=0.0)
                b_dq = add_product(b_dq, b_low, b_k, PRECISION)
        store_rows(p_dq, p_dq, b_dq, now, upper, offset, o_z, H * Z, Z, M, False)
        now = upper


@triton.jit(do_not_specialize=["head", "chunk"])
def key_kernel(
    p_x,
    p_low,
    p_y,
    p_first,
    p_last,
    p_position,
    p_out,
    p_out_cache,
    L,
    S,
    C,
    head,
    chunk,
    R,
    K,
    H: tl.constexpr,
    E: tl.constexpr,
    SPLIT: tl.constexpr,
    CACHED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    GRID_M: tl.constexpr,
    GRID_N: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    """X^T Y, W of its E columns a program: dK = dS^T Q (SPLIT: X in two parts) or dV = P^T dO.

    Y [B, L, H, E] has a row for each query; the result [B, L, H, E] one for each key, and
    [B, S, H, E] for each slot of the cache that was seen.
    """
    i_slice = tl.program_id(1)
    i_b = ((head + tl.program_id(2)) // H).to(tl.int64)
    i_h = (head + tl.program_id(2)) % H
    i_chunk = tl.program_id(0) // (K // N)
    offset = (tl.load(p_position + i_b) % C).to(tl.int32)
    p_y += (i_b * L * H + i_h) * E
    p_out += (i_b * L * H + i_h) * E
    p_out_cache += (i_b * S * H + i_h) * E
    p_first += i_b * L
    p_last += i_b * L

    # No query sees a place before the first token's first.
    earliest = tl.load(p_first)
    first_m, first_n = origins(chunk + i_chunk, C, offset, earliest, GRID_M, GRID_N)
    column = tl.program_id(0) % (K // N) * N
    begin = first_n + column
    tile_end = tl.minimum(tl.minimum(begin + N, (chunk + i_chunk + 1) * C), offset + L)
    chunks = tl.num_programs(0) // (K // N)
    o_chunk = (tl.program_id(2) * chunks + i_chunk).to(tl.int64) * R * K
    p_x += o_chunk
    p_low += o_chunk
    o_column = column + tl.arange(0, N)
    o_w = i_slice * W + tl.arange(0, W)
    now = tl.maximum(begin, earliest)
    while now < tile_end:
        i_first = tl.maximum(now - offset, 0)
        last = tl.load(p_last + i_first)
        upper = tl.minimum(last, tile_end)
        b_acc = tl.zeros((N, W), ACC)
        for m in range(offset + i_first, last, M):
            o_m = m + tl.arange(0, M)
            m_m = o_m < last
            o_tile = ((o_m - first_m) * K)[:, None] + o_column[None, :]
            # M x N, M x W
            b_x = tl.load(p_x + o_tile, mask=m_m[:, None], other=0.0)
            b_y = load_rows(p_y, p_y, m, last, offset, o_w, H * E, E, M, W, False)
            b_acc = add_product(b_acc, tl.trans(b_x), b_y, PRECISION)
            if SPLIT:
                b_low = tl.load(p_low + o_tile, mask=m_m[:, None], other=0.0)
                b_acc = add_product(b_acc, tl.trans(b_low), b_y, PRECISION)
        store_rows(p_out, p_out_cache, b_acc, begin, upper, offset, o_w, H * E, E, N, CACHED, now)
        now = upper
