"""CEMA as products of small matrices: linear in L, streaming, without an FFT or a longest length.

Time is cut into blocks of T tokens. With x a block's input and h the state that enters it,

    y     = M x + O h      M [T, T] Toeplitz, the kernel's first T taps with omega on the diagonal
    h_out = E x + q^T h    E [N, T] what each token leaves in the state at the block's end

so the bulk of the work is a batched product, and the recurrence runs over L / T blocks only, in
float64.

A block in which a document begins is computed once more for each of its documents, with the tokens
of the others replaced by zero, and the state it passes on is its last document's alone.

Shapes: B batch, L length, D channels, N order, T block, J = L / T blocks; complex numbers are pairs
(re, im).
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litmegalodon.ops.cema.coefficients import Coefficients, coefficients
from litmegalodon.ops.dispatch import compute_dtype

BLOCK = 64


def cema_pytorch(
    x: Tensor,
    alpha: Tensor,
    delta: Tensor,
    theta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `litmegalodon.ops.cema`."""
    dtype = compute_dtype(x)
    batch, length, dim = x.shape
    order = alpha.shape[1]
    c = coefficients(alpha, delta, theta, gamma)
    weight = omega.to(dtype)
    if state is None:
        state = x.new_zeros(batch, dim, order, 2, dtype=dtype)
    if resets is not None and not resets.any():
        resets = None

    h = state.to(dtype).transpose(0, 1)  # D x B x N x 2
    channels = _Transpose.apply(x.to(dtype).flatten(0, 1)).view(dim, batch, length)
    whole = length - length % BLOCK
    outputs = []
    for start, stop in ((0, whole), (whole, length)):
        if start == stop:
            continue
        part_resets = None if resets is None else resets[:, start:stop]
        block = min(BLOCK, stop - start)
        y, h = _blocks(channels[:, :, start:stop], c, weight, h, part_resets, block)
        outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return _Transpose.apply(y.flatten(1)).view(x.shape).to(x.dtype), h.transpose(0, 1).clone()


def _blocks(
    x: Tensor, c: Coefficients, omega: Tensor, h: Tensor, resets: Tensor | None, block: int
) -> tuple[Tensor, Tensor]:
    """x [D, B, L] with L a multiple of `block`, h [D, B, N, 2] -> y [D, B, L], h [D, B, N, 2]."""
    dim, batch, length = x.shape
    taps, ends, outs = _matrices(c, omega, block, x.dtype)
    x = x.reshape(dim, -1, block)  # D x BJ x T
    end_states = torch.bmm(x, ends)  # D x BJ x 2N
    keep = None
    if resets is not None:
        segment = resets.reshape(-1, block).long().cumsum(1)  # BJ x T, 0: began before this block
        last = segment[:, -1]
        rows = last.nonzero().squeeze(1)
        keep = (last == 0).view(batch, -1)
        of_last = segment[rows] == last[rows, None]
        last_state = torch.bmm(torch.where(of_last, x[:, rows], 0), ends)
        end_states = end_states.index_copy(1, rows, last_state)

    transition = torch.stack(c.powers(torch.tensor([block], device=x.device), torch.float64), -1)
    entering, h = _Scan.apply(
        end_states.view(dim, batch, -1, *h.shape[2:]), transition.squeeze(2), h, keep
    )
    entering = entering.reshape(dim, -1, end_states.shape[-1])  # D x BJ x 2N
    y = torch.baddbmm(torch.bmm(x, taps), entering, outs)  # D x BJ x T
    if resets is not None and len(rows) > 0:
        segment, x = segment[rows], x[:, rows]
        y_rows = torch.bmm(entering[:, rows], outs)
        y_rows = y_rows + torch.bmm(torch.where(segment == 0, x, 0), taps)
        for s in range(1, int(last.max()) + 1):
            alone = torch.bmm(torch.where(segment == s, x, 0), taps)
            y_rows = torch.where(segment == s, alone, y_rows)
        y = y.index_copy(1, rows, y_rows)
    return y.view(dim, batch, length), h


def _matrices(
    c: Coefficients, omega: Tensor, block: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """M^T [D, T, T], E^T [D, T, 2N] and O^T [D, 2N, T] of the module docstring."""
    re, im = c.powers(torch.arange(block + 1, device=omega.device), dtype)  # D x N x T+1
    p, g_re, g_im = (v.to(dtype)[..., None] for v in (c.p, c.g_re, c.g_im))
    # Re(g q^l (a + ib)) = a Re(g q^l) - b Im(g q^l)
    out_re, out_im = g_re * re - g_im * im, -(g_re * im + g_im * re)
    outs = torch.stack([out_re[..., 1:], out_im[..., 1:]], dim=2).flatten(1, 2)  # D x 2N x T
    kernel = (p * out_re[..., :-1]).sum(1)  # D x T
    kernel = torch.cat([kernel[:, :1] + omega, kernel[:, 1:]], dim=1)
    ends = torch.stack([re, im], dim=-1)[:, :, :-1].flip(2) * p[..., None]  # D x N x T x 2
    return _Toeplitz.apply(kernel), ends.transpose(1, 2).flatten(2), outs


class _Transpose(torch.autograd.Function):
    """A matrix's transpose, laid out anew both ways: batched products are slow on other layouts."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.t().contiguous()


class _Toeplitz(torch.autograd.Function):
    """kernel [D, T] -> upper triangular [D, T, T] with kernel[t - s] at row s, column t."""

    @staticmethod
    def forward(ctx, kernel: Tensor) -> Tensor:
        dim, size = kernel.shape
        padded = torch.cat([kernel, kernel.new_zeros(dim, size)], dim=1)
        # Rows of length 2T - 1 read from a repetition of period 2T step one to the right each time.
        repeated = padded.repeat(1, size)[:, : size * (2 * size - 1)]
        return repeated.view(dim, size, 2 * size - 1)[:, :, :size].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        dim, size, _ = grad.shape
        padded = torch.cat([grad.triu(), grad.new_zeros(dim, size, size)], dim=2)
        # Reading rows of 2T as rows of 2T + 1 lines up each diagonal in a column.
        skewed = torch.cat([padded.flatten(1), grad.new_zeros(dim, size)], dim=1)
        return skewed.view(dim, size, 2 * size + 1)[:, :, :size].sum(1)


class _Scan(torch.autograd.Function):
    """The recurrence over blocks: h_{j+1} = e_j + (q^T h_j where keep, else 0), carried in float64.

    e [D, B, J, N, 2], transition q^T float64 [D, N, 2], h [D, B, N, 2], keep bool [B, J] or None ->
    the states that enter each block [D, B, J, N, 2] and the one that leaves the last [D, B, N, 2].
    """

    @staticmethod
    def forward(ctx, e, transition, h, keep):
        q = torch.view_as_complex(transition.contiguous())[:, None]  # D x 1 x N
        entering = torch.empty_like(e, memory_format=torch.contiguous_format)
        e_complex, entering_complex = (torch.view_as_complex(v) for v in (e.contiguous(), entering))
        state = torch.view_as_complex(h.double().contiguous())
        for j in range(e.shape[2]):
            entering_complex[:, :, j] = state
            state = q * state
            if keep is not None:
                state = torch.where(keep[None, :, j, None], state, 0)
            state = state + e_complex[:, :, j]
        ctx.save_for_backward(transition, entering, keep)
        return entering, torch.view_as_real(state).to(e.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_entering, grad_last):
        transition, entering, keep = ctx.saved_tensors
        q = torch.view_as_complex(transition.contiguous())[:, None]
        grad_e = torch.empty_like(entering)
        grad_e_complex, grad_entering, entering = (
            torch.view_as_complex(v) for v in (grad_e, grad_entering.contiguous(), entering)
        )
        grad_q = torch.zeros_like(q)
        grad = torch.view_as_complex(grad_last.double().contiguous())
        for j in reversed(range(grad_e.shape[2])):
            grad_e_complex[:, :, j] = grad
            through_q = grad * entering[:, :, j].conj()
            grad = q.conj() * grad
            if keep is not None:
                through_q = torch.where(keep[None, :, j, None], through_q, 0)
                grad = torch.where(keep[None, :, j, None], grad, 0)
            grad_q += through_q.sum(1, keepdim=True)
            grad = grad + grad_entering[:, :, j]
        return (
            grad_e,
            torch.view_as_real(grad_q.squeeze(1)),
            torch.view_as_real(grad).to(grad_e.dtype),
            None,
        )
