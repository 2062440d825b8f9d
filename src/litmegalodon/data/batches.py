"""Batches of rows that can be read in any order: training in the global order, and held-out rows.

Shapes: b rows of a batch on this process, L seq_len.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from litmegalodon.data.mixture import part_at
from litmegalodon.data.order import row_at
from litmegalodon.data.packing import Row, Rows
from litmegalodon.data.slots import Batch, Position


@dataclass(eq=False)
class TrainBatches(IterableDataset):
    """Endless batches of the global order from `position` on, those of one rank.

    rows: of each part of a mixture, by `weights`; one part is the rule.
    """

    rows: Sequence[Rows]
    weights: tuple[float, ...]
    position: Position
    batch_size: int
    seed: int
    shuffle: bool
    rank: int
    world: int

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        w, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # DataLoader asks its workers in turn: each giving every workers-th batch keeps the order.
        return self._batches(self.position.cursor + w * self.batch_size, workers)

    def _batches(self, first: int, workers: int) -> Iterator[Batch]:
        while True:
            samples = range(first + self.rank, first + self.batch_size, self.world)
            found = [self._row(sample) for sample in samples]
            batch = _batch([rows[i] for rows, i in found], first + self.batch_size)
            padding = sum(rows.padding(i) for rows, i in found)
            yield batch | {"padding": torch.tensor(padding)}
            first += workers * self.batch_size

    def _row(self, sample: int) -> tuple[Rows, int]:
        part, index = part_at(sample, self.weights)
        rows = self.rows[part]
        return rows, row_at(index, len(rows), self.seed, self.shuffle)[1]


@dataclass(eq=False)
class ValBatches(Dataset):
    """One rank's rows in order, once; every rank has as many batches, of the same shape."""

    rows: Sequence[Rows]
    batch_size: int
    rank: int
    world: int

    def __post_init__(self) -> None:
        self._ends = np.cumsum([len(rows) for rows in self.rows])

    def __len__(self) -> int:
        return -(-int(self._ends[-1]) // self.batch_size)

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} is not in range({len(self)})")
        end = (i + 1) * self.batch_size
        samples = range(i * self.batch_size + self.rank, end, self.world)
        return _batch([self._row(sample) for sample in samples], end)

    def _row(self, sample: int) -> Row:
        part = int(np.searchsorted(self._ends, sample, side="right"))
        if part == len(self.rows):
            return self.rows[0].ignored_row()
        rows = self.rows[part]
        return rows[sample - int(self._ends[part]) + len(rows)]


def _batch(rows: list[Row], cursor: int) -> Batch:
    # Each [b, L]
    tokens, targets, resets = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return {"tokens": tokens, "targets": targets, "resets": resets, "cursor": torch.tensor(cursor)}
