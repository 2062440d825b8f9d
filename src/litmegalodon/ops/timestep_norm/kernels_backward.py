"""TimestepNorm's backward Triton kernels; kernels.py has the mathematics and the shapes."""

import triton
import triton.language as tl

from litmegalodon.ops.timestep_norm.kernels import _at, _begins, _remaining, _token_statistics


@triton.jit
def token_gradients_kernel(
    p_x,
    p_dy,
    p_weight,
    p_g,
    p_s,
    p_entering,
    p_resets,
    p_marks,
    p_a,
    p_b,
    p_items,
    p_affine,
    L,
    J,
    G,
    d,
    EPS: tl.constexpr,
    S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What each token gives to its mean and variance, and a segment's part for weight and bias.

    x, dy [B, L, G d] -> a, b [B, L, G], items float64 [B, 3, G, J]: sums of a, b, b mean over the
    document that the segment begins in, affine [B, J, 2, G d].
    """
    dtype: tl.constexpr = p_g.dtype.element_ty
    i_g, i_j, i_b = tl.program_id(0) % G, tl.program_id(0) // G, tl.program_id(1).to(tl.int64)
    o_r = tl.arange(0, S)
    o_t = i_j * S + o_r
    o_first = (i_b * L + i_j * S) * (G * d) + i_g * d
    m_t = o_t < L
    b_begins = _begins(p_resets, p_marks, i_b, i_j, o_t, L, J, S)
    _, b_n, b_mean64, b_var = _token_statistics(
        p_g, p_s, p_entering, b_begins, i_b, i_j, i_g, o_t, L, J, G, S
    )
    b_rstd64 = 1.0 / tl.sqrt(b_var + EPS)
    b_rstd = b_rstd64.to(dtype)[:, None]
    b_mean = b_mean64.to(dtype)[:, None]
    b_by_mean = tl.zeros([S], dtype)
    b_by_var = tl.zeros([S], dtype)
    for c in range(0, d, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < d
        m = m_t[:, None] & m_c[None, :]
        o_x = o_r[:, None] * (G * d) + o_c[None, :]
        b_w = tl.load(p_weight + i_g * d + o_c, mask=m_c, other=0.0).to(dtype) + 1.0
        # S x BLOCK_C
        b_x = tl.load(p_x + o_first + o_x, mask=m, other=0.0).to(dtype)
        b_dy = tl.load(p_dy + o_first + o_x, mask=m, other=0.0).to(dtype)
        b_off = b_x - b_mean
        b_dyw = b_dy * b_w[None, :]
        b_by_mean += tl.sum(b_dyw, 1)
        b_by_var += tl.sum(b_dyw * b_off, 1)
        p_part = p_affine + (i_b * J + i_j) * 2 * (G * d) + i_g * d + o_c
        tl.store(p_part, tl.sum(b_dy * b_off * b_rstd, 0), mask=m_c)
        tl.store(p_part + G * d, tl.sum(b_dy, 0), mask=m_c)
    b_per_mean = -b_rstd64 * b_by_mean.to(tl.float64) / b_n
    b_per_var = -0.5 * b_rstd64 * b_rstd64 * b_rstd64 * b_by_var.to(tl.float64) / b_n
    # Rounded before they are summed: what is summed here must be what dx_kernel reads.
    b_a, b_b = b_per_mean.to(dtype), b_per_var.to(dtype)
    o_g = (i_b * L + o_t) * G + i_g
    tl.store(p_a + o_g, b_a, mask=m_t)
    tl.store(p_b + o_g, b_b, mask=m_t)
    m_first = m_t & (tl.cumsum(b_begins, 0) == 0)
    b_a, b_b = b_a.to(tl.float64), b_b.to(tl.float64)
    p_item = p_items + (i_b * 3 * G + i_g) * J + i_j
    tl.store(p_item, tl.sum(tl.where(m_first, b_a, 0.0), 0))
    tl.store(p_item + G * J, tl.sum(tl.where(m_first, b_b, 0.0), 0))
    tl.store(p_item + 2 * G * J, tl.sum(tl.where(m_first, b_b * b_mean64, 0.0), 0))


@triton.jit
def gradients_scan_kernel(p_items, p_marks, p_last, p_leaving, J, G, K: tl.constexpr):
    """What follows each segment, from the segments' own sums.

    items [B, 3, G, J], last [B, 3, G] -> leaving float64 [B, 3, G, J + 1]: sums from each segment's
    first token on, as far as its document goes.
    """
    i_g, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o = tl.arange(0, K)
    a = tl.load(p_last + i_b * 3 * G + i_g)
    b = tl.load(p_last + i_b * 3 * G + G + i_g)
    c = tl.load(p_last + i_b * 3 * G + 2 * G + i_g)
    p_item = p_items + (i_b * 3 * G + i_g) * J
    p_leave = p_leaving + (i_b * 3 * G + i_g) * (J + 1)
    tl.store(p_leave + J, a)
    tl.store(p_leave + G * (J + 1) + J, b)
    tl.store(p_leave + 2 * G * (J + 1) + J, c)
    chunks = tl.cdiv(J, K)
    for i in range(chunks):
        o_j = (chunks - 1 - i) * K + o
        m = o_j < J
        # K
        b_a = tl.load(p_item + o_j, mask=m, other=0.0)
        b_b = tl.load(p_item + G * J + o_j, mask=m, other=0.0)
        b_c = tl.load(p_item + 2 * G * J + o_j, mask=m, other=0.0)
        b_ends = tl.zeros([K], tl.int32)
        if p_marks is not None:
            b_ends = tl.load(p_marks + i_b * J + o_j, mask=m, other=0).to(tl.int32)
        b_a, b_b, b_c = _remaining(b_a, b_b, b_c, b_ends, a, b, c, K)
        tl.store(p_leave + o_j, b_a, mask=m)
        tl.store(p_leave + G * (J + 1) + o_j, b_b, mask=m)
        tl.store(p_leave + 2 * G * (J + 1) + o_j, b_c, mask=m)
        a, b, c = _at(b_a, o, 0), _at(b_b, o, 0), _at(b_c, o, 0)


@triton.jit
def dx_kernel(
    p_x,
    p_dy,
    p_weight,
    p_g,
    p_s,
    p_a,
    p_b,
    p_entering,
    p_leaving,
    p_resets,
    p_marks,
    p_dx,
    L,
    J,
    G,
    d,
    EPS: tl.constexpr,
    S: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of x; WIDTH features of a group a program, BLOCK_C at a time.

    x, dy [B, L, G d], g, s, a, b [B, L, G], entering, leaving [B, 3, G, J + 1] -> dx [B, L, G d].
    """
    dtype: tl.constexpr = p_g.dtype.element_ty
    blocks = tl.cdiv(d, WIDTH)
    i_c, i_g = tl.program_id(0) % blocks, tl.program_id(0) // blocks % G
    i_j, i_b = tl.program_id(0) // (blocks * G), tl.program_id(1).to(tl.int64)
    o_r = tl.arange(0, S)
    o_t = i_j * S + o_r
    o_first = (i_b * L + i_j * S) * (G * d) + i_g * d
    m_t = o_t < L
    b_begins = _begins(p_resets, p_marks, i_b, i_j, o_t, L, J, S)
    b_g, _, b_mean64, b_var = _token_statistics(
        p_g, p_s, p_entering, b_begins, i_b, i_j, i_g, o_t, L, J, G, S
    )
    o_g = (i_b * L + o_t) * G + i_g
    b_a = tl.load(p_a + o_g, mask=m_t, other=0.0).to(tl.float64)
    b_b = tl.load(p_b + o_g, mask=m_t, other=0.0).to(tl.float64)
    # A token is its document's last where the next one begins another.
    b_ends = tl.zeros([S], tl.int32)
    if p_resets is not None:
        b_ends = tl.load(p_resets + i_b * L + o_t + 1, mask=o_t + 1 < L, other=0).to(tl.int32)
    p_leave = p_leaving + (i_b * 3 * G + i_g) * (J + 1) + i_j + 1
    a_next = tl.load(p_leave)
    b_next = tl.load(p_leave + G * (J + 1))
    c_next = tl.load(p_leave + 2 * G * (J + 1))
    b_ra, b_rb, b_rc = _remaining(b_a, b_b, b_b * b_mean64, b_ends, a_next, b_next, c_next, S)
    b_level = ((b_ra + 2.0 * (b_rb * b_g - b_rc)) / d).to(dtype)[:, None]
    b_slope = (2.0 * b_rb / d).to(dtype)[:, None]
    b_rstd = (1.0 / tl.sqrt(b_var + EPS)).to(dtype)[:, None]
    b_g = b_g.to(dtype)[:, None]
    for c in range(i_c * WIDTH, tl.minimum(i_c * WIDTH + WIDTH, d), BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < d
        m = m_t[:, None] & m_c[None, :]
        o_x = o_r[:, None] * (G * d) + o_c[None, :]
        b_w = tl.load(p_weight + i_g * d + o_c, mask=m_c, other=0.0).to(dtype) + 1.0
        # S x BLOCK_C
        b_x = tl.load(p_x + o_first + o_x, mask=m, other=0.0).to(dtype)
        b_dy = tl.load(p_dy + o_first + o_x, mask=m, other=0.0).to(dtype)
        b_dx = b_dy * b_w[None, :] * b_rstd + (b_x - b_g) * b_slope + b_level
        tl.store(p_dx + o_first + o_x, b_dx, mask=m)
