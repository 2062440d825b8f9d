"""Rotary position embedding with positions that count from the chunk's first token.

Pairs are adjacent features (x_2j, x_2j+1), as in the original LLaMA code. Angles are made in
float64 where they are used and are no buffer of a module, so no cast of a model can round them.
"""

from functools import lru_cache

import torch
from torch import Tensor

from litmegalodon.ops.dispatch import compute_dtype

# Chunks above this, or none at all, get the rows that they need and no table of all places.
LONGEST_TABLE = 2**17


@lru_cache(maxsize=16)
def table(size: int, dim: int, base: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(i pos base^(-2j / z)) for pos < size, as complex [size, z / 2]."""
    with torch.inference_mode(False), torch.no_grad():
        return _factors(torch.arange(size, device=device), dim, base, dtype)


def _factors(positions: Tensor, dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """exp(i pos base^(-2j / z)), complex [..., z / 2]."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    angle = positions[..., None] * base**-exponents
    factors = torch.polar(torch.ones_like(angle), angle)
    return factors.to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def rotation(positions: Tensor, dim: int, chunk_size: int, base: float, like: Tensor) -> Tensor:
    """Factors of `rotate` for chunk positions [B, L] (or [1, L]): complex [B, L, 1, dim / 2]."""
    if chunk_size > LONGEST_TABLE:
        return _factors(positions, dim, base, compute_dtype(like))[:, :, None]
    return table(chunk_size, dim, base, compute_dtype(like), like.device)[positions][:, :, None]


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate x [B, L, H, z] by `rotation`'s factors."""
    pairs = torch.view_as_complex(x.to(compute_dtype(x)).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * factors).flatten(-2).to(x.dtype)
