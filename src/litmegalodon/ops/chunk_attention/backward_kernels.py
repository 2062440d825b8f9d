"""Triton kernels of chunk attention's backward pass, on the line of places of kernels.py.

With weights P = exp(Q K^T - lse), output O = P V and its cotangent dO:

    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - delta),  delta_i = sum_j P_ij dP_ij,
    dQ = dS K,     dK = dS^T Q.

v is so much wider than q and k that dP is most of the work: it and the scores are made once, by
`weights_kernel`, which leaves P and X = P * (dP - d) of some chunks in memory. d_i = sum_e dO_ie
O_ie is delta but for the rounding of O, an error that all of a row's keys would share; the row's
sum of X is what is missing, and `finish_kernel` makes dS = X - (sum X) P of it, in place. The
gradients are then plain products. In bfloat16 X and dS are the sum of two: rounded to one, dS would
cost dQ and dK more than the whole pass may. DropKey's pairs have P = X = 0 and need nothing more.
Every gradient has one owner that adds it up in a fixed order: two runs give the same bits.

P and X are [heads of all rows, chunks, R, K]: in its chunk a query stands at its place less the
chunk's first query, a key likewise, both origins on a grid of GRID_M x GRID_N (`origins`) so that
tiles are aligned. A query's row of a tile of the grid is written whole, zeros where a key is not
seen, if some key of the tile is of its document and not after its tile of queries; else it is not
written. So an owner of queries or keys, whose tiles divide the grid's and which goes over documents
as in kernels.py, may read whole tiles: in the rows of a document nothing is unwritten, and the keys
of others have weight 0 there and are loaded as 0. A launch works on a part of the heads, numbered
b H + h, from `head` on, and of the chunks, from `chunk` on.

Shapes: as in kernels.py; R queries and K keys of a chunk, rounded up to tiles.
"""

import triton
import triton.language as tl

from litmegalodon.ops.chunk_attention.kernels import (
    add_product,
    kept,
    load_rows,
    stream,
)


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
    """d [B, H, L] = sum over e of out * d_out."""
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
def store_split(p_high, p_low, o_tile, b_x, mask):
    """Leave X as its rounding and, in bfloat16, what that leaves."""
    b_high = b_x.to(p_high.dtype.element_ty)
    tl.store(p_high + o_tile, b_high, mask=mask)
    if p_high.dtype.element_ty == tl.bfloat16:
        b_low = (b_x - b_high.to(b_x.dtype)).to(tl.bfloat16)
        tl.store(p_low + o_tile, b_low, mask=mask)


@triton.jit
def load_split(p_high, p_low, o_tile, mask, ACC: tl.constexpr):
    """The inverse of store_split."""
    b_x = tl.load(p_high + o_tile, mask=mask, other=0.0).to(ACC)
    if p_high.dtype.element_ty == tl.bfloat16:
        b_x += tl.load(p_low + o_tile, mask=mask, other=0.0).to(ACC)
    return b_x


@triton.jit
def origins(chunk, C, offset, earliest, GRID_M: tl.constexpr, GRID_N: tl.constexpr):
    """Places of row 0 and column 0 of a chunk's P and X."""
    begin = chunk * C
    first_m = tl.maximum(begin, offset // GRID_M * GRID_M)
    first_n = tl.maximum(begin, earliest // GRID_N * GRID_N)
    return first_m, first_n


@triton.jit
def tile_of_queries(
    i_tile,
    p_first,
    chunk,
    L,
    C,
    R,
    offset,
    GRID_M: tl.constexpr,
    GRID_N: tl.constexpr,
    M: tl.constexpr,
):
    """A tile of M queries of a part: its chunk in it, the chunk's origins, its places."""
    i_chunk = i_tile // (R // M)
    first_m, first_n = origins(chunk + i_chunk, C, offset, tl.load(p_first), GRID_M, GRID_N)
    begin = first_m + i_tile % (R // M) * M
    end = tl.minimum(tl.minimum(begin + M, (chunk + i_chunk + 1) * C), offset + L)
    return i_chunk, first_m, first_n, begin, end


@triton.jit
def row_products(
    p_a,
    p_b,
    p_b_cache,
    m,
    end_m,
    n,
    end_n,
    lower_n,
    offset,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    CACHED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    """A B^T of M rows of A from place m and N of B from place n, W of their columns at a time."""
    b_product = tl.zeros((M, N), ACC)
    for w in range(0, WIDTH, W):
        o_w = w + tl.arange(0, W)
        # M x W, N x W
        b_a = load_rows(p_a, p_a, m, end_m, offset, o_w, H * WIDTH, WIDTH, M, W, False)
        b_b = load_rows(
            p_b, p_b_cache, n, end_n, offset, o_w, H * WIDTH, WIDTH, N, W, CACHED, lower_n
        )
        b_product = add_product(b_product, b_a, tl.trans(b_b), PRECISION)
    return b_product


@triton.jit(do_not_specialize=["seed", "threshold", "head", "chunk"])
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
    p_high,
    p_low,
    L,
    S,
    C,
    seed,
    threshold,
    head,
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
    GRID_M: tl.constexpr,
    GRID_N: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
):
    """P and X of tiles of M = GRID_M queries and N keys, heads from `head`, chunks from `chunk`."""
    i_b = ((head + tl.program_id(2)) // H).to(tl.int64)
    i_h = (head + tl.program_id(2)) % H
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

    i_chunk, first_m, first_n, begin, tile_end = tile_of_queries(
        tl.program_id(1), p_first, chunk, L, C, R, offset, GRID_M, GRID_N, M
    )
    n = first_n + tl.program_id(0) * N
    grid_n = first_n + tl.program_id(0) * N // GRID_N * GRID_N
    chunks = tl.num_programs(1) // (R // M)
    o_chunk = (tl.program_id(2) * chunks + i_chunk).to(tl.int64) * R * K
    p_weight += o_chunk
    p_high += o_chunk
    p_low += o_chunk
    o_column = tl.program_id(0) * N + tl.arange(0, N)
    o_n = n + tl.arange(0, N)
    now = tl.maximum(begin, offset)
    while now < tile_end:
        lower = tl.load(p_first + (now - offset))
        upper = tl.minimum(tl.load(p_last + (now - offset)), tile_end)
        if (grid_n < upper) & (grid_n + GRID_N > lower):
            o_m = now + tl.arange(0, M)
            m_m = o_m < upper
            b_s = row_products(
                p_q, p_k, p_k_cache, now, upper, n, upper, lower, offset,
                H, Z, CACHED, ACC, PRECISION, M, N, W,
            )  # fmt: skip
            b_lse = tl.load(p_lse + (o_m - offset), mask=m_m, other=float("inf"))
            seen = (o_n[None, :] <= o_m[:, None]) & (o_n >= lower)[None, :]
            if DROP:
                h = stream(seed, i_b, position // C + now // C, i_h)
                seen &= kept(h, (o_m % C)[:, None], (o_n % C)[None, :], threshold)
            b_p = tl.where(seen, tl.exp(b_s - b_lse[:, None]), 0.0)
            o_row = (o_m - first_m) * K
            tl.store(
                p_weight + o_row[:, None] + o_column[None, :],
                b_p.to(p_weight.dtype.element_ty),
                mask=m_m[:, None],
            )
            b_dp = row_products(
                p_d_out, p_v, p_v_cache, now, upper, n, upper, lower, offset,
                H, E, CACHED, ACC, PRECISION, M, N, W,
            )  # fmt: skip
            b_delta = tl.load(p_delta + (o_m - offset), mask=m_m, other=0.0)
            b_x = tl.where(b_p == 0, 0.0, b_p * (b_dp - b_delta[:, None]))
            o_tile = o_row[:, None] + o_column[None, :]
            store_split(p_high, p_low, o_tile, b_x, m_m[:, None])
        now = upper


@triton.jit(do_not_specialize=["head", "chunk"])
def finish_kernel(
    p_weight,
    p_high,
    p_low,
    p_first,
    p_last,
    p_position,
    L,
    C,
    head,
    chunk,
    R,
    K,
    H: tl.constexpr,
    ACC: tl.constexpr,
    GRID_M: tl.constexpr,
    GRID_N: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """dS in the place of X, M queries a program."""
    i_b = ((head + tl.program_id(1)) // H).to(tl.int64)
    offset = (tl.load(p_position + i_b) % C).to(tl.int32)
    p_first += i_b * L
    p_last += i_b * L

    i_chunk, first_m, first_n, begin, tile_end = tile_of_queries(
        tl.program_id(0), p_first, chunk, L, C, R, offset, GRID_M, GRID_N, M
    )
    chunks = tl.num_programs(0) // (R // M)
    o_chunk = (tl.program_id(1) * chunks + i_chunk).to(tl.int64) * R * K
    p_weight += o_chunk
    p_high += o_chunk
    p_low += o_chunk
    now = tl.maximum(begin, offset)
    while now < tile_end:
        lower = tl.load(p_first + (now - offset))
        upper = tl.minimum(tl.load(p_last + (now - offset)), tile_end)
        o_m = now + tl.arange(0, M)
        mask = (o_m < upper)[:, None]
        o_row = (o_m - first_m) * K
        first_column = (lower - first_n) // N * N
        b_sum = tl.zeros((M, N), ACC)
        for column in range(first_column, upper - first_n, N):
            o_column = tl.multiple_of(column, N) + tl.arange(0, N)
            # M x N
            b_sum += load_split(p_high, p_low, o_row[:, None] + o_column[None, :], mask, ACC)
        b_rest = tl.sum(b_sum, 1)
        for column in range(first_column, upper - first_n, N):
            o_column = tl.multiple_of(column, N) + tl.arange(0, N)
            o_tile = o_row[:, None] + o_column[None, :]
            # M x N
            b_x = load_split(p_high, p_low, o_tile, mask, ACC)
            b_p = tl.load(p_weight + o_tile, mask=mask, other=0.0).to(ACC)
            # Where P is 0 nothing may come in from a key that is not finite.
            b_ds = tl.where(b_p == 0, 0.0, b_x - b_rest[:, None] * b_p)
            store_split(p_high, p_low, o_tile, b_ds, mask)
        now = upper
