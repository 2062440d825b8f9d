"""Rotary position embedding with positions that count from the chunk's first token.

Pairs are adjacent features (x_2j, x_2j+1), as in the original LLaMA code. Angles are made in
float64 where they are used and are no buffer of a module, so no cast of a model can round them.
"""

from functools import lru_cache

import torch
from torch import Tensor

from litmegalodon.ops.dispatch import compute_dtype


@lru_cache(maxsize=16)
def table(size: int, dim: int, base: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(i pos base^(-2j / z)) for pos < size, as complex [size, z / 2]."""
    with torch.inference_mode(False), torch.no_grad():
        frequency = base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
        angle = torch.arange(size, dtype=torch.float64, device=device)[:, None] * frequency
        table = torch.polar(torch.ones_like(angle), angle)
        return table.to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def rotation(positions: Tensor, dim: int, chunk_size: int, base: float, like: Tensor) -> Tensor:
    """Factors of `rotate` for chunk positions [B, L] (or [1, L]): complex [B, L, 1, dim / 2]."""
    return table(chunk_size, dim, base, compute_dtype(like), like.device)[positions][:, :, None]


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate x [B, L, H, z] by `rotation`'s factors."""
    pairs = torch.view_as_complex(x.to(compute_dtype(x)).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * factors).flatten(-2).to(x.dtype)
