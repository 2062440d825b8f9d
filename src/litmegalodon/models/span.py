"""Rows that several processes read together, each its own stretch of tokens.

Every process computes, a layer, the state that its own tokens leave (TimestepNorm's statistics,
CEMA's h), all gather these small states, and each merges those before its own: none waits for
another's forward pass. Where documents begin is known of the whole row, so counts, and which state
reaches how far, are derived and not sent.

Shapes: B batch, P processes, l tokens of a row on each, G groups, D channels, N order. Sources of
state are numbered 0 (what the row began with) and 1 to P (what each process's tokens leave).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from litmegalodon.ops import NormState, cema_merge, timestep_norm_merge


class Exchange(Protocol):
    """How the processes that read the same rows hand tensors to one another.

    Attributes:
        rank: place of this process's stretch in the row.
        size: P.
    """

    rank: int
    size: int

    def start(self, local: Tensor) -> Callable[[], Tensor]:
        """Start to gather a tensor of equal shape from all processes, without waiting.

        Returns:
            A function that waits and gives [P, *local.shape]. A gradient of the result is summed
            over all processes and goes back to each one's `local`: every process must use it.
        """


class Span:
    """This process's stretch of every row of a batch: tokens [rank l, (rank + 1) l).

    Args:
        exchange: what connects the processes.
        resets: bool [B, P l], where documents begin in the whole rows.

    Raises:
        ValueError: the row is not P equal stretches.
    """

    def __init__(self, exchange: Exchange, resets: Tensor):
        size, row = exchange.size, resets.shape[1]
        if row % size:
            raise ValueError(f"rows of {row} tokens can't be shared by {size} processes equally")
        self._exchange = exchange
        self._kept: dict[str, Any] | None = None
        self.rank, self.size, self.length = exchange.rank, size, row // size
        parts = resets.unflatten(1, (size, -1))  # B x P x l
        since = torch.arange(self.length, 0, -1, device=resets.device)
        # Tokens of each stretch's last document.
        self._counts = torch.where(parts, since, self.length).amin(2).t()  # P x B
        begun = parts.any(2).long().cumsum(1).t()
        # How many of the stretches before a place a document begins in.
        self._begun = torch.cat([torch.zeros_like(begun[:1]), begun])  # P+1 x B

    def part(self, x: Tensor) -> Tensor:
        """This process's stretch [B, l] of whole rows [B, P l]."""
        return x[:, self.rank * self.length : (self.rank + 1) * self.length]

    def once(self) -> "Span":
        """The same span for a block that is computed again in the backward pass.

        What it has gathered is not gathered a second time. Statistics are kept as they came; of
        CEMA's states, which are larger, what they were merged to.
        """
        span = object.__new__(Span)
        span.__dict__ |= self.__dict__
        span._kept = {}
        return span

    def gather(self, name: str, local: Tensor) -> Callable[[], Tensor]:
        """Start to gather a tensor, see `Exchange.start`; a block does so once for each name."""
        kept = self._kept
        if kept is None:
            return self._exchange.start(local)
        if name in kept:
            again = kept[name]
            if again is None:
                # Not looked at any more.
                again = local.new_zeros(()).expand(self.size, *local.shape)
            # As differentiable as the first time, so that as much is saved for the backward pass.
            again = again.detach().requires_grad_(local.requires_grad)
            return lambda: again
        wait = self._exchange.start(local)

        def finish() -> Tensor:
            gathered = wait()
            kept[name] = None if name == "cema" else gathered.detach()
            return gathered

        return finish

    def norm_states(self, gathered: Tensor, state: NormState | None) -> tuple[NormState, NormState]:
        """Statistics before this stretch, and those after the row, without gradients.

        Args:
            gathered: mean and variance of each stretch's last document, [P, 2, B, G].
            state: statistics before the row; none by default.
        """
        if state is None:
            state = NormState.fresh(*gathered.shape[2:], gathered.device)
        ends = NormState(
            torch.cat([state.count[None], self._counts]),
            torch.cat([state.mean[None].double(), gathered[:, 0].double()]),
            torch.cat([state.var[None].double(), gathered[:, 1].double()]),
        )
        entering = timestep_norm_merge(ends, self._reach(self.rank))
        with torch.no_grad():
            return entering, timestep_norm_merge(ends, self._reach(self.size))

    def cema_states(
        self, gathered: Tensor, state: Tensor | None, coefficients: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """h before this stretch, and that after the row, without gradients; in gathered's dtype.

        Args:
            gathered: h that each stretch leaves, [P, B, D, N, 2].
            state: h before the row, [B, D, N, 2]; zero by default.
            coefficients: alpha, delta, theta, gamma of CEMA.
        """
        dtype = gathered.dtype
        sources = torch.arange(self.size + 1, device=gathered.device)
        known = (self._kept or {}).get("cema states")
        if known is None:
            before = torch.zeros_like(gathered[0]) if state is None else state.to(dtype)
            ends = torch.cat([before[None], gathered])
        else:
            ends = gathered[:1].expand(self.size + 1, *gathered.shape[1:])

        def at(place: int, known: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
            distances = (place - sources) * self.length
            return cema_merge(ends, self._reach(place), distances, *coefficients, known)

        entering, slope = at(self.rank, known and known[:2])
        if known is None:
            with torch.no_grad():
                after = at(self.size)[0].to(dtype)
            if self._kept is not None:
                self._kept["cema states"] = (entering.detach(), slope, after)
        else:
            after = known[2]
        return entering.to(dtype), after

    def _reach(self, place: int) -> Tensor:
        """Which sources' last document is still open where stretch `place` begins: [P+1, B]."""
        before = torch.arange(self.size + 1, device=self._begun.device) <= place
        return before[:, None] & (self._begun == self._begun[place])
