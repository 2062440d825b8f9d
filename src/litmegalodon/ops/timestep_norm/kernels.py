"""TimestepNorm's Triton kernels: time in segments, statistics of 1 / d of the data in float64.

An item is a token, or a segment of tokens, with its weight w (number of tokens), mean m and
variance v. Over the items of one document, with n_0, m_0, v_0 what came before and a centre c (m_0,
or the document's first mean),

    n = n_0 + sum w      mean = c + sum w (m - c) / n
    var = (n_0 v_0 + sum w (v + (m - c)^2)) / n - (mean - c)^2

`_running` computes that for all items at once, `_remaining` the backward pass's sums over the items
that follow. Both work on one document after another, with those of others replaced by zero, and
select: no bit passes from one to another. In float64 the difference of squares is harmless.

Backward, with a = d_mean / n and b = d_var / n of the tokens that follow, t included,

    d_g = sum a + 2 (g sum b - sum b mean)      d_s = sum b
    dx = dy (weight + 1) rstd + (d_g + 2 d_s (x - g)) / d

since var_t does not depend on mean_t to first order (mean_t is its minimum).

Shapes: B batch, L length, D features, G groups of d features, J segments of S tokens. Small arrays
of segments keep J last.
"""

import triton
import triton.language as tl


@triton.jit
def _running(b_w, b_m, b_v, b_begins, n_0, m_0, v_0, K: tl.constexpr):
    """Number, mean and variance of everything up to each of K items; begins [K] 0 or 1: a document
    begins at the item.
    """
    o = tl.arange(0, K)
    b_document = tl.cumsum(b_begins, 0)
    b_n = tl.zeros([K], tl.float64)
    b_mean = tl.zeros([K], tl.float64)
    b_var = tl.zeros([K], tl.float64)
    for i in range(tl.sum(b_begins, 0) + 1):
        m = b_document == i
        first = tl.min(tl.where(m, o, K), 0)
        goes_on = (i == 0) & (n_0 > 0)
        before = tl.where(goes_on, n_0, 0.0)
        centre = tl.where(goes_on, m_0, tl.sum(tl.where(o == first, b_m, 0.0), 0))
        b_off = tl.where(m, b_m - centre, 0.0)
        b_own = tl.where(m, b_w, 0.0)
        b_squares = tl.where(m, b_v, 0.0) + b_off * b_off
        b_count = before + tl.cumsum(b_own, 0)
        b_share = 1.0 / tl.maximum(b_count, 1.0)
        b_shift = tl.cumsum(b_own * b_off, 0) * b_share
        past = tl.where(goes_on, n_0 * v_0, 0.0)
        b_spread = (past + tl.cumsum(b_own * b_squares, 0)) * b_share - b_shift * b_shift
        b_n = tl.where(m, b_count, b_n)
        b_mean = tl.where(m, centre + b_shift, b_mean)
        b_var = tl.where(m, tl.maximum(b_spread, 0.0), b_var)
    return b_n, b_mean, b_var


@triton.jit
def _remaining(b_a, b_b, b_c, b_ends, a_next, b_next, c_next, K: tl.constexpr):
    """Sums of a, b, c over each of K items and those after it; ends [K] 0 or 1: nothing after the
    item reaches it. What follows the last item is a_next, b_next, c_next.
    """
    b_document = tl.cumsum(b_ends, 0, reverse=True)
    b_ra = tl.zeros([K], tl.float64)
    b_rb = tl.zeros([K], tl.float64)
    b_rc = tl.zeros([K], tl.float64)
    for i in range(tl.sum(b_ends, 0) + 1):
        m = b_document == i
        b_sa = tl.cumsum(tl.where(m, b_a, 0.0), 0, reverse=True) + tl.where(i == 0, a_next, 0.0)
        b_sb = tl.cumsum(tl.where(m, b_b, 0.0), 0, reverse=True) + tl.where(i == 0, b_next, 0.0)
        b_sc = tl.cumsum(tl.where(m, b_c, 0.0), 0, reverse=True) + tl.where(i == 0, c_next, 0.0)
        b_ra = tl.where(m, b_sa, b_ra)
        b_rb = tl.where(m, b_sb, b_rb)
        b_rc = tl.where(m, b_sc, b_rc)
    return b_ra, b_rb, b_rc


@triton.jit
def _begins(p_resets, p_marks, i_b, i_j, o_t, L, J, S: tl.constexpr):
    """int32 [S]: 1 at tokens o_t where a document begins; read only where the segment has one."""
    b_begins = tl.zeros([S], tl.int32)
    if p_resets is not None:
        marked = tl.load(p_marks + i_b * J + i_j) != 0
        b_begins = tl.load(p_resets + i_b * L + o_t, mask=(o_t < L) & marked, other=0).to(tl.int32)
    return b_begins


@triton.jit
def _at(b, o, i):
    """Item i of a vector."""
    return tl.sum(tl.where(o == i, b, 0.0), 0)


@triton.jit
def token_statistics_kernel(
    p_x,
    p_resets,
    p_marks,
    p_g,
    p_s,
    p_items,
    L,
    J,
    G,
    d,
    S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Mean g and variance s of each token's group, and weight, mean and variance of the segment.

    x [B, L, G d] -> g, s [B, L, G] and items float64 [B, 3, G, J], which are of the segment's
    last document.
    """
    dtype: tl.constexpr = p_g.dtype.element_ty
    i_g, i_j, i_b = tl.program_id(0) % G, tl.program_id(0) // G, tl.program_id(1).to(tl.int64)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < d
    b_marked = False
    if p_resets is not None:
        b_marked = tl.load(p_marks + i_b * J + i_j) != 0
    n = tl.zeros([], tl.float64)
    mean = tl.zeros([], tl.float64)
    m2 = tl.zeros([], tl.float64)
    for row in range(0, S, ROWS):
        o_r = tl.arange(0, ROWS)
        o_t = i_j * S + row + o_r
        m_t = o_t < L
        m = m_t[:, None] & m_c[None, :]
        p_tile = p_x + (i_b * L + i_j * S + row) * (G * d) + i_g * d
        # ROWS x BLOCK_C
        b_x = tl.load(p_tile + o_r[:, None] * (G * d) + o_c[None, :], mask=m, other=0.0).to(dtype)
        b_g = tl.sum(b_x, 1) / d
        b_off = tl.where(m, b_x - b_g[:, None], 0.0)
        b_s = tl.sum(b_off * b_off, 1) / d
        o_g = (i_b * L + o_t) * G + i_g
        tl.store(p_g + o_g, b_g, mask=m_t)
        tl.store(p_s + o_g, b_s, mask=m_t)

        m_own = m_t
        if p_resets is not None:
            b_r = tl.load(p_resets + i_b * L + o_t, mask=m_t & b_marked, other=0).to(tl.int32)
            last = tl.max(tl.where(b_r != 0, o_r, -1), 0)
            m_own = m_t & (o_r >= last)
            n = tl.where(last >= 0, 0.0, n)
            mean = tl.where(last >= 0, 0.0, mean)
            m2 = tl.where(last >= 0, 0.0, m2)
        b_g, b_s = b_g.to(tl.float64), b_s.to(tl.float64)
        own = tl.sum(tl.where(m_own, 1.0, 0.0).to(tl.float64), 0)
        own_mean = tl.sum(tl.where(m_own, b_g, 0.0), 0) / tl.maximum(own, 1.0)
        b_off = b_g - own_mean
        own_m2 = tl.sum(tl.where(m_own, b_s + b_off * b_off, 0.0), 0)
        share = own / tl.maximum(n + own, 1.0)
        between = own_mean - mean
        m2 += own_m2 + between * between * n * share
        mean += between * share
        n += own
    p_item = p_items + (i_b * 3 * G + i_g) * J + i_j
    tl.store(p_item, n)
    tl.store(p_item + G * J, mean)
    tl.store(p_item + 2 * G * J, m2 / tl.maximum(n, 1.0))


@triton.jit
def statistics_scan_kernel(
    p_items,
    p_marks,
    p_count,
    p_mean,
    p_var,
    p_entering,
    p_last_count,
    p_last_mean,
    p_last_var,
    J,
    G,
    K: tl.constexpr,
):
    """What came before each segment, from the segments' own statistics.

    items [B, 3, G, J], count [B], mean, var [B, G] -> entering float64 [B, 3, G, J + 1], whose
    last is what the call ends with.
    """
    i_g, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o = tl.arange(0, K)
    n = tl.load(p_count + i_b).to(tl.float64)
    mean = tl.load(p_mean + i_b * G + i_g).to(tl.float64)
    var = tl.load(p_var + i_b * G + i_g).to(tl.float64)
    p_item = p_items + (i_b * 3 * G + i_g) * J
    p_enter = p_entering + (i_b * 3 * G + i_g) * (J + 1)
    tl.store(p_enter, n)
    tl.store(p_enter + G * (J + 1), mean)
    tl.store(p_enter + 2 * G * (J + 1), var)
    for j in range(0, J, K):
        o_j = j + o
        m = o_j < J
        # K
        b_w = tl.load(p_item + o_j, mask=m, other=0.0)
        b_m = tl.load(p_item + G * J + o_j, mask=m, other=0.0)
        b_v = tl.load(p_item + 2 * G * J + o_j, mask=m, other=0.0)
        b_begins = tl.zeros([K], tl.int32)
        if p_marks is not None:
            b_begins = tl.load(p_marks + i_b * J + o_j, mask=m, other=0).to(tl.int32)
        b_n, b_mean, b_var = _running(b_w, b_m, b_v, b_begins, n, mean, var, K)
        p_after = p_enter + o_j + 1
        tl.store(p_after, b_n, mask=m)
        tl.store(p_after + G * (J + 1), b_mean, mask=m)
        tl.store(p_after + 2 * G * (J + 1), b_var, mask=m)
        n, mean, var = _at(b_n, o, K - 1), _at(b_mean, o, K - 1), _at(b_var, o, K - 1)
    tl.store(p_last_count + i_b, n.to(tl.int64), mask=i_g == 0)
    tl.store(p_last_mean + i_b * G + i_g, mean)
    tl.store(p_last_var + i_b * G + i_g, var)


@triton.jit
def _token_statistics(p_g, p_s, p_entering, b_begins, i_b, i_j, i_g, o_t, L, J, G, S: tl.constexpr):
    """Each token's g, and number, mean and variance of everything up to it; float64 [S] each."""
    m_t = o_t < L
    o_g = (i_b * L + o_t) * G + i_g
    b_g = tl.load(p_g + o_g, mask=m_t, other=0.0).to(tl.float64)
    b_s = tl.load(p_s + o_g, mask=m_t, other=0.0).to(tl.float64)
    p_enter = p_entering + (i_b * 3 * G + i_g) * (J + 1) + i_j
    n_0 = tl.load(p_enter)
    m_0 = tl.load(p_enter + G * (J + 1))
    v_0 = tl.load(p_enter + 2 * G * (J + 1))
    b_w = tl.where(m_t, 1.0, 0.0).to(tl.float64)
    b_n, b_mean, b_var = _running(b_w, b_g, b_s, b_begins, n_0, m_0, v_0, S)
    return b_g, b_n, b_mean, b_var


@triton.jit
def normalise_kernel(
    p_x,
    p_weight,
    p_bias,
    p_g,
    p_s,
    p_entering,
    p_resets,
    p_marks,
    p_y,
    L,
    J,
    G,
    d,
    EPS: tl.constexpr,
    S: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y from x and the statistics; WIDTH features of a group a program, BLOCK_C at a time.

    x [B, L, G d], g, s [B, L, G], entering [B, 3, G, J + 1] -> y [B, L, G d].
    """
    dtype: tl.constexpr = p_g.dtype.element_ty
    blocks = tl.cdiv(d, WIDTH)
    i_c, i_g = tl.program_id(0) % blocks, tl.program_id(0) // blocks % G
    i_j, i_b = tl.program_id(0) // (blocks * G), tl.program_id(1).to(tl.int64)
    o_r = tl.arange(0, S)
    o_t = i_j * S + o_r
    o_first = (i_b * L + i_j * S) * (G * d) + i_g * d
    b_begins = _begins(p_resets, p_marks, i_b, i_j, o_t, L, J, S)
    _, _, b_mean, b_var = _token_statistics(
        p_g, p_s, p_entering, b_begins, i_b, i_j, i_g, o_t, L, J, G, S
    )
    b_rstd = (1.0 / tl.sqrt(b_var + EPS)).to(dtype)[:, None]
    b_mean = b_mean.to(dtype)[:, None]
    for c in range(i_c * WIDTH, tl.minimum(i_c * WIDTH + WIDTH, d), BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < d
        m = (o_t < L)[:, None] & m_c[None, :]
        o_x = o_r[:, None] * (G * d) + o_c[None, :]
        b_w = tl.load(p_weight + i_g * d + o_c, mask=m_c, other=0.0).to(dtype) + 1.0
        b_b = tl.load(p_bias + i_g * d + o_c, mask=m_c, other=0.0).to(dtype)
        # S x BLOCK_C
        b_x = tl.load(p_x + o_first + o_x, mask=m, other=0.0).to(dtype)
        b_y = (b_x - b_mean) * b_rstd * b_w[None, :] + b_b[None, :]
        tl.store(p_y + o_first + o_x, b_y, mask=m)
