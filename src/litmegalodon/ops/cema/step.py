"""CEMA of a single token a row, without gradients: the recurrence as it is written.

Its coefficients cost far more than the step and are the same until the parameters change, so they
are kept with a copy of the parameters that they were made of.

Shapes: B batch, D channels, N order.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from litmegalodon.ops.cema.coefficients import coefficients
from litmegalodon.ops.dispatch import compute_dtype


class StepCoefficients(NamedTuple):
    """q complex128 and p float64, [D, N]; conj(g) as pairs (re, im), [D, 2N]."""

    q: Tensor
    p: Tensor
    out: Tensor


class KeptCoefficients:
    """The coefficients of one layer, made anew whenever its parameters have other values.

    Values are compared, not versions or addresses: what shards parameters gathers others into the
    same memory, and `.data` is written without a trace. Copies of a module, and what is pickled,
    begin without.
    """

    def __init__(self) -> None:
        self._made: tuple[tuple[Tensor, ...], torch.dtype, StepCoefficients] | None = None

    def __call__(self, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> StepCoefficients:
        """Of alpha, delta, theta and gamma, to compute in `dtype`."""
        # Another thread may put others in its place meanwhile.
        made = self._made
        if made is None or made[1] != dtype or not _same(made[0], parameters):
            copies = tuple(parameter.detach().clone() for parameter in parameters)
            made = self._made = (copies, dtype, _coefficients(copies, dtype))
        return made[2]

    def __reduce__(self) -> tuple:
        return KeptCoefficients, ()


def cema_step(
    x: Tensor, c: StepCoefficients, omega: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """x [B, D], h [B, D, N, 2] -> y [B, D] in x's dtype, h; see `litmegalodon.ops`."""
    dtype = compute_dtype(x)
    # In float64: near |q| = 1 a float32 q has lost the half-life.
    h = torch.view_as_real(torch.view_as_complex(state.double().contiguous()) * c.q)
    h[..., 0].addcmul_(c.p, x.double()[..., None])
    h = h.to(dtype)
    y = torch.linalg.vecdot(h.flatten(2), c.out)
    return y.addcmul_(x.to(dtype), omega.to(dtype).squeeze(1)).to(x.dtype), h


def _coefficients(parameters: tuple[Tensor, ...], dtype: torch.dtype) -> StepCoefficients:
    c = coefficients(*parameters)
    exponent = torch.ones(1, device=c.p.device)
    q = torch.complex(*c.powers(exponent, torch.float64)).squeeze(-1)
    return StepCoefficients(q, c.p, torch.stack([c.g_re, -c.g_im], dim=-1).flatten(1).to(dtype))


def _same(copies: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> bool:
    return all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(copies, parameters, strict=True)
    )
