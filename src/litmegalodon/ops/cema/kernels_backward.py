"""The gradients of CEMA's coefficients; kernels.py has the mathematics and the shapes."""

import triton
import triton.language as tl

from litmegalodon.ops.cema.kernels import _channels, _group, _is_whole, _planes, _resets_at


@triton.jit
def _next_state(b_x, b_qr, b_qi, b_re, b_im, b_sr, b_si):
    """u and s = du/dq after a token x [BLOCK_D]."""
    b_next_sr = b_re + b_qr * b_sr - b_qi * b_si
    b_next_si = b_im + b_qr * b_si + b_qi * b_sr
    b_next_re = b_x[None, :] + b_qr * b_re - b_qi * b_im
    b_next_im = b_qr * b_im + b_qi * b_re
    return b_next_re, b_next_im, b_next_sr, b_next_si


@triton.jit
def coefficient_gradients_kernel(
    p_x,
    p_dy,
    p_table,
    p_entering,
    p_leaving,
    p_resets,
    p_marks,
    p_sums,
    p_domega,
    L,
    D,
    J,
    S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A segment's part of d_G = sum dy u, of d_q = G sum dy s + w s_end and of sum dy x.

    x, dy [B, L, D], entering (u) and leaving (w, entering the transposed recurrence) [B, J, 2,
    BLOCK_N, D] -> sums [B, J, 2, 2, BLOCK_N, D], domega [B, J, D].
    """
    dtype: tl.constexpr = p_table.dtype.element_ty
    i_j, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_d, m_d, o_nd, m_nd = _channels(D, BLOCK_N, BLOCK_D)
    size = BLOCK_N * D
    i_bj = i_b * J + i_j

    # BLOCK_N x BLOCK_D
    b_qr, b_qi = _planes(p_table, 0, o_nd, size)
    b_re, b_im = _planes(p_entering, i_bj, o_nd, size)
    b_sr = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    b_si = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    b_gr = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    b_gi = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    b_dr = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    b_di = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    b_omega = tl.zeros([BLOCK_D], dtype)

    p_row = p_x + i_b * L * D + o_d
    p_grad = p_dy + i_b * L * D + o_d
    t_0 = i_j * S
    b_next = _group(p_row, t_0, L, D, m_d, UNROLL, False)
    b_grad_next = _group(p_grad, t_0, L, D, m_d, UNROLL, False)
    for _ in range(tl.cdiv(tl.minimum(S, L - t_0), UNROLL)):
        b_x, b_dy = b_next, b_grad_next
        b_next = _group(p_row, t_0 + UNROLL, L, D, m_d, UNROLL, False)
        b_grad_next = _group(p_grad, t_0 + UNROLL, L, D, m_d, UNROLL, False)
        if _is_whole(p_marks, i_b, t_0, L, UNROLL):
            for i in tl.static_range(UNROLL):
                b_x0, b_dy0 = b_x[i].to(dtype), b_dy[i].to(dtype)
                b_re, b_im, b_sr, b_si = _next_state(b_x0, b_qr, b_qi, b_re, b_im, b_sr, b_si)
                b_gr += b_dy0[None, :] * b_re
                b_gi += b_dy0[None, :] * b_im
                b_dr += b_dy0[None, :] * b_sr
                b_di += b_dy0[None, :] * b_si
                b_omega += b_dy0 * b_x0
        else:
            for i in range(tl.minimum(UNROLL, L - t_0)):
                t = (t_0 + i).to(tl.int64)
                b_x0 = tl.load(p_row + t * D, mask=m_d, other=0.0).to(dtype)
                b_dy0 = tl.load(p_grad + t * D, mask=m_d, other=0.0).to(dtype)
                b_reset = _resets_at(p_resets, i_b * L + t)
                b_re = tl.where(b_reset, 0.0, b_re)
                b_im = tl.where(b_reset, 0.0, b_im)
                b_sr = tl.where(b_reset, 0.0, b_sr)
                b_si = tl.where(b_reset, 0.0, b_si)
                b_re, b_im, b_sr, b_si = _next_state(b_x0, b_qr, b_qi, b_re, b_im, b_sr, b_si)
                b_gr += b_dy0[None, :] * b_re
                b_gi += b_dy0[None, :] * b_im
                b_dr += b_dy0[None, :] * b_sr
                b_di += b_dy0[None, :] * b_si
                b_omega += b_dy0 * b_x0
        t_0 += UNROLL

    # d_q = G sum dy s + w s_end
    b_wr, b_wi = _planes(p_leaving, i_bj, o_nd, size)
    b_cr, b_ci = _planes(p_table, 4, o_nd, size)
    p_sum = p_sums + i_bj * 4 * size + o_nd
    tl.store(p_sum, b_gr, mask=m_nd)
    tl.store(p_sum + size, b_gi, mask=m_nd)
    b_qr = b_cr * b_dr - b_ci * b_di + b_wr * b_sr - b_wi * b_si
    b_qi = b_cr * b_di + b_ci * b_dr + b_wr * b_si + b_wi * b_sr
    tl.store(p_sum + 2 * size, b_qr, mask=m_nd)
    tl.store(p_sum + 3 * size, b_qi, mask=m_nd)
    tl.store(p_domega + i_bj * D + o_d, b_omega, mask=m_d)
