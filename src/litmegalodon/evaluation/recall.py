"""Whether a model finds again what it read a set distance before: associative recall, passkeys.

An answer is right where each of its tokens is the likeliest one after the right tokens before it:
the very event that greedy decoding writes it. Questions are read in pieces on the state, and the
logits are made where an answer stands: memory does not grow with the length.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from litmegalodon.data.store import IGNORED
from litmegalodon.data.synthetic import question
from litmegalodon.data.tokenizer import Tokenizer
from litmegalodon.evaluation.drawing import draw_recall
from litmegalodon.evaluation.metrics import Answers
from litmegalodon.evaluation.question_batches import (
    NAMES,
    QuestionBatches,
    cells_of,
    default_lengths,
)
from litmegalodon.evaluation.ranges import check_whole
from litmegalodon.models import Megalodon

COLUMNS = (
    *("task", "length", "distance", "asked", "accuracy", "standard_error", "chance"),
    "token_accuracy",
)


class Recall(nn.Module):
    """Accuracy of tasks by the length of the text and the distance to what is asked for.

    Args:
        dirpath: gets recall.csv and recall.png.
        tasks: recall, passkey or copy, see `litmegalodon.data.synthetic`.
        lengths: of texts in bytes; None: powers of two from within a chunk to 16 chunks.
        distances: in bytes, those that fit a length; None: powers of two.
        samples: questions for each task, length and distance.
        seed: of the questions.
        chunk_size: of the model.
        batch_size: questions that a process reads together.
        piece: tokens of a question that go through the model at once.

    Raises:
        ValueError: a setting is out of range.
    """

    reads_held_out = False
    # Names of what is written.
    outputs = ("recall.csv", "recall.png")

    def __init__(
        self,
        dirpath: str,
        tasks: Sequence[str] = ("recall", "passkey"),
        lengths: Sequence[int] | None = None,
        distances: Sequence[int] | None = None,
        samples: int = 32,
        seed: int = 0,
        chunk_size: int = 256,
        batch_size: int = 8,
        piece: int = 4096,
    ) -> None:
        super().__init__()
        for name in tasks:
            if name not in NAMES:
                raise ValueError(
                    f"evaluation.tasks=[{name}]: must be of {', '.join(NAMES)}, which have a"
                    " distance"
                )
        if not tasks:
            raise ValueError(f"evaluation.tasks=[]: give one or more of {', '.join(NAMES)}")
        check_whole(1, samples=samples, batch_size=batch_size, piece=piece)
        check_whole(1, lengths=list(lengths or []), distances=list(distances or []))
        check_whole(0, seed=seed)
        self.dirpath, self.tasks = Path(dirpath), list(dict.fromkeys(tasks))
        self.samples, self.seed, self.chunk_size = samples, seed, chunk_size
        self.batch_size, self.piece = batch_size, piece
        sizes = sorted({*(lengths or default_lengths(chunk_size))})
        self.cells = cells_of(
            self.tasks, sizes, None if distances is None else sorted({*distances})
        )
        for name, given in (("lengths", lengths), ("distances", distances)):
            used = {getattr(cell, name[:-1]) for cell in self.cells}
            if unused := sorted({*(given or [])} - used):
                raise ValueError(
                    f"evaluation.{name}={list(given or [])}: with {unused} no question can be made"
                    f" for the tasks {', '.join(self.tasks)}; leave them out"
                )
        self.answers = Answers(len(self.cells))

    def loader(self, tokenizer: Tokenizer, trainer: Trainer) -> DataLoader:
        """The questions, each process its share."""
        cell = self.cells[-1]
        text = b"".join(question(cell.task, cell.length, cell.distance))
        self.chunk_bytes = self.chunk_size * len(text) / len(tokenizer.encode(text))
        batches = QuestionBatches(
            self.cells,
            self.samples,
            self.seed,
            self.batch_size,
            tokenizer,
            lambda: (trainer.global_rank, trainer.world_size),
        )
        return DataLoader(batches, batch_size=None)

    @torch.no_grad()
    def read(self, model: Megalodon, batch: dict[str, Any]) -> None:
        """Read questions and compare what is likeliest with their answers."""
        tokens, targets = batch["tokens"], batch["targets"]
        first, end, state = batch["first"], batch["longest"] - 1, None
        if not getattr(model, "streams", True):
            # It carries nothing from call to call.
            first = 0
        for start in range(0, first, self.piece):
            piece = tokens[:, start : min(start + self.piece, first)]
            _, state = model(piece, state, last_only=True)
        # The ends of rows of unequal length: few tokens more than an answer has.
        logits, _ = model(tokens[:, first:end], state)
        wanted = targets[:, first:end]
        self.answers.update(batch["cell"], logits.argmax(-1) == wanted, wanted != IGNORED)

    def results(self, is_main: bool) -> dict[str, Tensor]:
        """Write the table and the picture; each task's mean accuracy by name."""
        # torchmetrics gives the value of a single cell without its dimension.
        asked, right, tokens = torch.atleast_1d(*self.answers.compute())
        error = (right * (1 - right) / asked).sqrt()
        if is_main:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            with (self.dirpath / self.outputs[0]).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                for i, cell in enumerate(self.cells):
                    numbers = (int(asked[i]), float(right[i]), float(error[i]))
                    place = (cell.task, cell.length, cell.distance)
                    writer.writerow([*place, *numbers, cell.chance, float(tokens[i])])
            found = {
                (cell.task, cell.length, cell.distance): value
                for cell, value in zip(self.cells, right.tolist(), strict=True)
            }
            draw_recall(self.dirpath / self.outputs[1], found, self.samples, self.chunk_bytes)
        return {
            f"recall/{name}": right[[c.task == name for c in self.cells]].mean()
            for name in self.tasks
        }
