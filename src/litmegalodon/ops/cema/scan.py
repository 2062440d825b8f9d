"""The recurrence over blocks: h_{j+1} = e_j + (q^T h_j where the block continues), in float64.

Shapes: B batch, D channels, N order, J blocks a row; e and h are pairs (re, im).
"""

import torch
from torch import Tensor


def scan(
    e: Tensor, transition: Tensor, h: Tensor, continues: Tensor | None
) -> tuple[Tensor, Tensor]:
    """States that enter each block, and the one that leaves the last.

    Args:
        e: [D, B, J, N, 2], what each block leaves of its last document.
        transition: complex128 [D, N].
        h: [D, B, N, 2], the state before the first block.
        continues: bool [B, J], False where a document begins in a block; None: nowhere.

    Returns:
        [D, B, J, N, 2] and [D, B, N, 2] in e's dtype.
    """
    q = transition[:, None]  # D x 1 x N
    entering = torch.empty_like(e)
    e, into = torch.view_as_complex(e), torch.view_as_complex(entering)
    state = torch.view_as_complex(h.double().contiguous())
    for j in range(e.shape[2]):
        into[:, :, j] = state
        if continues is not None:
            state = torch.where(continues[None, :, j, None], state, 0)
        state = torch.addcmul(e[:, :, j], q, state)
    return entering, torch.view_as_real(state).to(entering.dtype)


def scan_backward(
    d_entering: Tensor,
    d_last: Tensor,
    entering: Tensor,
    transition: Tensor,
    continues: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of e [D, B, J, N, 2], of the transition complex128 [D, N] and of h [D, B, N, 2]."""
    q = transition.conj()[:, None]
    d_e = torch.empty_like(entering)
    into, d_enter = torch.view_as_complex(d_e), torch.view_as_complex(d_entering)
    grad = torch.view_as_complex(d_last.double().contiguous())
    for j in reversed(range(d_e.shape[2])):
        into[:, :, j] = grad
        if continues is not None:
            grad = torch.where(continues[None, :, j, None], grad, 0)
        grad = torch.addcmul(d_enter[:, :, j], q, grad)
    # The gradient that leaves a block meets the state that entered it.
    through = into * torch.view_as_complex(entering).conj()
    if continues is not None:
        through = torch.where(continues[None, :, :, None], through, 0)
    d_transition = through.sum((1, 2), dtype=torch.complex128)
    return d_e, d_transition, torch.view_as_real(grad).to(d_e.dtype)
