"""Runs of tokens that must not see one another, worked on without a loop per run.

A run is cut out, worked on and put back; nothing is masked by multiplying with zero or undone by
subtracting. So no bit, NaN or overflow of one document can reach another, forward or backward.

Shapes: B batch, L length, K features; tokens are numbered flat, b * L + t.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


class Segments:
    """The runs of a [B, L] grid that begin where `boundaries` is True and at each row's start.

    Args:
        boundaries: bool [B, L].
    """

    def __init__(self, boundaries: Tensor):
        batch, length = boundaries.shape
        begins = boundaries.clone()
        begins[:, 0] = True
        self.shape = (batch, length)
        self.starts = begins.flatten().nonzero().squeeze(1)
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([batch * length])])
        self.lengths = ends - self.starts
        self.of_token = begins.flatten().long().cumsum(0) - 1

    def first(self, values: Tensor) -> Tensor:
        """Give every token the value of its run's first token; values [B, L, ...]."""
        flat = values.flatten(0, 1)
        return flat[self.starts[self.of_token]].view_as(values)

    def buckets(
        self, select: Tensor | None = None, step: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Group runs of similar length into padded batches of at most twice their tokens.

        Args:
            select: bool [number of runs], the runs wanted; all by default.
            step: runs longer than this differ by less than it in their batch.

        Yields:
            runs [n] (indices of runs), tokens int64 [n, S] (flat indices, 0 where padded), valid
            bool [n, S].
        """
        wanted = torch.arange(len(self.starts), device=self.starts.device)
        if select is not None:
            wanted = wanted[select]
        lengths = self.lengths[wanted]
        size_class = lengths.double().log2().ceil().long()
        if step is not None:
            size_class = torch.where(lengths > step, 64 + (lengths + step - 1) // step, size_class)
        for c in size_class.unique().tolist():
            runs = wanted[size_class == c]
            lengths = self.lengths[runs, None]
            offsets = torch.arange(int(lengths.max()), device=runs.device)
            valid = offsets < lengths
            tokens = torch.where(valid, self.starts[runs, None] + offsets, 0)
            yield runs, tokens, valid

    def cumsum(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Cumulative sum of values [B, L, K] along each run; `reverse` sums from the run's end."""
        flat = values.flatten(0, 1)
        out = torch.empty_like(flat)
        for _, tokens, valid in self.buckets():
            run = torch.where(valid[..., None], flat[tokens], 0)
            out[tokens[valid]] = cumsum(run, reverse)[valid]
        return out.view_as(values)


def any_in_groups(flags: Tensor, size: int) -> Tensor:
    """bool [B, L] -> bool [B, L / size, rounded up]: whether any of `size` in a row is True."""
    padded = torch.nn.functional.pad(flags, (0, -flags.shape[1] % size))
    return padded.unflatten(1, (-1, size)).any(-1)


def cumsum(values: Tensor, reverse: bool = False) -> Tensor:
    """Cumulative sum of values [B, L, ...] along L, from the end if `reverse`."""
    return values.flip(1).cumsum(1).flip(1) if reverse else values.cumsum(1)


def last_run(resets: Tensor) -> Tensor:
    """Which tokens belong to the document that a row ends with; both bool [B, L]."""
    return cumsum(resets.long(), reverse=True) == resets.long()
