"""CEMA over a row that several processes share: what a stretch of tokens leaves, and the sum of it.

The recurrence is linear, with a transition that does not depend on the input. So a stretch's own
tokens leave sum_s q^(L-1-s) p x_s whatever was before them, and the state at a later place is the
sum of what each stretch left times q^(tokens since its end), in float64.

Shapes: B batch, L length, D channels, N order, T block, J stretches; complex numbers are pairs (re,
im).
"""

import math

import torch
from torch import Tensor

from litmegalodon.ops.cema.coefficients import coefficients
from litmegalodon.ops.cema.pytorch import BLOCK
from litmegalodon.ops.cema.scan import scan, scan_backward
from litmegalodon.ops.dispatch import backward_pass, compute_dtype
from litmegalodon.ops.segments import last_run


def end_pytorch(
    x: Tensor,
    alpha: Tensor,
    delta: Tensor,
    theta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    resets: Tensor | None,
) -> Tensor:
    """See `litmegalodon.ops.cema_end`; the products with E and the scan, not those for y."""
    dtype = compute_dtype(x)
    last = last_run(resets)[..., None] if resets is not None and resets.any() else None
    c = coefficients(alpha, delta, theta, gamma)
    block = min(BLOCK, x.shape[1])
    exponents = torch.arange(block - 1, -1, -1, device=x.device)
    ends = torch.stack(c.powers(exponents, dtype), dim=-1) * c.p.to(dtype)[..., None, None]
    step = c.powers(torch.tensor([block], device=x.device), torch.float64)
    transition = torch.complex(*step).squeeze(-1)
    return _End.apply(x, last, ends.transpose(1, 2).flatten(2), transition)  # D x T x 2N


class _End(torch.autograd.Function):
    """The end state of the tokens where bool [B, L, 1] `last` is True, or of all."""

    @staticmethod
    def forward(ctx, x, last, ends, transition):
        batch, (dim, order) = x.shape[0], transition.shape
        e = torch.bmm(_blocks(x, last, ends), ends).view(dim, batch, -1, order, 2)
        entering, h = scan(e, transition, e.new_zeros(dim, batch, order, 2), None)
        ctx.save_for_backward(x, last, ends, transition, entering)
        return h.transpose(0, 1).contiguous()

    @staticmethod
    @backward_pass
    def backward(ctx, d_h):
        x, last, ends, transition, entering = ctx.saved_tensors
        batch, length, dim = x.shape
        d_e, d_transition, _ = scan_backward(
            torch.zeros_like(entering), d_h.transpose(0, 1), entering, transition, None
        )
        d_e = d_e.view(dim, -1, ends.shape[2])
        d_ends = torch.bmm(_blocks(x, last, ends).mT, d_e)
        d_x = torch.bmm(d_e, ends.mT).view(dim, batch, -1)[..., -length:]
        d_x = d_x.permute(1, 2, 0).to(x.dtype).contiguous()
        if last is not None:
            d_x = torch.where(last, d_x, 0)
        return d_x, None, d_ends, d_transition


def _blocks(x: Tensor, last: Tensor | None, ends: Tensor) -> Tensor:
    """[B, L, D] -> [D, BJ, T], the first block of a row filled up with zeros, which leave none."""
    batch, length, dim = x.shape
    block = ends.shape[1]
    if last is not None:
        x = torch.where(last, x, 0)
    out = ends.new_zeros(dim, batch, length + -length % block)
    out[..., -length:] = x.permute(2, 0, 1)
    return out.view(dim, -1, block)


# Stretches that are merged at once: not all, for each of them takes as much as the result.
TOGETHER = 16


def cema_merge(
    ends: Tensor,
    reach: Tensor,
    distances: Tensor,
    alpha: Tensor,
    delta: Tensor,
    theta: Tensor,
    gamma: Tensor,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The state at a place, from what stretches of tokens before it have left.

    It saves for its backward pass as much as one stretch leaves, however many there are.

    Args:
        ends: h that each stretch leaves at its own end, [J, B, D, N, 2].
        reach: bool [J, B], whether the stretch ends before the place and in the place's document.
            What the others left is not looked at, NaN neither.
        distances: int64 [J], tokens from each stretch's end to the place; any number where it does
            not reach.
        alpha, delta, theta, gamma: as in `litmegalodon.ops.cema`.
        known: what this has given before: it is given again, and ends are not looked at.

    Returns:
        h [B, D, N, 2] in float64, and its derivative towards log q, like h, without gradients.
    """
    c = coefficients(alpha, delta, theta, gamma)
    return _Merge.apply(ends, reach, distances.clamp(min=0), c.log_decay, c.angle, *(known or ()))


class _Merge(torch.autograd.Function):
    """h = sum_j q^(d_j) e_j, and sum_j d_j q^(d_j) e_j."""

    @staticmethod
    def forward(ctx, ends, reach, distances, log_decay, angle, *known):
        if known:
            h, slope = known
        else:
            h, slope = ends.new_zeros(2, *ends.shape[1:], dtype=torch.float64)
            for part in _parts(len(ends)):
                # Selected before they are multiplied: 0 times NaN is NaN.
                e = torch.where(reach[part, ..., None, None, None], ends[part].double(), 0)
                there = torch.view_as_complex(e) * _powers(log_decay, angle, distances[part])
                h += torch.view_as_real(there.sum(0))
                there *= distances[part, None, None, None]
                slope += torch.view_as_real(there.sum(0))
        ctx.save_for_backward(reach, distances, log_decay, angle, slope)
        ctx.dtype = ends.dtype
        ctx.mark_non_differentiable(slope)
        return h, slope

    @staticmethod
    @backward_pass
    def backward(ctx, d_h, _):
        reach, distances, log_decay, angle, slope = ctx.saved_tensors
        # Of pairs (re, im): the gradient towards a factor is that of the product times the other's
        # conjugate.
        grad = torch.view_as_complex(d_h.contiguous())
        d_log_q = (grad * torch.view_as_complex(slope).conj()).sum(0)
        d_ends = d_h.new_empty(len(reach), *d_h.shape, dtype=ctx.dtype)
        for part in _parts(len(reach)):
            d_e = torch.view_as_real(grad * _powers(log_decay, angle, distances[part]).conj())
            d_ends[part] = torch.where(reach[part, ..., None, None, None], d_e, 0)
        return d_ends, None, None, d_log_q.real, d_log_q.imag, None, None


def _parts(count: int) -> list[slice]:
    return [slice(i, i + TOGETHER) for i in range(0, count, TOGETHER)]


def _powers(log_decay: Tensor, angle: Tensor, exponents: Tensor) -> Tensor:
    """q^l, complex [J, 1, D, N]."""
    exponents = exponents[:, None, None, None]
    turns = angle * exponents / (2 * math.pi)
    return torch.polar((log_decay * exponents).exp(), (turns - turns.round()) * (2 * math.pi))
