"""DropKey: which (query, key) pairs are hidden, as a counter function of where they stand.

A pair is dropped with probability p before the softmax, without rescaling. The mask depends on
nothing but (seed, row, chunk, head, query, key), so the backward pass, another split into calls or
another implementation makes the same one.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(h):
    """A 32-bit avalanche (xor-shifts, odd multiplications) on 32-bit values, ints or int64."""
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & _MASK
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & _MASK
    return h ^ (h >> 16)


def _absorb(h, value):
    return _mix((h + (value & _MASK) * 0x9E3779B1 + 1) & _MASK)


def seed_counter(seed: int) -> int:
    """The counter's 32 bits after both halves of a seed."""
    return _absorb(seed & _MASK, seed >> 32)


def dropped(
    probability: float,
    seed: int,
    row: Tensor,
    chunk: Tensor,
    heads: int,
    query: Tensor,
    key: Tensor,
) -> Tensor:
    """The pairs to hide.

    Args:
        row, chunk: int64 [n], a batch row and its chunk's number in the document stream.
        query: int64 [n, Q], key: int64 [n, K], positions inside the chunk.

    Returns:
        bool [n, H, Q, K].
    """
    h = _absorb(seed_counter(seed), row)
    h = _absorb(h, chunk)[:, None]
    h = _absorb(h, torch.arange(heads, device=row.device))
    h = _absorb(h[:, :, None], query[:, None])[..., None]
    h = _absorb(h, key[:, None, None])
    return h < int(probability * 2**32)
