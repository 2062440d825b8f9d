"""DropKey: which (query, key) pairs are hidden, as a counter function of where they stand.

A pair is dropped with probability p before the softmax, without rescaling. The mask depends on
nothing but (seed, row, chunk, head, query, key), so the backward pass, another split into calls or
another implementation makes the same one.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(h: Tensor) -> Tensor:
    """A 32-bit avalanche (xor-shifts, odd multiplications) on int64 tensors of 32-bit values."""
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & _MASK
    h = h ^ (h >> 15)
    h = (h * 0x846CA68B) & _MASK
    return h ^ (h >> 16)


def _absorb(h: Tensor, value: Tensor) -> Tensor:
    return _mix((h + (value & _MASK) * 0x9E3779B1 + 1) & _MASK)


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
    h = torch.tensor(seed & _MASK, dtype=torch.int64, device=row.device)
    h = _absorb(_absorb(h, torch.tensor(seed >> 32, device=row.device)), row)
    h = _absorb(h, chunk)[:, None]
    h = _absorb(h, torch.arange(heads, device=row.device))
    h = _absorb(h[:, :, None], query[:, None])[..., None]
    h = _absorb(h, key[:, None, None])
    return h < int(probability * 2**32)
