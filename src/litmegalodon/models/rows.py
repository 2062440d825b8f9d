"""What the row-wise parts of a block share: they treat every token alike, so on a CPU they go over
the tokens in tiles whose intermediates stay in the cache, and save pre-activations only.

Their backward passes are written by hand: what is cheap to make again (norms, gates, silu) is made
again, and weight gradients are summed in place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from litmegalodon.ops.dispatch import compute_dtype


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products of x are computed in: autocast's where it is on."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype == torch.float32:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in a dtype; None stays None."""
    return [None if t is None else t.to(dtype) for t in tensors]


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in total's precision where the product itself has a lower one."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def accumulators(*tensors: Tensor | None) -> list[Tensor | None]:
    """Accumulators for gradients, float32 or better."""
    return [
        None if t is None else torch.zeros(t.shape, dtype=compute_dtype(t), device=t.device)
        for t in tensors
    ]


def as_gradients(
    totals: Sequence[Tensor | None], parameters: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Accumulated gradients in the dtype of their parameters."""
    return [
        None if total is None else total.to(p.dtype)
        for total, p in zip(totals, parameters, strict=True)
    ]


def rms(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean x^2 + eps) over the last dimension, and the factor 1 / sqrt(...)."""
    factor = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
    return x * factor, factor


def rms_backward(grad: Tensor, normed: Tensor, factor: Tensor) -> Tensor:
    """Gradient of `rms` towards x."""
    along = torch.linalg.vecdot(grad, normed).div_(normed.shape[-1]).unsqueeze(-1)
    return torch.addcmul(grad, normed, along, value=-1).mul_(factor)


class Dropout:
    """Dropout of [rows, width] features with a mask drawn once, for tiles and the backward pass."""

    def __init__(self, probability: float, rows: int, width: int, device: torch.device):
        self.scale = 1.0 / (1.0 - probability)
        self.keep = torch.rand(rows, width, device=device) >= probability if probability else None

    def __call__(self, x: Tensor, tile: slice) -> Tensor:
        """Rows `tile` of the input or of the output's gradient: it is its own derivative."""
        if self.keep is None:
            return x
        return torch.where(self.keep[tile], x, 0).mul_(self.scale)
