"""Loss by how much of a document came before: what a long memory buys (the paper's figure 5).

Each held-out document, or several joined to one text, is read whole, in pieces of some chunks on
the state; and again with its context cut to the last k chunks. Losses are collected by position in
buckets of powers of two.

Shapes: n tokens of a document, C chunk_size.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics import Metric

from litmegalodon.data.datamodule import TextDataModule
from litmegalodon.evaluation.drawing import WHOLE, draw_losses
from litmegalodon.evaluation.ranges import check_whole
from litmegalodon.models import Megalodon, MegalodonState

# Positions up to 2^40.
BUCKETS = 41
# The released code's inference: from so many chunks on, statistics are those of the last so many.
REESTIMATE_FROM, REESTIMATE_OVER = 8, 6


class PositionLoss(Metric):
    """Mean loss of the tokens at positions [2^i, 2^(i+1)), exact over ranks.

    A token's position is the number of tokens before it.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self.add_state("nll", torch.zeros(BUCKETS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(BUCKETS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, first: int) -> None:
        """Add negative log-likelihoods in nats [n], of the tokens at positions `first` and on."""
        position = torch.arange(first, first + len(nll), device=nll.device)
        bucket = position.double().log2().floor().long()
        self.nll.index_add_(0, bucket, nll.double())
        self.tokens.index_add_(0, bucket, torch.ones_like(bucket))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Nats a token float64 [buckets], NaN where there is none, and numbers of tokens."""
        return self.nll / self.tokens, self.tokens


class LossByPosition(nn.Module):
    """The loss at every distance from a document's beginning, in full and with less context.

    Args:
        dirpath: gets context.csv and context.png.
        contexts: numbers of chunks that a token's chunk and what is before it are cut to; the
            whole document is always read too.
        piece: chunks that are read at a time: memory grows with it, the result does not change.
        max_tokens: of longer documents only as many are read.
        joined: texts that the documents are joined to without a boundary, each all of them from
            another one on; None for each document by itself.
        reestimate: replace the norms' statistics after every 2 chunks by those of the last 6, as
            the released code's inference does from 8 chunks on; `piece` is 2 then.

    Raises:
        ValueError: a setting is out of range.
    """

    reads_held_out = True
    # Names of what is written.
    outputs = ("context.csv", "context.png")

    def __init__(
        self,
        dirpath: str,
        contexts: Sequence[int] = (1, 4, 16),
        piece: int = 16,
        max_tokens: int | None = None,
        joined: int | None = None,
        reestimate: bool = False,
    ) -> None:
        super().__init__()
        check_whole(1, contexts=list(contexts), piece=piece)
        if max_tokens is not None:
            check_whole(2, max_tokens=max_tokens)
        if joined is not None:
            check_whole(1, joined=joined)
        self.dirpath = Path(dirpath)
        self.contexts = sorted(set(contexts))
        self.piece = 2 if reestimate else piece
        self.max_tokens, self.joined, self.reestimate = max_tokens, joined, reestimate
        self.whole = PositionLoss()
        self.cut = nn.ModuleDict({str(k): PositionLoss() for k in self.contexts})

    def loader(self, data: TextDataModule) -> DataLoader:
        """The texts to be read."""
        texts = data.whole_documents(self.max_tokens, self.joined)
        return DataLoader(texts, batch_size=None)

    @torch.no_grad()
    def read(self, model: Megalodon, batch: dict[str, Any]) -> None:
        """Read one document in every way asked for."""
        tokens, longest = batch["tokens"], batch["longest"]
        first = max(1, batch["unpredicted"])
        for start, nll in self._whole(model, tokens, longest):
            _add(self.whole, start, nll, first)
        for k in self.contexts:
            for start, nll in _windows(model, tokens, longest, k, self.piece):
                _add(self.cut[str(k)], start, nll, first)

    def results(self, is_main: bool) -> dict[str, Tensor]:
        """Write the table and the picture; metrics of all positions together by name."""
        found = {"whole": self.whole.compute()}
        for k in self.contexts:
            found[f"{k} chunk{'s' if k > 1 else ''}"] = self.cut[str(k)].compute()
        if is_main:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            _write(self.dirpath / self.outputs[0], found)
            labels = {name: f"the last {name}" for name in found}
            labels["whole"] = WHOLE
            curves = {labels[name]: _curve(*values) for name, values in found.items()}
            draw_losses(self.dirpath / self.outputs[1], curves)
        return {
            f"context/{name.replace(' ', '_')}": (loss.nan_to_num() * tokens).sum() / tokens.sum()
            for name, (loss, tokens) in found.items()
        }

    def _whole(
        self, model: Megalodon, tokens: Tensor, longest: int
    ) -> Iterator[tuple[int, Tensor]]:
        """(position of the first, losses) of the tokens, read on one state."""
        state, size = None, self.piece * model.config.chunk_size
        for start in range(0, longest, size):
            piece = tokens[:, start : start + size]
            logits, state = _call(model, piece, state)
            targets = tokens[:, start + 1 : start + 1 + size]
            yield start + 1, _nll(logits, targets, model.config.chunk_size)
            if self.reestimate:
                state = self._reestimated(model, tokens, start + size, longest, state)

    def _reestimated(
        self, model: Megalodon, tokens: Tensor, end: int, longest: int, state: MegalodonState
    ) -> MegalodonState:
        chunk = model.config.chunk_size
        if end < REESTIMATE_FROM * chunk or end > longest:
            return state
        window = tokens[:, end - REESTIMATE_OVER * chunk : end]
        _, fresh = _call(model, window, None, last_only=True)
        if tokens.shape[1] < end:
            return state
        layers = tuple(
            layer._replace(norm=new.norm)
            for layer, new in zip(state.layers, fresh.layers, strict=True)
        )
        return MegalodonState(state.position, layers, fresh.norm)


def _windows(
    model: Megalodon, tokens: Tensor, longest: int, chunks: int, piece: int
) -> Iterator[tuple[int, Tensor]]:
    """(position of the first, losses) of the tokens, each chunk read after `chunks` - 1 others,
    these in pieces of `piece` chunks.
    """
    size = model.config.chunk_size
    for start in range(0, longest, size):
        state = None
        for first in range(max(0, start - (chunks - 1) * size), start, piece * size):
            before = tokens[:, first : min(first + piece * size, start)]
            _, state = _call(model, before, state, last_only=True)
        logits, _ = _call(model, tokens[:, start : start + size], state)
        yield start + 1, _nll(logits, tokens[:, start + 1 : start + 1 + size], size)


def _call(
    model: Megalodon, piece: Tensor, state: MegalodonState | None, last_only: bool = False
) -> tuple[Tensor, MegalodonState | None]:
    """A forward pass, of one token where there is none left: sharded parameters need the call."""
    if piece.shape[1]:
        return model(piece, state, last_only=last_only)
    logits, _ = model(piece.new_zeros(1, 1))
    return logits[:, :0], state


def _nll(logits: Tensor, targets: Tensor, size: int) -> Tensor:
    """Losses float64 [n] of the targets [1, n], `size` at a time: so many logits are copied."""
    found = [
        cross_entropy(some[: len(wanted)].double(), wanted, reduction="none")
        for some, wanted in zip(logits[0].split(size), targets[0].split(size), strict=False)
    ]
    return torch.cat(found)


def _add(metric: PositionLoss, start: int, nll: Tensor, first: int) -> None:
    skipped = max(0, first - start)
    if len(nll) > skipped:
        metric.update(nll[skipped:], start + skipped)


def _curve(loss: Tensor, tokens: Tensor) -> list[tuple[int, float]]:
    """(first position, loss) of the buckets that hold tokens."""
    return [(2**i, float(loss[i])) for i in range(BUCKETS) if tokens[i]]


def _write(path: Path, found: dict[str, tuple[Tensor, Tensor]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["context", "from", "to", "tokens", "loss", "perplexity"])
        for name, (loss, tokens) in found.items():
            for i in range(BUCKETS):
                if tokens[i]:
                    place = (name, 2**i, 2 ** (i + 1) - 1, int(tokens[i]))
                    writer.writerow([*place, float(loss[i]), float(loss[i].exp())])
