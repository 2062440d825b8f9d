"""Triton kernels of chunk attention's backward pass, on the line of places of kernels.py.

With weights P = exp(Q K^T - lse), output O = P V and its cotangent dO:

    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - delta),  delta_i = sum_e dO_ie O_ie,
    dQ = dS K,     dK = dS^T Q.

v is so much wider than q and k that dP is most of the work: it and the scores are made once, by
`weights_kernel`, which leaves P and dS of some chunks in memory; the three gradients are then plain
products. DropKey's pairs have P = dS = 0 there and need nothing more. Every gradient has one owner
that adds it up in a fixed order: two runs give the same bits.

P and dS are [rows, H, chunks, R, K]: in its chunk a query stands at its place less the chunk's
first query, a key likewise, both origins on a grid (`origins`) so that tiles are aligned. A row of
a tile is written whole, zeros where a key is not seen, by its own document, and only where some key
of the tile is of this document. So an owner of queries or keys, which goes over documents as in
kernels.py, may read whole tiles: among the rows of its document nothing is left unwritten, and keys
of others have weight 0 and are loaded as 0.

Shapes: as in kernels.py; R queries and K keys of a chunk, rounded up to tiles.
"""

import triton
import triton.language as tl

from litmegalodon.ops.chunk_attention.kernels import kept, load_rows, store_rows, stream


@triton.jit
def delta_kernel(
    p_out,
    p_d_out,
    p_delta,
    L,
    H: tl.constexpr,
    E: tl.constexpr,
    ACC: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """delta [B, H, L] = sum over e of out * d_out."""
    i_b = (tl.program_id(1) // H).to(tl.int64)
    i_h = tl.program_id(1) % H
    o_t = tl.program_id(0) * T + tl.arange(0, T)
    m_t = o_t < L
    o_row = ((i_b * L + o_t) * H + i_h) * E
    b_delta = tl.zeros((T,), ACC)
    for w in range(0, E, W):
        o_w = w + tl.arange(0, W)
        mask = m_t[:, None]
        if E % W != 0:
            mask &= (o_w < E)[None, :]
        # T x W
        b_out = tl.load(p_out + o_row[:, None] + o_w[None, :], mask=mask, other=0.0).to(ACC)
        b_d = tl.load(p_d_out + o_row[:, None] + o_w[None, :], mask=mask, other=0.0).to(ACC)
        b_delta += tl.sum(b_out * b_d, 1)
    tl.store(p_delta + (i_b * H + i_h) * L + o_t, b_delta, mask=m_t)


@triton.jit
def origins(chunk, C, offset, earliest, GRID_M: tl.constexpr, GRID_N: tl.constexpr):
    """Places of row 0 and column 0 of a chunk's P and dS."""
    begin = chunk * C
    first_m = tl.maximum(begin, offset // GRID_M * GRID_M)
    first_n = tl.maximum(begin, earliest // GRID_N * GRID_N)
    return first_m, first_n


@triton.jit
def weights_kernel(
    p_q,
    p_k,
    p_v,
    p_k_cache,
    p_v_cache,
    p_d_out,
    p_lse,
    p_delta,
    p_first,
    p_last,
    p_position,
    p_weight,
    p_ds,
    L,
    S,
    C,
    seed,
    threshold,
    row,
    chunk,
    R,
    K,
    H: tl.constexpr,
    Z: tl.constexpr,
    E: tl.constexpr,
    DROP: tl.constexpr,
    CACHED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    """P and dS of tiles of M queries and N keys, for rows from `row` and chunks from `chunk`."""
    i_b = (row + tl.program_id(2) // H).to(tl.int64)
    i_h = tl.program_id(2) % H
    i_chunk = tl.program_id(1) // (R // M)
    position = tl.load(p_position + i_b)
    offset = (position % C).to(tl.int32)
    p_q += (i_b * L * H + i_h) * Z
    p_k += (i_b * L * H + i_h) * Z
    p_v += (i_b * L * H + i_h) * E
    p_d_out += (i_b * L * H + i_h) * E
    p_k_cache += (i_b * S * H + i_h) * Z
    p_v_cache += (i_b * S * H + i_h) * E
    p_first += i_b * L
    p_last += i_b * L
    p_lse += (i_b * H + i_h) * L
    p_delta += (i_b * H + i_h) * L

    first_m, first_n = origins(chunk + i_chunk, C, offset, tl.load(p_first), M, N)
    begin = first_m + tl.program_id(1) % (R // M) * M
    n = first_n + tl.program_id(0) * N
    tile_end = tl.minimum(tl.minimum(begin + M, (chunk + i_chunk + 1) * C), offset + L)
    chunks = tl.num_programs(1) // (R // M)
    o_tile = ((tl.program_id(2) * chunks + i_chunk).to(tl.int64) * R - first_m) * K
    o_column = tl.program_id(0) * N + tl.arange(0, N)
    o_n = n + tl.arange(0, N)
    o_z = tl.arange(0, BLOCK_Z)
    now = tl.maximum(begin, offset)
    while now < tile_end:
        lower = tl.load(p_first + (now - offset))
        upper = tl.minimum(tl.load(p_last + (now - offset)), tile_end)
        if (n < upper) & (n + N > lower):
            o_m = now + tl.arange(0, M)
            m_m = o_m < upper
            b_dp = tl.zeros((M, N), ACC)
            for w in range(0, E, W):
                o_w = w + tl.arange(0, W)
                # M x W, N x W
                b_d = load_rows(p_d_out, p_d_out, now, upper, offset, o_w, H * E, E, M, W, False)
                b_v = load_rows(
                    p_v, p_v_cache, n, upper, offset, o_w, H * E, E, N, W, CACHED, lower
                )
                b_dp = tl.dot(b_d, tl.trans(b_v), b_dp, input_precision=PRECISION, out_dtype=ACC)
            # M x z, N x z
            b_q = load_rows(p_q, p_q, now, upper, offset, o_z, H * Z, Z, M, BLOCK_Z, False)
            b_k = load_rows(
                p_k, p_k_cache, n, upper, offset, o_z, H * Z, Z, N, BLOCK_Z, CACHED, lower
            )
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION, out_dtype=ACC)
            b_lse = tl.load(p_lse + (o_m - offset), mask=m_m, other=float("inf"))
            b_delta = tl.load(p_delta + (o_m - offset), mask=m_m, other=0.0)
            seen = (o_n[None, :] <= o_m[:, None]) & (o_n >= lower)[None, :]
            if DROP:
                h = stream(seed, i_b, position // C + now // C, i_h)
                seen &= kept(h, (o_m % C)[:, None], (o_n % C)[None, :], threshold)
            b_p = tl.where(seen, tl.exp(b_s - b_lse[:, None]), 0.0)
            b_ds = tl.where(seen, b_p * (b_dp - b_delta[:, None]), 0.0)
            o_row = o_tile + o_m.to(tl.int64) * K
            b_p = b_p.to(p_weight.dtype.element_ty)
            b_ds = b_ds.to(p_ds.dtype.element_ty)
            tl.store(p_weight + o_row[:, None] + o_column[None, :], b_p, mask=m_m[:, None])
            tl.store(p_ds + o_row[:, None] + o_column[None, :], b_ds, mask=m_m[:, None])
        now = upper


@triton.jit
def query_kernel(
    p_k,
    p_k_cache,
    p_ds,
    p_first,
    p_last,
    p_position,
    p_dq,
    L,
    S,
    C,
    row,
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
    # The last tiles of a chunk have most keys: they go first.
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    i_b = (row + tl.program_id(1) // H).to(tl.int64)
    i_h = tl.program_id(1) % H
    i_chunk = i_tile // (R // M)
    offset = (tl.load(p_position + i_b) % C).to(tl.int32)
    p_k += (i_b * L * H + i_h) * Z
    p_k_cache += (i_b * S * H + i_h) * Z
    p_dq += (i_b * L * H + i_h) * Z
    p_first += i_b * L
    p_last += i_b * L

    first_m, first_n = origins(chunk + i_chunk, C, offset, tl.load(p_first), GRID_M, GRID_N)
    begin = first_m + i_tile % (R // M) * M
    tile_end = tl.minimum(tl.minimum(begin + M, (chunk + i_chunk + 1) * C), offset + L)
    chunks = tl.num_programs(0) // (R // M)
    p_ds += ((tl.program_id(1) * chunks + i_chunk).to(tl.int64) * R - first_m) * K
    o_z = tl.arange(0, BLOCK_Z)
    now = tl.maximum(begin, offset)
    while now < tile_end:
        lower = tl.load(p_first + (now - offset))
        upper = tl.minimum(tl.load(p_last + (now - offset)), tile_end)
        o_m = now + tl.arange(0, M)
        b_dq = tl.zeros((M, BLOCK_Z), ACC)
        for column in range((lower - first_n) // N * N, upper - first_n, N):
            column = tl.multiple_of(column, N)
            o_column = column + tl.arange(0, N)
            p_row = p_ds + o_m.to(tl.int64) * K
            # M x N, N x z
            b_ds = tl.load(
                p_row[:, None] + o_column[None, :], mask=(o_m < upper)[:, None], other=0.0
            )
            b_k = load_rows(
                p_k, p_k_cache, first_n + column, upper, offset, o_z, H * Z, Z, N, BLOCK_Z, CACHED,
                lower,
            )  # fmt: skip
            b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION, out_dtype=ACC)
        store_rows(p_dq, p_dq, b_dq, now, upper, offset, o_z, H * Z, Z, M, False)
        now = upper


@triton.jit
def key_kernel(
    p_x,
    p_y,
    p_first,
    p_last,
    p_position,
    p_out,
    p_out_cache,
    L,
    S,
    C,
    row,
    chunk,
    R,
    K,
    H: tl.constexpr,
    E: tl.constexpr,
    CACHED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    GRID_M: tl.constexpr,
    GRID_N: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    """X^T Y, W of the E columns a program: dK = dS^T Q or dV = P^T dO.

    Y [B, L, H, E] has a row for each query; the result [B, L, H, E] one for each key, and
    [B, S, H, E] for each slot of the cache that was seen.
    """
    i_slice = tl.program_id(1)
    i_b = (row + tl.program_id(2) // H).to(tl.int64)
    i_h = tl.program_id(2) % H
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
    p_x += ((tl.program_id(2) * chunks + i_chunk).to(tl.int64) * R - first_m) * K
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
            p_row = p_x + o_m.to(tl.int64) * K
            # M x N, M x W
            b_x = tl.load(p_row[:, None] + o_column[None, :], mask=(o_m < last)[:, None], other=0.0)
            b_y = load_rows(p_y, p_y, m, last, offset, o_w, H * E, E, M, W, False)
            b_acc = tl.dot(tl.trans(b_x), b_y, b_acc, input_precision=PRECISION, out_dtype=ACC)
        store_rows(p_out, p_out_cache, b_acc, begin, upper, offset, o_w, H * E, E, N, CACHED, now)
        now = upper
