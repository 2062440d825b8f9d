"""From CEMA's parameters to the numbers of its recurrence.

Everything starts in float64: near |q| = 1 a float32 q has lost the half-life (1 - |q| = 1e-5 keeps
two digits).

Shapes: D channels, N order, T number of powers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """What h_t = q h_{t-1} + p x_t, y_t = Re sum_n g_n h_{t,n} needs; float64 [D, N]."""

    p: Tensor
    log_decay: Tensor
    angle: Tensor
    g_re: Tensor
    g_im: Tensor

    def powers(self, exponents: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of q^l for l in exponents [T], as [D, N, T] in `dtype`.

        Exponent and phase are formed in float64 and the phase is wrapped there, so float32 rounds
        only the result.
        """
        log_magnitude = (self.log_decay[..., None] * exponents).to(dtype)
        turns = self.angle[..., None] * exponents / (2 * math.pi)
        phase = ((turns - turns.detach().round()) * (2 * math.pi)).to(dtype)
        magnitude = log_magnitude.exp()
        return magnitude * phase.cos(), magnitude * phase.sin()


def coefficients(alpha: Tensor, delta: Tensor, theta: Tensor, gamma: Tensor) -> Coefficients:
    """Compute the recurrence's coefficients, differentiably, in float64.

    Args:
        alpha, delta: [D, N, 1]; theta: [D, 1, 1]; gamma: [D, N, 2].
    """
    order = alpha.shape[1]
    p = alpha.double().squeeze(-1).sigmoid()
    # Where |q| rounds to 0 its logarithm would be infinite; exp(-700) is 1e-304.
    log_decay = torch.log1p(-p * delta.double().squeeze(-1).sigmoid()).clamp(min=-700.0)
    n = torch.arange(1, order + 1, dtype=torch.float64, device=alpha.device)
    angle = n * theta.double().squeeze(-1).sigmoid() * (2 * math.pi / order)
    g_re, g_im = (gamma.double() / math.sqrt(order)).unbind(-1)
    return Coefficients(p, log_decay, angle, g_re, g_im)
