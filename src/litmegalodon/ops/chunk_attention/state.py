"""What attention remembers: the keys and values of the chunk that is not yet full."""

from typing import NamedTuple

import torch
from torch import Tensor


class KeyValueState(NamedTuple):
    """Rotated keys [B, S, H, z] and values [B, S, H, e] of the current chunk, by place in it.

    S is the largest (position mod C) of the rows, not C: training mostly ends on a chunk boundary,
    where S = 0, and at 7B full-size buffers would be 2.4 GiB of zeros a sequence. length int64 [B]
    is how many slots before (position mod C) a row may see: fewer than that where a document began
    inside the chunk. The others hold zeros.
    """

    k: Tensor
    v: Tensor
    length: Tensor

    @classmethod
    def fresh(cls, k: Tensor, v: Tensor) -> "KeyValueState":
        """The empty state for keys and values shaped like k [B, L, H, z] and v [B, L, H, e]."""
        length = torch.zeros(k.shape[0], dtype=torch.int64, device=k.device)
        return cls(k[:, :0], v[:, :0], length)
