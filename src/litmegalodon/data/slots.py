"""Rows and batches of slots: each row of a batch goes on where the same row of the last one ended.

    packed   BOS a b EOS BOS c | d EOS BOS e f EOS | ...                   rows of a slot
    lanes    BOS a b EOS . .   | BOS c d EOS . .   | BOS e f g h i | ...   .: padding, ignored

In `lanes` the model carries its state from row to row, so a document of any length is read whole;
a document begins at a chunk boundary, the rest of the chunk before it is padding.

Shapes: L seq_len, b rows of a batch on this process, w numbers of a place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from litmegalodon.data.ahead import ahead
from litmegalodon.data.packing import Row, empty_row
from litmegalodon.data.streams import Reader

Batch = dict[str, torch.Tensor]
Arrays = dict[str, np.ndarray]


@dataclass
class Position:
    """Where training stands: the global index of the first sample not trained, and the places of
    this process' slots, [b, w], None where the index says it all.
    """

    cursor: int = 0
    places: np.ndarray | None = None


@dataclass(frozen=True)
class Cut:
    """How tokens become rows of L: with documents at multiples of `align` only, 1 for anywhere."""

    seq_len: int
    eos_id: int
    reset_documents: bool
    align: int = 1


def rows(reader: Reader, place: np.ndarray, cut: Cut) -> Iterator[tuple[Row, int, np.ndarray]]:
    """(row, its padding in positions, place after it) without end, from a place on.

    `cut.align` must divide L.
    """
    pieces = reader.pieces(place)
    # What is left of the piece at hand; fetched only when it is needed, so that no place that is
    # left out is counted before its time.
    piece = None
    while True:
        tokens, targets, resets = empty_row(cut.seq_len, cut.eos_id)
        filled = padding = 0
        while filled < cut.seq_len:
            piece = piece or next(pieces)
            if piece.opens:
                gap = -filled % cut.align
                padding, filled = padding + gap, filled + gap
                if filled == cut.seq_len:
                    break
                resets[filled] = cut.reset_documents
            n = min(cut.seq_len - filled, len(piece.tokens))
            tokens[filled : filled + n] = piece.tokens[:n]
            _aim(targets, filled, piece.tokens[:n], piece.unpredicted)
            filled += n
            place = piece.at(n)
            piece, closed = (
                (piece.after(n), False) if n < len(piece.tokens) else (None, piece.closes)
            )
            if filled == cut.seq_len and not closed:
                # The last position's target is the token that opens the next row.
                piece = piece or next(pieces)
                _aim(targets, filled, piece.tokens[:1], piece.unpredicted)
        yield (tokens, targets, resets), padding, place


def _aim(targets: np.ndarray, at: int, tokens: np.ndarray, unpredicted: int) -> None:
    """Make tokens that stand from position `at` on the targets of the positions before them."""
    first = max(unpredicted, 0 if at else 1)
    targets[at - 1 + first : at - 1 + len(tokens)] = tokens[first:]


@dataclass(eq=False)
class SlotBatches(IterableDataset):
    """Endless batches from `position` on: all of the given slots, or a worker's part of them.

    readers: of this process' slots, in order; cursor counts samples over all processes, `slots` a
    batch.
    """

    readers: Sequence[Reader]
    cut: Cut
    position: Position
    slots: int

    def __iter__(self) -> Iterator[Arrays]:
        worker = get_worker_info()
        w, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = np.array_split(np.arange(len(self.readers)), workers)[w]
        readers = [self.readers[i] for i in mine]
        begun = self.position.places
        streams = [
            rows(reader, np.zeros(reader.width, np.int64) if begun is None else begun[i], self.cut)
            for i, reader in zip(mine, readers, strict=True)
        ]
        cursor = self.position.cursor
        while True:
            cursor += self.slots
            made, padding, places = zip(*(next(stream) for stream in streams), strict=True)
            left_out = sum(r.left_out(p) for r, p in zip(readers, places, strict=True))
            tokens, targets, resets = (np.stack(part) for part in zip(*made, strict=True))
            yield {
                # Half the bytes to send: no vocabulary is that large.
                "tokens": tokens.astype(np.int32),
                "targets": targets.astype(np.int32),
                "resets": resets,
                "cursor": np.array(cursor),
                "places": np.stack(places),
                "padding": np.array(sum(padding)),
                "left_out": np.array(left_out),
            }


class SlotLoader:
    """Batches of `SlotBatches`, prepared by up to one worker process a row, one of them ahead.

    A thread of this process fetches it while the one before is trained on: putting a batch
    together, or receiving it from a worker, takes no time of training then.
    """

    def __init__(self, batches: SlotBatches, num_workers: int) -> None:
        self.workers = min(num_workers, len(batches.readers))
        # Arrays through a pipe: tensors would go through shared memory, each with a file of its
        # own, and a batch has seven small ones.
        self.loader = DataLoader(
            batches, batch_size=None, num_workers=self.workers, collate_fn=_as_it_is
        )

    def __iter__(self) -> Iterator[Batch]:
        # Workers are started here: a process is better not forked beside a thread at work.
        yield from ahead(self._batches(iter(self.loader)))

    def _batches(self, parts: Iterator[Arrays]) -> Iterator[Batch]:
        # The loader asks its workers in turn, each for its rows of the same batch.
        while True:
            yield _joined([next(parts) for _ in range(max(1, self.workers))])


def _as_it_is(part: Any) -> Any:
    return part


def _joined(parts: list[Arrays]) -> Batch:
    batch = {name: torch.tensor(sum(p[name] for p in parts)) for name in ("padding", "left_out")}
    for name in ("tokens", "targets", "resets", "places"):
        joined = np.concatenate([part[name] for part in parts])
        whole = joined if name == "resets" else joined.astype(np.int64)
        batch[name] = torch.from_numpy(whole)
    return batch | {"cursor": torch.tensor(int(parts[0]["cursor"]))}
