"""What TimestepNorm remembers of the past."""

from typing import NamedTuple

import torch
from torch import Tensor


class NormState(NamedTuple):
    """Number of tokens seen, and mean and biased variance of everything seen.

    count int64 [B]; mean, var float64 [B, G]. With count 0 the next token is normalised by itself
    alone.
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    @classmethod
    def fresh(cls, batch: int, groups: int, device: torch.device | None = None) -> "NormState":
        """The state before any token."""
        return cls(
            torch.zeros(batch, dtype=torch.int64, device=device),
            torch.zeros(batch, groups, dtype=torch.float64, device=device),
            torch.ones(batch, groups, dtype=torch.float64, device=device),
        )
