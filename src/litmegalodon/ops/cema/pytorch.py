"""CEMA as products of small matrices: linear in L, streaming, without an FFT or a longest length.

Time is cut into blocks of T tokens. With x a block's input and h the state that enters it,

    y     = M x + O h      M [T, T] Toeplitz, the kernel's first T taps with omega on the diagonal
    h_out = E x + q^T h    E [N, T] what each token leaves in the state at the block's end

so the bulk of the work is a batched product, and the recurrence runs over L / T blocks only, in
float64 (`scan.py`). The backward pass is the same products transposed and the recurrence in
reverse.

A block in which documents begin is taken apart (`pieces.py`): M is applied to each piece, E to the
last one of a block, O serves the first one.

Shapes: B batch, L length, D channels, N order, T block, J blocks a row, P blocks or pieces of all
rows; complex numbers are pairs (re, im).
"""

import torch
from torch import Tensor

from litmegalodon.ops.cema.coefficients import Coefficients, coefficients
from litmegalodon.ops.cema.matrices import Matrices, diagonal_sums, matrices, matrices_backward
from litmegalodon.ops.cema.pieces import Pieces
from litmegalodon.ops.cema.scan import scan, scan_backward
from litmegalodon.ops.dispatch import backward_pass, compute_dtype

BLOCK = 64
# Where documents are short: a piece takes as much memory as a whole block.
SHORTEST = 8


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
    c = coefficients(alpha, delta, theta, gamma)
    h = state
    if h is None:
        h = x.new_zeros(x.shape[0], *alpha.shape[:2], 2, dtype=compute_dtype(x))
    documents = 0 if resets is None else int(resets.sum())
    if documents == 0:
        resets = None
    length, block = x.shape[1], block_length(x.shape[0] * x.shape[1], documents)
    whole = length - length % block
    outputs = []
    for start, stop in ((0, whole), (whole, length)):
        if start < stop:
            part = None if resets is None else resets[:, start:stop]
            y, h = _Cema.apply(x[:, start:stop], *c, omega, h, part, block)
            outputs.append(y)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), h


def block_length(tokens: int, documents: int) -> int:
    """T, at which blocks and pieces together hold at most twice the tokens.

    Where documents are shorter than SHORTEST they hold more, (1 + SHORTEST) times at the most.
    """
    block = BLOCK
    while block > SHORTEST and block * documents > tokens:
        block //= 2
    return block


def _apart(x: Tensor, dtype: torch.dtype, block: int, pieces: Pieces | None) -> Tensor:
    """[B, L, D] -> blocks or pieces [D, P, T], laid out anew: other layouts multiply slowly."""
    blocks = x.to(dtype).reshape(-1, x.shape[2]).t().contiguous().view(x.shape[2], -1, block)
    return blocks if pieces is None else pieces.apart(blocks)


def _together(y: Tensor, like: Tensor, pieces: Pieces | None) -> Tensor:
    """The inverse of `_apart`, with the shape and dtype of `like`."""
    blocks = y if pieces is None else pieces.together(y)
    return blocks.flatten(1).t().to(like.dtype).contiguous().view(like.shape)


def _last(pieces_of_x: Tensor, pieces: Pieces | None) -> Tensor:
    """The last piece of each block, [D, BJ, T]."""
    return pieces_of_x if pieces is None else pieces_of_x.index_select(1, pieces.last)


class _Cema(torch.autograd.Function):
    """A stretch of whole blocks, or one shorter than a block."""

    @staticmethod
    def forward(ctx, x, p, log_decay, angle, g_re, g_im, omega, state, resets, block):
        dtype, block = compute_dtype(x), min(block, x.shape[1])
        c = Coefficients(p, log_decay, angle, g_re, g_im)
        m = matrices(c, omega, block, dtype)
        pieces = None if resets is None else Pieces(resets, block)
        blocks = _apart(x, dtype, block, pieces)
        batch, (dim, order) = x.shape[0], p.shape
        e = torch.bmm(_last(blocks, pieces), m.ends).view(dim, batch, -1, order, 2)
        continues = None if pieces is None else pieces.continues
        entering, last = scan(e, m.transition, state.to(dtype).transpose(0, 1), continues)
        flat = entering.view(dim, -1, 2 * order)
        y = torch.bmm(blocks, m.taps)
        y[:, : flat.shape[1]].baddbmm_(flat, m.outs)
        ctx.save_for_backward(x, *c, omega, entering, *m)
        ctx.pieces, ctx.block, ctx.state_dtype = pieces, block, state.dtype
        return _together(y, x, pieces), last.transpose(0, 1).contiguous()

    @staticmethod
    @backward_pass
    def backward(ctx, d_y, d_last):
        x, *c, omega, entering, taps, ends, outs, transition, powers = ctx.saved_tensors
        c, m, pieces = Coefficients(*c), Matrices(taps, ends, outs, transition, powers), ctx.pieces
        dim, order = c.p.shape
        d_y = _apart(d_y, entering.dtype, ctx.block, pieces)
        blocks = _apart(x, entering.dtype, ctx.block, pieces)
        flat = entering.view(dim, -1, 2 * order)
        d_y_first = d_y[:, : flat.shape[1]]
        d_e, d_transition, d_state = scan_backward(
            torch.bmm(d_y_first, outs.mT).view_as(entering),
            d_last.transpose(0, 1),
            entering,
            transition,
            None if pieces is None else pieces.continues,
        )
        d_e = d_e.view_as(flat)
        d_x = torch.bmm(d_y, taps.mT)
        if pieces is None:
            d_x.baddbmm_(d_e, ends.mT)
        else:
            d_x.index_add_(1, pieces.last, torch.bmm(d_e, ends.mT))
        *d_c, d_omega = matrices_backward(
            c,
            m,
            diagonal_sums(blocks, d_y),
            torch.bmm(_last(blocks, pieces).mT, d_e),
            torch.bmm(flat.mT, d_y_first),
            d_transition,
        )
        d_state = d_state.transpose(0, 1).to(ctx.state_dtype)
        return _together(d_x, x, pieces), *d_c, d_omega.to(omega.dtype), d_state, None, None
