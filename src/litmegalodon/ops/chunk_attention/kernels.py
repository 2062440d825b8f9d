"""Triton kernels of chunk attention: rotation and the forward pass.

Each row of a batch is one line of *places*: place j < offset is slot j of the incoming cache, place
offset + t is token t of this call, with offset = position mod C. Chunks are [cC, (c + 1)C) on this
line. Two int32 arrays [B, L] say all there is to say about chunks, documents and the cache: a query
at token t sees the places first[t] .. offset + t, and its document (or chunk) ends before last[t].

A program owns a tile of places and goes over the documents in it one after another: it loads
nothing but this document's rows, other rows of the tile being zeros, and stores this document's
rows alone. So nothing that another document holds, NaN and inf included, is ever an operand of its
products. A tile inside one document, the common one, makes one round.

Shapes: B batch, L length, S slots of the cache, H heads, C chunk, z and e head sizes, M queries and
N keys of a tile, W columns of v in a tile.
"""

import triton
import triton.language as tl

from litmegalodon.ops.launch import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
# Values of CACHED beside 0, no incoming cache: each row's address is chosen from the two possible
# ones, or both sides are read and written under masks. The first takes fewer registers; AMD's
# compiler knows no choice between two base pointers.
CHOSEN = tl.constexpr(1)
APART = tl.constexpr(2)


@triton.jit
def _mix(h):
    h = h ^ (h >> 16)
    h = h * 0x7FEB352D
    h = h ^ (h >> 15)
    h = h * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def _absorb(h, value):
    return _mix(h + value.to(tl.uint32) * 0x9E3779B1 + 1)


@triton.jit
def stream(seed, i_b, i_chunk, i_h):
    """DropKey's counter after (seed, row, chunk, head): see dropkey.py, in uint32 arithmetic."""
    h = seed.to(tl.uint32, bitcast=True)
    return _absorb(_absorb(_absorb(h, i_b), i_chunk), i_h)


@triton.jit
def kept(h, o_query, o_key, threshold):
    """bool, broadcast from places in the chunk: the pairs that DropKey leaves."""
    return _absorb(_absorb(h, o_query), o_key) >= threshold.to(tl.uint32, bitcast=True)


@triton.jit
def add_product(b_sum, b_a, b_b, PRECISION: tl.constexpr):
    """b_sum + A B on tensor cores."""
    if _INTERPRETED:
        # The interpreter multiplies bfloat16 as the integers of its bits.
        b_a, b_b = b_a.to(b_sum.dtype), b_b.to(b_sum.dtype)
    return tl.dot(b_a, b_b, b_sum, input_precision=PRECISION, out_dtype=b_sum.dtype)


@triton.jit
def _rows(
    p_tokens,
    p_cache,
    begin,
    end,
    lower,
    offset,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    CACHED: tl.constexpr,
):
    """Addresses of the places begin, begin + 1, ... among the tokens and among the cache's slots,
    which are slots, and which are before `end` and not before `lower`.

    CHOSEN: the first addresses are those of slots too.
    """
    place = begin + tl.arange(0, ROWS)
    p_row = p_tokens + (place - offset).to(tl.int64) * STRIDE
    p_slot = p_cache + place.to(tl.int64) * STRIDE
    m_slot = place < offset
    if CACHED == CHOSEN:
        p_row = tl.where(m_slot, p_slot, p_row)
    m_row = place < end
    if lower is not None:
        m_row &= place >= lower
    return p_row[:, None], p_slot[:, None], m_slot[:, None], m_row[:, None]


@triton.jit
def load_rows(
    p_tokens,
    p_cache,
    begin,
    end,
    offset,
    o_column,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CACHED: tl.constexpr,
    lower=None,
):
    """ROWS x COLUMNS of the places begin, begin + 1, ...: zeros from `end` on, before `lower` too.

    Addresses are made from `begin` in every round: hoisted out of a loop they would take a third of
    the registers.
    """
    p_row, p_slot, m_slot, mask = _rows(
        p_tokens, p_cache, begin, end, lower, offset, STRIDE, ROWS, CACHED
    )
    if WIDTH % COLUMNS != 0:
        mask &= (o_column < WIDTH)[None, :]
    if CACHED == APART:
        b_slots = tl.load(p_slot + o_column[None, :], mask=mask & m_slot, other=0.0)
        b_rows = tl.load(p_row + o_column[None, :], mask=mask & ~m_slot, other=0.0)
        b_rows = tl.where(m_slot, b_slots, b_rows)
    else:
        b_rows = tl.load(p_row + o_column[None, :], mask=mask, other=0.0)
    return b_rows


@triton.jit
def store_rows(
    p_tokens,
    p_cache,
    b_rows,
    begin,
    end,
    offset,
    o_column,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CACHED: tl.constexpr,
    lower=None,
):
    """The inverse of load_rows."""
    p_row, p_slot, m_slot, m_row = _rows(
        p_tokens, p_cache, begin, end, lower, offset, STRIDE, ROWS, CACHED
    )
    mask = m_row & (o_column < WIDTH)[None, :]
    b_rows = b_rows.to(p_tokens.dtype.element_ty)
    if CACHED == APART:
        tl.store(p_slot + o_column[None, :], b_rows, mask=mask & m_slot)
        mask &= ~m_slot
    tl.store(p_row + o_column[None, :], b_rows, mask=mask)


@triton.jit
def rotate_kernel(
    p_x,
    p_y,
    p_table,
    p_position,
    L,
    C,
    H: tl.constexpr,
    Z: tl.constexpr,
    SIGN: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    T: tl.constexpr,
):
    """y = x rotated by its place in the chunk (SIGN 1) or back (-1); x, y [B, L, H, z]."""
    i_b = tl.program_id(1).to(tl.int64)
    o_t = tl.program_id(0) * T + tl.arange(0, T)
    o_z = tl.arange(0, BLOCK_Z)
    m_t = o_t < L
    place = ((tl.load(p_position + i_b) + o_t) % C).to(tl.int32)
    mask = m_t[:, None] & (o_z < Z)[None, :]
    # T x z, cosines and sines in turn
    b_table = tl.load(p_table + place[:, None] * Z + o_z[None, :], mask=mask, other=0.0)
    b_cos, b_sin = tl.split(tl.reshape(b_table, (T, BLOCK_Z // 2, 2)))
    b_sin = b_sin * SIGN
    for i_h in range(H):
        o_x = (i_b * L + o_t)[:, None] * (H * Z) + i_h * Z + o_z[None, :]
        # T x z
        b_x = tl.load(p_x + o_x, mask=mask, other=0.0).to(ACC)
        b_re, b_im = tl.split(tl.reshape(b_x, (T, BLOCK_Z // 2, 2)))
        b_y = tl.join(b_re * b_cos - b_im * b_sin, b_re * b_sin + b_im * b_cos)
        b_y = tl.reshape(b_y, (T, BLOCK_Z))
        tl.store(p_y + o_x, b_y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed", "threshold"])
def forward_kernel(
    p_q,
    p_k,
    p_v,
    p_k_cache,
    p_v_cache,
    p_first,
    p_last,
    p_position,
    p_out,
    p_lse,
    L,
    S,
    C,
    seed,
    threshold,
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
    """out [B, L, H, e] and, by the first slice of columns, the log-sum-exp [B, H, L]."""
    # The last tiles of a chunk have most keys: they go first.
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    i_slice = tl.program_id(1)
    i_b = (tl.program_id(2) // H).to(tl.int64)
    i_h = tl.program_id(2) % H
    position = tl.load(p_position + i_b)
    offset = (position % C).to(tl.int32)
    p_q += (i_b * L * H + i_h) * Z
    p_k += (i_b * L * H + i_h) * Z
    p_v += (i_b * L * H + i_h) * E
    p_out += (i_b * L * H + i_h) * E
    p_k_cache += (i_b * S * H + i_h) * Z
    p_v_cache += (i_b * S * H + i_h) * E
    p_first += i_b * L
    p_last += i_b * L
    p_lse += (i_b * H + i_h) * L

    begin = (offset // M + i_tile) * M
    tile_end = tl.minimum(begin + M, offset + L)
    o_w = i_slice * W + tl.arange(0, W)
    o_z = tl.arange(0, BLOCK_Z)
    now = tl.maximum(begin, offset)
    while now < tile_end:
        lower = tl.load(p_first + (now - offset))
        upper = tl.minimum(tl.load(p_last + (now - offset)), tile_end)
        o_m = now + tl.arange(0, M)
        # M x z
        b_q = load_rows(p_q, p_q, now, upper, offset, o_z, H * Z, Z, M, BLOCK_Z, False)
        if DROP:
            h = stream(seed, i_b, position // C + now // C, i_h)
        b_max = tl.full((M,), float("-inf"), ACC)
        b_sum = tl.zeros((M,), ACC)
        b_acc = tl.zeros((M, W), ACC)
        for n in range(lower, upper, N):
            # N x z, N x W
            b_k = load_rows(p_k, p_k_cache, n, upper, offset, o_z, H * Z, Z, N, BLOCK_Z, CACHED)
            b_v = load_rows(p_v, p_v_cache, n, upper, offset, o_w, H * E, E, N, W, CACHED)
            b_s = add_product(tl.zeros((M, N), ACC), b_q, tl.trans(b_k), PRECISION)
            o_n = n + tl.arange(0, N)
            seen = o_n[None, :] <= o_m[:, None]
            if DROP:
                seen &= kept(h, (o_m % C)[:, None], (o_n % C)[None, :], threshold)
            b_s = tl.where(seen, b_s, float("-inf"))
            b_new = tl.maximum(b_max, tl.max(b_s, 1))
            # A row that has seen nothing yet stays at sum 0.
            b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
            b_p = tl.exp(b_s - b_shift[:, None])
            b_scale = tl.exp(b_max - b_shift)
            b_sum = b_sum * b_scale + tl.sum(b_p, 1)
            b_acc = b_acc * b_scale[:, None]
            b_acc = add_product(b_acc, b_p.to(b_v.dtype), b_v, PRECISION)
            b_max = b_new
        # A row whose every key is dropped gives 0.
        empty = b_sum == 0
        b_sum = tl.where(empty, 1.0, b_sum)
        b_acc = b_acc / b_sum[:, None]
        store_rows(p_out, p_out, b_acc, now, upper, offset, o_w, H * E, E, M, False)
        if i_slice == 0:
            # +inf: every weight of such a row is exp(score - inf) = 0 in the backward pass too.
            b_lse = tl.where(empty, float("inf"), b_max + tl.log(b_sum))
            tl.store(p_lse + (o_m - offset), b_lse, mask=o_m < upper)
        now = upper
