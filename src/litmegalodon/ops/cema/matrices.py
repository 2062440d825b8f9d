"""The small matrices a channel that CEMA's blocks are multiplied by, and their gradients.

With c = p g and the powers q^l, all complex,

    taps   M[s, t] = k[t - s],  k[l] = Re sum_n c_n q_n^l (+ omega at l = 0)
    ends   E[s, n] = p_n q_n^(T-1-s)              as (re, im)
    outs   O[n, t] = conj(g_n q_n^(t+1))          as (re, im): Re(w h) = Re w Re h - Im w Im h

Shapes: D channels, N order, T block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from litmegalodon.ops.cema.coefficients import Coefficients


class Matrices(NamedTuple):
    """taps [D, T, T], ends [D, T, 2N], outs [D, 2N, T]; transition q^T complex128 [D, N]."""

    taps: Tensor
    ends: Tensor
    outs: Tensor
    transition: Tensor
    powers: Tensor  # complex D x T+1 x N


def matrices(c: Coefficients, omega: Tensor, block: int, dtype: torch.dtype) -> Matrices:
    """The matrices of blocks of `block` tokens in `dtype`; omega [D, 1]."""
    exponents = torch.arange(block + 1, device=omega.device)
    # D x T+1 x N
    powers = torch.complex(*c.powers(exponents, dtype)).transpose(1, 2).contiguous()
    p, g = _p(c, powers.dtype), _g(c, powers.dtype)
    kernel = _products(powers[:, :-1], torch.view_as_real((p * g).conj_physical()).flatten(1))
    kernel[:, 0] += omega.to(dtype).squeeze(1)
    ends = _pairs(powers[:, :-1].flip(1).mul_(p[:, None]))
    outs = _pairs((powers[:, 1:] * g[:, None]).conj_physical()).mT
    transition = torch.complex(*c.powers(exponents[-1:], torch.float64)).squeeze(-1)
    return Matrices(_toeplitz(kernel), ends, outs, transition, powers)


def matrices_backward(
    c: Coefficients,
    m: Matrices,
    d_taps: Tensor,
    d_ends: Tensor,
    d_outs: Tensor,
    d_transition: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of p, log_decay, angle, g_re, g_im (float64 [D, N]) and omega ([D, 1]).

    Args:
        d_taps: [D, T], summed along the diagonals already; d_ends: [D, T, 2N]; d_outs: [D, 2N, T];
            d_transition: complex128 [D, N].
    """
    powers, block = m.powers, d_taps.shape[1]
    p, g = _p(c, powers.dtype), _g(c, powers.dtype)
    d_powers = torch.zeros_like(powers)
    # Of the kernel: d_c_n = sum_l k_l conj(q_n^l).
    d_c = torch.einsum("dl,dln->dn", d_taps.to(powers.dtype), powers[:, :-1].conj())
    d_powers[:, :-1] = d_taps[..., None] * (p * g).conj()[:, None]
    # Of the ends, last token first.
    d_e = _complex(d_ends).flip(1)
    d_p = (powers[:, :-1].conj() * d_e).sum(1).real + (g.conj() * d_c).real
    d_powers[:, :-1].addcmul_(d_e, p[:, None])
    # Of the outs, which hold a conjugate.
    d_w = _complex(d_outs.mT).conj_physical()
    d_g = (powers[:, 1:].conj() * d_w).sum(1) + p.conj() * d_c
    d_powers[:, 1:].addcmul_(d_w, g.conj()[:, None])
    # q^l = exp(l log q)
    times = torch.arange(block + 1, device=powers.device, dtype=d_taps.dtype)[None, :, None]
    d_log = (times * powers.conj() * d_powers).sum(1).to(torch.complex128)
    d_log += block * m.transition.conj() * d_transition
    parts = (d_p, d_log.real, d_log.imag, d_g.real, d_g.imag)
    return *(u.double() for u in parts), d_taps[:, :1]


def diagonal_sums(blocks: Tensor, grads: Tensor) -> Tensor:
    """Sums along the diagonals of blocks^T grads, both [D, J, T]: the gradient of k, [D, T]."""
    dim, _, size = blocks.shape
    # Rows of 2T read as rows of 2T + 1 line up each diagonal in a column.
    padded = blocks.new_zeros(dim, size * (2 * size + 1))
    rows = padded[:, : size * 2 * size].view(dim, size, 2 * size)
    rows[:, :, :size] = torch.bmm(blocks.mT, grads)
    return padded.view(dim, size, 2 * size + 1)[:, :, :size].sum(1)


def _toeplitz(kernel: Tensor) -> Tensor:
    """kernel [D, T] -> upper triangular [D, T, T] with kernel[t - s] at row s, column t."""
    size = kernel.shape[1]
    windows = torch.cat([torch.zeros_like(kernel), kernel], dim=1).unfold(1, size, 1)
    return windows.flip(1)[:, :size]


def _p(c: Coefficients, dtype: torch.dtype) -> Tensor:
    return c.p.to(dtype)


def _g(c: Coefficients, dtype: torch.dtype) -> Tensor:
    return torch.complex(c.g_re, c.g_im).to(dtype)


def _pairs(z: Tensor) -> Tensor:
    """complex [D, T, N] -> real [D, T, 2N]."""
    return torch.view_as_real(z).flatten(2)


def _complex(x: Tensor) -> Tensor:
    """real [D, T, 2N] -> complex [D, T, N]."""
    return torch.view_as_complex(x.unflatten(2, (-1, 2)).contiguous())


def _products(powers: Tensor, weights: Tensor) -> Tensor:
    """Re sum_n c_n q_n^l, of powers complex [D, T, N] and conj(c) as pairs [D, 2N]: real [D, T]."""
    return torch.bmm(_pairs(powers), weights[..., None]).squeeze(2)
