"""Questions whose answer stands a set distance before: which ones, and batches of them.

Shapes: b questions of a batch on one process, n tokens of the longest one of all processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from litmegalodon.data.store import IGNORED
from litmegalodon.data.synthetic import DIGITS, KEY, PAIR, SYMBOLS, TASKS, VALUE, question
from litmegalodon.data.tokenizer import Tokenizer

# The longest texts by default, in chunks, and the shortest in bytes.
MOST_CHUNKS, LEAST_BYTES = 16, 128
NAMES = tuple(name for name, task in TASKS.items() if task.nearest is not None)


@dataclass(frozen=True)
class Cell:
    """A task at a length of the text and a distance, both in bytes."""

    task: str
    length: int
    distance: int

    @property
    def chance(self) -> float:
        """Probability to guess the answer: recall's among the values of the text, all others' among
        everything that an answer can be.
        """
        if self.task == "recall":
            after = (self.distance - VALUE - KEY - 2) // PAIR
            before = (self.length - VALUE - self.distance - KEY - 1) // PAIR
            return 1 / (before + 1 + after)
        if self.task == "passkey":
            return 1 / (9 * 10 ** (DIGITS - 1))
        return float(len(SYMBOLS)) ** -(self.length - self.distance)


def default_lengths(chunk_size: int) -> list[int]:
    """Powers of two from within a chunk, or 128 bytes, to 16 chunks."""
    first = max(LEAST_BYTES, 1 << (chunk_size // 2).bit_length() - 1)
    return _powers(first, max(first, MOST_CHUNKS * chunk_size))


def cells_of(
    tasks: Sequence[str], lengths: Sequence[int], distances: Sequence[int] | None
) -> list[Cell]:
    """Tasks at all lengths and those distances that fit them; None: powers of two, where none fits
    the nearest.

    Raises:
        ValueError: nothing fits a task.
    """
    found = []
    for name in tasks:
        task, fitting = TASKS[name], []
        assert task.nearest is not None and task.farthest is not None
        for length in lengths:
            if length < task.least_length:
                continue
            low, high = task.nearest(length), task.farthest(length)
            # No power of two fits a copy in as many bytes: the nearest is the longest copy.
            wanted = (_powers(low, high) or [low]) if distances is None else distances
            fitting += [Cell(name, length, d) for d in wanted if low <= d <= high]
        if not fitting:
            least = task.least_length
            asked = "null" if distances is None else list(distances)
            raise ValueError(
                f"evaluation.distances={asked}: none fits {name} in texts of evaluation.lengths="
                f"{list(lengths)} bytes; a text has at least {least}, a distance at least"
                f" {task.nearest(least)}, and less than the text"
            )
        found += fitting
    return found


def _powers(low: int, high: int) -> list[int]:
    """Powers of two from low to high."""
    return [1 << i for i in range((low - 1).bit_length(), high.bit_length())]


class QuestionBatches(Dataset):
    """`samples` questions for every cell, each rank its share, as many batches on each.

    A batch is `cell`, `tokens` and `targets` int64 [b, n], targets the answers alone, `first`, the
    place of the first target of all ranks' rows, and `longest`, n of the longest one of them.
    A rank without a question left has targets that are ignored.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        samples: int,
        seed: int,
        batch_size: int,
        tokenizer: Tokenizer,
        rank: Callable[[], tuple[int, int]],
    ) -> None:
        self.cells, self.samples, self.seed = cells, samples, seed
        self.batch_size, self.tokenizer, self.rank = batch_size, tokenizer, rank

    @cached_property
    def _batches_of_cell(self) -> int:
        return -(-self.samples // (self.batch_size * self.rank()[1]))

    def __len__(self) -> int:
        return len(self.cells) * self._batches_of_cell

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} is not in range({len(self)})")
        cell, place = divmod(number, self._batches_of_cell)
        rank, world = self.rank()
        first = place * self.batch_size * world
        indices = range(first, min(first + self.batch_size * world, self.samples))
        # A rank needs to know the lengths of all.
        rows = [self._row(self.cells[cell], index) for index in indices]
        longest = max(len(tokens) for tokens, _ in rows)
        mine = rows[rank::world]
        tokens = torch.zeros(max(1, len(mine)), longest, dtype=torch.int64)
        targets = torch.full_like(tokens, IGNORED)
        for row, (text, answer) in enumerate(mine):
            tokens[row, : len(text)] = torch.from_numpy(text)
            targets[row, answer - 1 : len(text) - 1] = torch.from_numpy(text[answer:])
        begin = min(answer for _, answer in rows) - 1
        return {
            "cell": cell,
            "tokens": tokens,
            "targets": targets,
            "first": begin,
            "longest": longest,
        }

    def _row(self, cell: Cell, index: int) -> tuple[np.ndarray, int]:
        """A question's tokens, BOS to the end of its answer, and where the answer begins."""
        prompt, answer = question(cell.task, cell.length, cell.distance, self.seed, index)
        # As training makes them: the two are tokenised apart.
        opening = np.concatenate([[self.tokenizer.bos_id], self.tokenizer.encode(prompt)])
        text = np.concatenate([opening, self.tokenizer.encode_piece(answer, first=True)])
        return text.astype(np.int64), len(opening)
