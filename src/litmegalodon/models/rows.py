"""What the row-wise parts of a block share: they treat every token alike, so on a CPU they go over
the tokens in tiles whose intermediates stay in the cache, and save pre-activations only.

Their backward passes are written by hand: what is cheap to make again (norms, gates, silu) is made
again, and weight gradients are summed in place.
"""

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


def accumulators(*tensors: Tensor | None) -> list[Tensor | None]:
    """Accumulators for gradients, float32 or better.

    A backward pass returns them as they are: autograd casts each to the dtype that its parameter's
    gradient has, which need not be the parameter's.
    """
    return [
        None if t is None else torch.zeros(t.shape, dtype=compute_dtype(t), device=t.device)
        for t in tensors
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
    """Dropout of [rows, width] features with a mask drawn once, for tiles and the backward pass.

    A function that uses it keeps `mask` among its saved tensors, so that activation checkpointing
    lets go of it too.
    """

    def __init__(self, probability: float, mask: Tensor | None):
        self.probability, self.mask = probability, mask

    @classmethod
    def draw(cls, probability: float, rows: int, width: int, device: torch.device) -> "Dropout":
        """A new mask, from torch's default generator; none without dropout."""
        kept = torch.rand(rows, width, device=device) >= probability if probability else None
        return cls(probability, kept)

    def __call__(self, x: Tensor, tile: slice) -> Tensor:
        """Rows `tile` of the input or of the output's gradient: it is its own derivative."""
        if self.mask is None:
            return x
        return torch.where(self.mask[tile], x, 0).mul_(1.0 / (1.0 - self.probability))
