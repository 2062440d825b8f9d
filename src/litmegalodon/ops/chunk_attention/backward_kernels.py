"""Triton kernels of chunk attention's backward pass, on the line of places of kernels.py.

With weights P = exp(Q K^T - lse), output O = P V and its cotangent dO:

    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - delta),  delta_i = sum_e dO_ie O_ie,
    dQ = dS K,     dK = dS^T Q.

Weights are made again from the scores in every kernel; DropKey's pairs have P = 0 and so need
nothing more. A gradient has one owner that adds it up in a fixed order: two runs give the same
bits. Keys' tiles go over documents as queries' tiles do (kernels.py): an owner of keys loads only
queries of its document, from its own first key to `last`.

Shapes: as in kernels.py.
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
        mask = m_t[:, None] & (o_w < E)[None, :]
        # T x W
        b_out = tl.load(p_out + o_row[:, None] + o_w[None, :], mask=mask, other=0.0).to(ACC)
        b_d = tl.load(p_d_out + o_row[:, None] + o_w[None, :], mask=mask, other=0.0).to(ACC)
        b_delta += tl.sum(b_out * b_d, 1)
    tl.store(p_delta + (i_b * H + i_h) * L + o_t, b_delta, mask=m_t)


@triton.jit
def query_kernel(
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
    p_dq,
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
    """dQ [B, L, H, z] of the rotated queries."""
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    i_b = (tl.program_id(1) // H).to(tl.int64)
    i_h = tl.program_id(1) % H
    position = tl.load(p_position + i_b)
    offset = (position % C).to(tl.int32)
    p_q += (i_b * L * H + i_h) * Z
    p_k += (i_b * L * H + i_h) * Z
    p_dq += (i_b * L * H + i_h) * Z
    p_v += (i_b * L * H + i_h) * E
    p_d_out += (i_b * L * H + i_h) * E
    p_k_cache += (i_b * S * H + i_h) * Z
    p_v_cache += (i_b * S * H + i_h) * E
    p_first += i_b * L
    p_last += i_b * L
    p_lse += (i_b * H + i_h) * L
    p_delta += (i_b * H + i_h) * L

    begin = (offset // M + i_tile) * M
    tile_end = tl.minimum(begin + M, offset + L)
    o_z = tl.arange(0, BLOCK_Z)
    now = tl.maximum(begin, offset)
    while now < tile_end:
        lower = tl.load(p_first + (now - offset))
        upper = tl.minimum(tl.load(p_last + (now - offset)), tile_end)
        o_m = now + tl.arange(0, M)
        m_m = o_m < upper
        # M x z
        b_q = load_rows(p_q, p_q, now, upper, offset, o_z, H * Z, Z, M, BLOCK_Z, False)
        b_lse = tl.load(p_lse + (o_m - offset), mask=m_m, other=float("inf"))
        b_delta = tl.load(p_delta + (o_m - offset), mask=m_m, other=0.0)
        if DROP:
            h = stream(seed, i_b, position // C + now // C, i_h)
        b_dq = tl.zeros((M, BLOCK_Z), ACC)
        for n in range(lower, upper, N):
            b_dp = tl.zeros((M, N), ACC)
            for w in range(0, E, W):
                o_w = w + tl.arange(0, W)
                # M x W, N x W
                b_d = load_rows(p_d_out, p_d_out, now, upper, offset, o_w, H * E, E, M, W, False)
                b_v = load_rows(p_v, p_v_cache, n, upper, offset, o_w, H * E, E, N, W, CACHED)
                b_dp = tl.dot(b_d, tl.trans(b_v), b_dp, input_precision=PRECISION, out_dtype=ACC)
            # N x z
            b_k = load_rows(p_k, p_k_cache, n, upper, offset, o_z, H * Z, Z, N, BLOCK_Z, CACHED)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION, out_dtype=ACC)
            o_n = n + tl.arange(0, N)
            seen = o_n[None, :] <= o_m[:, None]
            if DROP:
                seen &= kept(h, (o_m % C)[:, None], (o_n % C)[None, :], threshold)
            b_p = tl.where(seen, tl.exp(b_s - b_lse[:, None]), 0.0)
            b_ds = b_p * (b_dp - b_delta[:, None])
            b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION, out_dtype=ACC)
        store_rows(p_dq, p_dq, b_dq, now, upper, offset, o_z, H * Z, Z, M, False)
        now = upper


@triton.jit
def key_kernel(
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
    p_dk,
    p_dk_cache,
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
    """dK [B, L, H, z] of the rotated keys and [B, S, H, z] of the cached ones that were seen."""
    i_tile = tl.program_id(0)
    i_b = (tl.program_id(1) // H).to(tl.int64)
    i_h = tl.program_id(1) % H
    position = tl.load(p_position + i_b)
    offset = (position % C).to(tl.int32)
    p_q += (i_b * L * H + i_h) * Z
    p_k += (i_b * L * H + i_h) * Z
    p_dk += (i_b * L * H + i_h) * Z
    p_v += (i_b * L * H + i_h) * E
    p_d_out += (i_b * L * H + i_h) * E
    p_k_cache += (i_b * S * H + i_h) * Z
    p_v_cache += (i_b * S * H + i_h) * E
    p_dk_cache += (i_b * S * H + i_h) * Z
    p_first += i_b * L
    p_last += i_b * L
    p_lse += (i_b * H + i_h) * L
    p_delta += (i_b * H + i_h) * L

    begin = i_tile * N if CACHED else (offset // N + i_tile) * N
    tile_end = tl.minimum(begin + N, offset + L)
    o_z = tl.arange(0, BLOCK_Z)
    # No query sees a place before the first token's first.
    now = tl.maximum(begin, tl.load(p_first))
    while now < tile_end:
        i_first = tl.maximum(now - offset, 0)
        last = tl.load(p_last + i_first)
        upper = tl.minimum(last, tile_end)
        o_n = now + tl.arange(0, N)
        # N x z
        b_k = load_rows(p_k, p_k_cache, now, upper, offset, o_z, H * Z, Z, N, BLOCK_Z, CACHED)
        if DROP:
            h = stream(seed, i_b, position // C + now // C, i_h)
        b_dk = tl.zeros((N, BLOCK_Z), ACC)
        for m in range(offset + i_first, last, M):
            o_m = m + tl.arange(0, M)
            m_m = o_m < last
            b_dp = tl.zeros((N, M), ACC)
            for w in range(0, E, W):
                o_w = w + tl.arange(0, W)
                # N x W, M x W
                b_v = load_rows(p_v, p_v_cache, now, upper, offset, o_w, H * E, E, N, W, CACHED)
                b_d = load_rows(p_d_out, p_d_out, m, last, offset, o_w, H * E, E, M, W, False)
                b_dp = tl.dot(b_v, tl.trans(b_d), b_dp, input_precision=PRECISION, out_dtype=ACC)
            # M x z
            b_q = load_rows(p_q, p_q, m, last, offset, o_z, H * Z, Z, M, BLOCK_Z, False)
            b_lse = tl.load(p_lse + (o_m - offset), mask=m_m, other=float("inf"))
            b_delta = tl.load(p_delta + (o_m - offset), mask=m_m, other=0.0)
            b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION, out_dtype=ACC)
            seen = o_n[:, None] <= o_m[None, :]
            if DROP:
                seen &= kept(h, (o_m % C)[None, :], (o_n % C)[:, None], threshold)
            b_p = tl.where(seen, tl.exp(b_s - b_lse[None, :]), 0.0)
            b_ds = b_p * (b_dp - b_delta[None, :])
            b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION, out_dtype=ACC)
        store_rows(p_dk, p_dk_cache, b_dk, now, upper, offset, o_z, H * Z, Z, N, CACHED)
        now = upper


@triton.jit
def value_kernel(
    p_q,
    p_k,
    p_k_cache,
    p_d_out,
    p_lse,
    p_first,
    p_last,
    p_position,
    p_dv,
    p_dv_cache,
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
    """dV [B, L, H, e] and [B, S, H, e] of the cached values that were seen, W columns a program."""
    i_tile = tl.program_id(0)
    i_slice = tl.program_id(1)
    i_b = (tl.program_id(2) // H).to(tl.int64)
    i_h = tl.program_id(2) % H
    position = tl.load(p_position + i_b)
    offset = (position % C).to(tl.int32)
    p_q += (i_b * L * H + i_h) * Z
    p_k += (i_b * L * H + i_h) * Z
    p_dv += (i_b * L * H + i_h) * E
    p_d_out += (i_b * L * H + i_h) * E
    p_k_cache += (i_b * S * H + i_h) * Z
    p_dv_cache += (i_b * S * H + i_h) * E
    p_first += i_b * L
    p_last += i_b * L
    p_lse += (i_b * H + i_h) * L

    begin = i_tile * N if CACHED else (offset // N + i_tile) * N
    tile_end = tl.minimum(begin + N, offset + L)
    o_z = tl.arange(0, BLOCK_Z)
    o_w = i_slice * W + tl.arange(0, W)
    now = tl.maximum(begin, tl.load(p_first))
    while now < tile_end:
        i_first = tl.maximum(now - offset, 0)
        last = tl.load(p_last + i_first)
        upper = tl.minimum(last, tile_end)
        o_n = now + tl.arange(0, N)
        # N x z
        b_k = load_rows(p_k, p_k_cache, now, upper, offset, o_z, H * Z, Z, N, BLOCK_Z, CACHED)
        if DROP:
            h = stream(seed, i_b, position // C + now // C, i_h)
        b_dv = tl.zeros((N, W), ACC)
        for m in range(offset + i_first, last, M):
            o_m = m + tl.arange(0, M)
            # M x z, M x W
            b_q = load_rows(p_q, p_q, m, last, offset, o_z, H * Z, Z, M, BLOCK_Z, False)
            b_d = load_rows(p_d_out, p_d_out, m, last, offset, o_w, H * E, E, M, W, False)
            b_lse = tl.load(p_lse + (o_m - offset), mask=o_m < last, other=float("inf"))
            b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION, out_dtype=ACC)
            seen = o_n[:, None] <= o_m[None, :]
            if DROP:
                seen &= kept(h, (o_m % C)[None, :], (o_n % C)[:, None], threshold)
            b_p = tl.where(seen, tl.exp(b_s - b_lse[None, :]), 0.0)
            b_dv = tl.dot(b_p.to(b_d.dtype), b_d, b_dv, input_precision=PRECISION, out_dtype=ACC)
        store_rows(p_dv, p_dv_cache, b_dv, now, upper, offset, o_w, H * E, E, N, CACHED)
        now = upper
