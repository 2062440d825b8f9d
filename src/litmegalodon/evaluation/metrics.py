"""What a language model's validation is measured by."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenLoss(Metric):
    """Mean negative log-likelihood a valid token, exact over ranks and uneven batches.

    Sums are float64: a validation of millions of tokens loses nothing.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, tokens: Tensor) -> None:
        """Add a sum of negative log-likelihoods in nats, and the number of tokens it is over."""
        self.nll += nll.detach().double()
        self.tokens += tokens

    def compute(self) -> Tensor:
        """Nats a token, float64."""
        return self.nll / self.tokens


class Answers(Metric):
    """Right answers and right tokens of them by cell, exact over ranks and uneven batches."""

    full_state_update = False

    def __init__(self, cells: int = 0) -> None:
        super().__init__()
        for name in ("asked", "right", "tokens", "tokens_right"):
            zeros = torch.zeros(cells, dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, cell: int, hits: Tensor, counted: Tensor) -> None:
        """Add rows: whether the likeliest token is the target, and where that counts, bool [b, n].

        Rows in which nothing counts are not asked.
        """
        asked = counted.any(-1)
        self.asked[cell] += asked.sum()
        self.right[cell] += (asked & (hits | ~counted).all(-1)).sum()
        self.tokens[cell] += counted.sum()
        self.tokens_right[cell] += (hits & counted).sum()

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Questions int64 [cells], fractions float64 of right answers and of right tokens."""
        return (
            self.asked,
            self.right.double() / self.asked,
            self.tokens_right.double() / self.tokens,
        )


def bits_per_byte(nats_per_token: Tensor | float, tokens_per_byte: float) -> Tensor | float:
    """The loss in bits a byte of text; the bytes pay for the end-of-document tokens too."""
    return nats_per_token / math.log(2) * tokens_per_byte
