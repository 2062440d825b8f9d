"""The recurrence over blocks: h_{j+1} = e_j + (q^T h_j where the block continues), in float64.

Shapes: B batch, D channels, N order, J blocks or pieces a row; e and h are pairs (re, im).
"""

import torch
from torch import Tensor

from litmegalodon.ops.cema.pieces import Pieces


def scan(e: Tensor, transition: Tensor, h: Tensor, pieces: Pieces | None) -> tuple[Tensor, Tensor]:
    """States that enter each block, and the one that leaves a row's last.

    Args:
        e: [D, B, J, N, 2], what each block's tokens leave at its end.
        transition: complex128 [D, N].
        h: [D, B, N, 2], the state before the first block.

    Returns:
        [D, B, J, N, 2] and [D, B, N, 2] in e's dtype; a block that begins a document is entered by
        zero.
    """
    q = transition[:, None]  # D x 1 x N
    entering = torch.empty_like(e)
    e, into = torch.view_as_complex(e), torch.view_as_complex(entering)
    state = torch.view_as_complex(h.double().contiguous())
    last = state
    for j in range(e.shape[2]):
        if pieces is not None:
            state = torch.where(pieces.continues[None, :, j, None], state, 0)
        into[:, :, j] = state
        state = torch.addcmul(e[:, :, j], q, state)
        if pieces is not None:
            last = torch.where((pieces.counts == j + 1)[None, :, None], state, last)
    return entering, torch.view_as_real(state if pieces is None else last).to(entering.dtype)


def scan_backward(
    d_entering: Tensor,
    d_last: Tensor,
    entering: Tensor,
    transition: Tensor,
    pieces: Pieces | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of e [D, B, J, N, 2], of the transition complex128 [D, N] and of h [D, B, N, 2]."""
    q = transition.conj()[:, None]
    d_e = torch.empty_like(entering)
    into, d_enter = torch.view_as_complex(d_e), torch.view_as_complex(d_entering)
    d_last = torch.view_as_complex(d_last.double().contiguous())
    grad = d_last if pieces is None else torch.zeros_like(d_last)
    for j in reversed(range(d_e.shape[2])):
        if pieces is not None:
            grad = torch.where((pieces.counts == j + 1)[None, :, None], d_last, grad)
        into[:, :, j] = grad
        grad = torch.addcmul(d_enter[:, :, j], q, grad)
        if pieces is not None:
            grad = torch.where(pieces.continues[None, :, j, None], grad, 0)
    # The gradient that leaves a block meets the state that entered it.
    through = into * torch.view_as_complex(entering).conj()
    d_transition = through.sum((1, 2), dtype=torch.complex128)
    return d_e, d_transition, torch.view_as_real(grad).to(d_e.dtype)
