"""CEMA's Triton kernels: time in segments of S tokens, a segment's tokens one after another.

In a segment a program keeps the N states of BLOCK_D channels in registers and walks over the
tokens. With u = h / p, so that the input needs no weight, G = p g and x_0, x_1 the next two tokens,

    y_0 = Re sum_n G q u + t_0 x_0       y_1 = Re sum_n G q^2 u + t_1 x_0 + t_0 x_1
    u  <- q^2 u + q x_0 + x_1            t_0 = Re sum_n G + omega,  t_1 = Re sum_n G q

costs 5 multiply-adds a state and token where one token after another costs 6 (the end states alone,
four tokens at a time: 2.5 where it costs 4). The powers that multiply a state are rounded once.

The gradient of x is the transposed recurrence from the last token to the first. With w the
conjugate of the gradient of the previous u and d_0, d_1 the output's gradients in that order,

    dx_0 = Re sum_n w + t_0 d_0          dx_1 = Re sum_n q w + t_1 d_0 + t_0 d_1
    w   <- q^2 w + q^2 G d_0 + q G d_1

the same numbers with input and output weights exchanged. What G and q get is summed forward in
time, with s = du/dq (s <- q s + u, then u <- q u + x): d_G = sum dy u, d_q = sum dy G s + w s_end,
where s begins at zero in each segment and w is what enters it from the right. Nothing is divided
by q, whose powers vanish.

Groups of UNROLL tokens in which no document begins are worked on at once, others token by token;
a state is forgotten by a select.

Shapes: B batch, L length, D channels, N order (BLOCK_N: padded), J segments, S tokens a segment.
Complex numbers are pairs of planes (re, im). Small arrays keep D last: [..., 2, BLOCK_N, D].
"""

import triton
import triton.language as tl


@triton.jit
def _channels(D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """A program's channels [BLOCK_D], which exist, and both for its states [BLOCK_N, BLOCK_D]."""
    o_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    # A hint that hides how channels lie in memory: N then stays inside a thread, which makes sums
    # over it plain additions, and a lane's loads are still next to its neighbour's.
    o_h = tl.max_contiguous(tl.minimum(o_d, D - 1), [1])
    o_nd = tl.arange(0, BLOCK_N)[:, None] * D + o_h[None, :]
    m_nd = (tl.arange(0, BLOCK_N)[:, None] >= 0) & m_d[None, :]
    return o_d, m_d, o_nd, m_nd


@triton.jit
def _is_whole(p_marks, i_b, t_0, L, UNROLL: tl.constexpr):
    """Whether the group from token t_0 on lies before the end and no document begins in it."""
    whole = t_0 + UNROLL <= L
    if p_marks is not None:
        whole = whole & (tl.load(p_marks + i_b * tl.cdiv(L, UNROLL) + t_0 // UNROLL) == 0)
    return whole


@triton.jit
def _resets_at(p_resets, i_t):
    """Whether a document begins at a token."""
    b_reset = tl.full((), 0, tl.int1)
    if p_resets is not None:
        b_reset = tl.load(p_resets + i_t) != 0
    return b_reset


@triton.jit
def _planes(p_table, row, o_nd, size):
    """Real and imaginary plane [BLOCK_N, BLOCK_D] of one row of a [rows, 2, BLOCK_N, D] table."""
    p_row = p_table + 2 * row * size + o_nd
    return tl.load(p_row), tl.load(p_row + size)


@triton.jit
def _real_sum(b_ar, b_ai, b_br, b_bi):
    """Re sum_n a b, [BLOCK_N, BLOCK_D] -> [BLOCK_D]."""
    # Two sums in a thread are two chains of multiply-adds; between lanes they are twice the work.
    if b_ar.shape[1] >= 32:
        b_sum = tl.sum(b_ar * b_br, 0) - tl.sum(b_ai * b_bi, 0)
    else:
        b_sum = tl.sum(b_ar * b_br - b_ai * b_bi, 0)
    return b_sum


@triton.jit
def _group(p_x, t_0, L, D, m_d, UNROLL: tl.constexpr, REVERSE: tl.constexpr):
    """UNROLL tokens [BLOCK_D] each from t_0 on, in the order of work; past either end any."""
    group = ()
    for i in tl.static_range(UNROLL):
        t = t_0 + (UNROLL - 1 - i if REVERSE else i)
        t = tl.maximum(tl.minimum(t, L - 1), 0).to(tl.int64)
        # Triton knows no unpacking.
        group = group + (tl.load(p_x + t * D, mask=m_d, other=0.0),)  # noqa: RUF005
    return group


@triton.jit
def end_states_kernel(
    p_x,
    p_table,
    p_resets,
    p_marks,
    p_ends,
    L,
    D,
    J,
    S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The state u that a segment's own tokens leave at its end (REVERSE: at its first token).

    x [B, L, D] -> ends [B, J, 2, BLOCK_N, D]. The state of a document that ends in the segment is
    forgotten.
    """
    dtype: tl.constexpr = p_table.dtype.element_ty
    i_j, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_d, m_d, o_nd, m_nd = _channels(D, BLOCK_N, BLOCK_D)
    size = BLOCK_N * D

    # BLOCK_N x BLOCK_D, q to the power of 1 to 4; the state is multiplied by the one read.
    b_1r, b_1i = _planes(p_table, 0, o_nd, size)
    b_4r, b_4i = _planes(p_table, 2, o_nd, size)
    b_2r, b_2i = b_1r * b_1r - b_1i * b_1i, 2 * b_1r * b_1i
    b_3r, b_3i = b_1r * b_2r - b_1i * b_2i, b_1r * b_2i + b_1i * b_2r
    b_re = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    b_im = tl.zeros([BLOCK_N, BLOCK_D], dtype)

    p_row = p_x + i_b * L * D + o_d
    groups = tl.cdiv(tl.minimum(S, L - i_j * S), UNROLL)
    step: tl.constexpr = -UNROLL if REVERSE else UNROLL
    t_0 = i_j * S + ((groups - 1) * UNROLL if REVERSE else 0)
    b_next = _group(p_row, t_0, L, D, m_d, UNROLL, REVERSE)
    for _ in range(groups):
        b_x = b_next
        b_next = _group(p_row, t_0 + step, L, D, m_d, UNROLL, REVERSE)
        if _is_whole(p_marks, i_b, t_0, L, UNROLL):
            for i in tl.static_range(0, UNROLL, 4):
                b_0, b_1 = b_x[i].to(dtype)[None, :], b_x[i + 1].to(dtype)[None, :]
                b_2, b_3 = b_x[i + 2].to(dtype)[None, :], b_x[i + 3].to(dtype)[None, :]
                b_new = b_1r * b_2 + b_3 + b_2r * b_1 + b_3r * b_0 - b_4i * b_im + b_4r * b_re
                b_im = b_1i * b_2 + b_2i * b_1 + b_3i * b_0 + b_4i * b_re + b_4r * b_im
                b_re = b_new
        else:
            count = tl.minimum(UNROLL, L - t_0)
            for i in range(count):
                t = t_0 + (count - 1 - i if REVERSE else i)
                b_x0 = tl.load(p_row + t.to(tl.int64) * D, mask=m_d, other=0.0).to(dtype)
                b_reset = _resets_at(p_resets, i_b * L + t)
                if not REVERSE:
                    b_re = tl.where(b_reset, 0.0, b_re)
                    b_im = tl.where(b_reset, 0.0, b_im)
                b_new = b_1r * b_re - b_1i * b_im + b_x0[None, :]
                b_im = b_1r * b_im + b_1i * b_re
                b_re = b_new
                if REVERSE:
                    b_re = tl.where(b_reset, 0.0, b_re)
                    b_im = tl.where(b_reset, 0.0, b_im)
        t_0 += step

    p_end = p_ends + (i_b * J + i_j) * 2 * size + o_nd
    tl.store(p_end, b_re, mask=m_nd)
    tl.store(p_end + size, b_im, mask=m_nd)


@triton.jit
def scan_kernel(
    p_ends,
    p_table,
    p_state,
    p_resets,
    p_entering,
    p_last,
    D,
    N,
    J,
    BLOCK_N: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The state that enters each segment, carried from segment to segment in float64.

    Forward: h <- q^S h + p end where no document begins in the segment, else p end; what enters is
    stored as h / p. REVERSE: z, the conjugate of the gradient of h, likewise with q g for p; what
    enters is stored as p z.

    ends [B, J, 2, BLOCK_N, D], table float64 [4, 2, BLOCK_N, D] (q^S; the same of the last segment;
    weight of an end state; weight of what is stored), state [B, D, N, 2], resets bool [B, J] ->
    entering like ends, last [B, D, N, 2].
    """
    dtype: tl.constexpr = p_ends.dtype.element_ty
    i_b = tl.program_id(1).to(tl.int64)
    size = BLOCK_N * D
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_n, o_d = o // D, o % D
    m = o < size
    m_state = m & (o_n < N)
    sign: tl.constexpr = -1.0 if REVERSE else 1.0

    # BLOCK
    b_sr = tl.load(p_table + o, mask=m, other=0.0)
    b_si = tl.load(p_table + size + o, mask=m, other=0.0)
    b_lr = tl.load(p_table + 2 * size + o, mask=m, other=0.0)
    b_li = tl.load(p_table + 3 * size + o, mask=m, other=0.0)
    b_wr = tl.load(p_table + 4 * size + o, mask=m, other=0.0)
    b_wi = tl.load(p_table + 5 * size + o, mask=m, other=0.0)
    b_out = tl.load(p_table + 6 * size + o, mask=m, other=0.0)
    b_re = tl.zeros([BLOCK], tl.float64)
    b_im = tl.zeros([BLOCK], tl.float64)
    o_state = ((i_b * D + o_d) * N + o_n) * 2
    if p_state is not None:
        b_re = tl.load(p_state + o_state, mask=m_state, other=0.0).to(tl.float64)
        b_im = sign * tl.load(p_state + o_state + 1, mask=m_state, other=0.0).to(tl.float64)

    for i in range(J):
        j = J - 1 - i if REVERSE else i
        o_j = (i_b * J + j) * 2 * size + o
        b_er = tl.load(p_ends + o_j, mask=m, other=0.0).to(tl.float64)
        b_ei = tl.load(p_ends + o_j + size, mask=m, other=0.0).to(tl.float64)
        tl.store(p_entering + o_j, (b_re * b_out).to(dtype), mask=m)
        tl.store(p_entering + o_j + size, (b_im * b_out).to(dtype), mask=m)
        b_qr = tl.where(j == J - 1, b_lr, b_sr)
        b_qi = tl.where(j == J - 1, b_li, b_si)
        b_new = b_qr * b_re - b_qi * b_im
        b_im = b_qr * b_im + b_qi * b_re
        b_re = b_new
        if p_resets is not None:
            b_reset = tl.load(p_resets + i_b * J + j) != 0
            b_re = tl.where(b_reset, 0.0, b_re)
            b_im = tl.where(b_reset, 0.0, b_im)
        b_re += b_wr * b_er - b_wi * b_ei
        b_im += b_wr * b_ei + b_wi * b_er

    tl.store(p_last + o_state, b_re.to(dtype), mask=m_state)
    tl.store(p_last + o_state + 1, (sign * b_im).to(dtype), mask=m_state)


@triton.jit
def emit_kernel(
    p_x,
    p_table,
    p_taps,
    p_entering,
    p_resets,
    p_marks,
    p_y,
    L,
    D,
    J,
    S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Outputs of a segment from its tokens and the state that enters it.

    x [B, L, D], entering [B, J, 2, BLOCK_N, D] -> y [B, L, D]; REVERSE: from the output's gradient
    to the input's.
    """
    dtype: tl.constexpr = p_table.dtype.element_ty
    i_j, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_d, m_d, o_nd, _ = _channels(D, BLOCK_N, BLOCK_D)
    size = BLOCK_N * D

    # BLOCK_N x BLOCK_D: q, q^2, q G, q^2 G
    b_1r, b_1i = _planes(p_table, 0, o_nd, size)
    b_2r, b_2i = _planes(p_table, 1, o_nd, size)
    b_g1r, b_g1i = _planes(p_table, 3, o_nd, size)
    b_g2r, b_g2i = b_1r * b_g1r - b_1i * b_g1i, b_1r * b_g1i + b_1i * b_g1r
    b_re, b_im = _planes(p_entering, i_b * J + i_j, o_nd, size)
    # BLOCK_D
    b_t0 = tl.load(p_taps + o_d, mask=m_d, other=0.0)
    b_t1 = tl.load(p_taps + D + o_d, mask=m_d, other=0.0)

    p_row = p_x + i_b * L * D + o_d
    p_out = p_y + i_b * L * D + o_d
    groups = tl.cdiv(tl.minimum(S, L - i_j * S), UNROLL)
    step: tl.constexpr = -UNROLL if REVERSE else UNROLL
    t_0 = i_j * S + ((groups - 1) * UNROLL if REVERSE else 0)
    b_next = _group(p_row, t_0, L, D, m_d, UNROLL, REVERSE)
    for _ in range(groups):
        b_x = b_next
        b_next = _group(p_row, t_0 + step, L, D, m_d, UNROLL, REVERSE)
        if _is_whole(p_marks, i_b, t_0, L, UNROLL):
            for i in tl.static_range(0, UNROLL, 2):
                b_x0, b_x1 = b_x[i].to(dtype), b_x[i + 1].to(dtype)
                b_y0, b_y1 = b_t0 * b_x0, b_t1 * b_x0 + b_t0 * b_x1
                b_0, b_1 = b_x0[None, :], b_x1[None, :]
                if REVERSE:
                    b_y0 += tl.sum(b_re, 0)
                    b_y1 += _real_sum(b_1r, b_1i, b_re, b_im)
                    b_new = b_g1r * b_1 + b_g2r * b_0 - b_2i * b_im + b_2r * b_re
                    b_im = b_g1i * b_1 + b_g2i * b_0 + b_2i * b_re + b_2r * b_im
                else:
                    b_y0 += _real_sum(b_g1r, b_g1i, b_re, b_im)
                    b_y1 += _real_sum(b_g2r, b_g2i, b_re, b_im)
                    b_new = b_1r * b_0 + b_1 - b_2i * b_im + b_2r * b_re
                    b_im = b_1i * b_0 + b_2i * b_re + b_2r * b_im
                b_re = b_new
                t = (t_0 + (UNROLL - 1 - i if REVERSE else i)).to(tl.int64)
                tl.store(p_out + t * D, b_y0, mask=m_d)
                tl.store(p_out + (t - 1 if REVERSE else t + 1) * D, b_y1, mask=m_d)
        else:
            count = tl.minimum(UNROLL, L - t_0)
            for i in range(count):
                t = t_0 + (count - 1 - i if REVERSE else i)
                b_x0 = tl.load(p_row + t.to(tl.int64) * D, mask=m_d, other=0.0).to(dtype)
                b_reset = _resets_at(p_resets, i_b * L + t)
                if REVERSE:
                    b_y = b_t0 * b_x0 + tl.sum(b_re, 0)
                    b_new = b_g1r * b_x0[None, :] - b_1i * b_im + b_1r * b_re
                    b_im = b_g1i * b_x0[None, :] + b_1i * b_re + b_1r * b_im
                    b_re = tl.where(b_reset, 0.0, b_new)
                    b_im = tl.where(b_reset, 0.0, b_im)
                else:
                    b_re = tl.where(b_reset, 0.0, b_re)
                    b_im = tl.where(b_reset, 0.0, b_im)
                    b_y = b_t0 * b_x0 + _real_sum(b_g1r, b_g1i, b_re, b_im)
                    b_new = b_x0[None, :] - b_1i * b_im + b_1r * b_re
                    b_im = b_1i * b_re + b_1r * b_im
                    b_re = b_new
                tl.store(p_out + t.to(tl.int64) * D, b_y, mask=m_d)
        t_0 += step
