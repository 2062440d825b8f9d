"""CEMA as its definition says it, one token after another."""

import torch
from torch import Tensor

from litmegalodon.ops.cema.coefficients import coefficients
from litmegalodon.ops.dispatch import compute_dtype


def cema_reference(
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
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    batch, length, dim = x.shape
    c = coefficients(alpha, delta, theta, gamma)
    p = c.p.to(dtype)
    q = torch.polar(c.log_decay.exp(), c.angle).to(complex_dtype)
    g = torch.complex(c.g_re, c.g_im).to(complex_dtype)
    weight = omega.to(dtype).squeeze(-1)

    h = x.new_zeros(batch, dim, alpha.shape[1], dtype=complex_dtype)
    if state is not None:
        h = torch.view_as_complex(state.to(dtype).contiguous())
    outputs = []
    for t in range(length):
        x_t = x[:, t].to(dtype)
        if resets is not None:
            h = torch.where(resets[:, t, None, None], 0, h)
        h = q * h + p * x_t[..., None]
        outputs.append((g * h).real.sum(-1) + weight * x_t)
    return torch.stack(outputs, dim=1).to(x.dtype), torch.view_as_real(h)
