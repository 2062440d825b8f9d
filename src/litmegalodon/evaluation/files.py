"""Perplexity of files of text, and continuations of a file of prompts.

Documents are read whole, in pieces on the state: memory does not grow with their length. Each opens
with BOS, which is not predicted; its end is.
"""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from litmegalodon.data.store import IGNORED
from litmegalodon.data.tokenizer import Tokenizer
from litmegalodon.evaluation.file_batches import FileBatches, TextFile, read_files, read_prompts
from litmegalodon.evaluation.ranges import check_whole
from litmegalodon.inference import Drawing, Reader, check_stops, generate_together
from litmegalodon.models import Megalodon

TABLE, TEXTS, PARTIAL = "files.csv", "generations.jsonl", ".partial"
COLUMNS = (
    *("file", "documents", "tokens", "bytes", "words", "loss", "perplexity"),
    *("bits_per_byte", "word_perplexity"),
)


class FileLoss(Metric):
    """Sums of negative log-likelihoods by file, exact over ranks and uneven batches."""

    full_state_update = False

    def __init__(self, files: int) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self.add_state("nll", torch.zeros(files, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(files, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, file: int, nll: Tensor, tokens: Tensor) -> None:
        """Add a sum of negative log-likelihoods in nats, and the number of tokens it is over."""
        self.nll[file] += nll.double()
        self.tokens[file] += tokens

    def compute(self) -> tuple[Tensor, Tensor]:
        """Nats float64 [files] and numbers of predicted tokens [files]."""
        return self.nll, self.tokens


class Files(nn.Module):
    """Perplexity and bits per byte of files, and what a model writes after prompts.

    Args:
        dirpath: gets files.csv and generations.jsonl.
        paths: files of documents.
        prompts: a file of prompts.
        text_column, prompt_column: of lines of JSON and tables.
        batch_size: rows of a process that are read or written together.
        piece: tokens of a row that go through the model at once.
        max_new_tokens, stop, seed, drawing: of the continuations, see `generate_together`.

    Raises:
        ValueError: a setting is out of range, or there is nothing to do.
    """

    reads_held_out = False

    def __init__(
        self,
        dirpath: str,
        paths: Sequence[str] = (),
        prompts: str | None = None,
        text_column: str = "text",
        prompt_column: str = "prompt",
        batch_size: int = 8,
        piece: int = 4096,
        max_new_tokens: int = 200,
        stop: Sequence[str] = (),
        seed: int = 0,
        **drawing: Any,
    ) -> None:
        super().__init__()
        check_whole(1, batch_size=batch_size, piece=piece, max_new_tokens=max_new_tokens)
        Drawing(**drawing, prefix="evaluation.")
        if not paths and prompts is None:
            raise ValueError(
                "evaluation.paths=[]: give files to read, as evaluation.paths=[x.jsonl], or a file"
                " of prompts, as evaluation.prompts=prompts.jsonl"
            )
        self.dirpath, self.paths, self.prompts = Path(dirpath), list(paths), prompts
        # Names of what is written.
        self.outputs = ([TABLE] if self.paths else []) + ([TEXTS] if prompts is not None else [])
        self.text_column, self.prompt_column = text_column, prompt_column
        self.batch_size, self.piece = batch_size, piece
        self.drawing = {"max_new_tokens": max_new_tokens, "seed": seed, **drawing}
        self.drawing["stop"] = check_stops(stop)
        self.files: list[TextFile] = []
        self.loss = FileLoss(len(self.paths))

    def loader(self, tokenizer: Tokenizer, trainer: Trainer) -> DataLoader:
        """The files' documents, each process its share, then the prompts."""
        self.tokenizer, self.trainer = tokenizer, trainer
        self.files = read_files(self.paths, self.text_column, tokenizer)
        prompts = [] if self.prompts is None else read_prompts(self.prompts, self.prompt_column)
        (self.dirpath / (TEXTS + PARTIAL)).unlink(missing_ok=True)
        batches = FileBatches(
            self.files, prompts, self.batch_size, lambda: (trainer.global_rank, trainer.world_size)
        )
        return DataLoader(batches, batch_size=None)

    @torch.no_grad()
    def read(self, model: Megalodon, batch: dict[str, Any]) -> None:
        """Read a batch of documents, or write on from one of prompts."""
        if "prompts" in batch:
            self._write_on(model, batch["prompts"])
            return
        tokens, targets, state = batch["tokens"], batch["targets"], None
        for start in range(0, batch["longest"] - 1, self.piece):
            piece = slice(start, start + self.piece)
            part, wanted = tokens[:, piece], targets[:, piece]
            if not part.shape[1]:
                # Sharded parameters need the call that other processes make.
                part = tokens.new_zeros(len(tokens), 1)
                wanted = torch.full_like(part, IGNORED)
                state = None
            nll, count, state = model.loss(part, wanted, state)
            self.loss.update(batch["file"], nll, count)

    def results(self, is_main: bool) -> dict[str, Tensor]:
        """Write the table and the texts; the metrics of all files together by name."""
        if is_main and self.prompts is not None:
            (self.dirpath / (TEXTS + PARTIAL)).rename(self.dirpath / TEXTS)
        if not self.paths:
            return {}
        # torchmetrics gives the value of a single file without its dimension.
        nll, tokens = torch.atleast_1d(*self.loss.compute())
        rows = [
            _row(file.path, file.store.num_documents, file.store.num_bytes, file.words, *sums)
            for file, *sums in zip(self.files, nll.tolist(), tokens.tolist(), strict=True)
        ]
        counts = [sum(row[i] for row in rows) for i in (1, 3, 4)]
        total = _row("total", *counts, float(nll.sum()), int(tokens.sum()))
        if is_main:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            with (self.dirpath / TABLE).open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows, total])
        named = dict(zip(COLUMNS, total, strict=True))
        return {
            f"files/{name}": torch.tensor(named[name], dtype=torch.float64)
            for name in ("tokens", "loss", "perplexity", "bits_per_byte", "word_perplexity")
        }

    def _write_on(self, model: Megalodon, prompts: Sequence[bytes]) -> None:
        readers = [Reader(model, self.tokenizer, piece_tokens=self.piece) for _ in prompts]
        for reader, prompt in zip(readers, prompts, strict=True):
            reader.read(prompt)
        texts = [""] * len(prompts)
        # Parameters may be sharded: every process makes all calls.
        agree = self.trainer.strategy.broadcast if self.trainer.world_size > 1 else None
        for i, text in generate_together(readers, agree=agree, **self.drawing):
            texts[i] += text
        if self.trainer.global_rank > 0:
            return
        self.dirpath.mkdir(parents=True, exist_ok=True)
        with (self.dirpath / (TEXTS + PARTIAL)).open("a", encoding="utf-8") as file:
            for prompt, text, reader in zip(prompts, texts, readers, strict=True):
                line = {"prompt": prompt.decode(), "generation": text, "ended": reader.ended}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _row(
    name: str, documents: int, num_bytes: int, words: int, nll: float, tokens: int
) -> tuple[Any, ...]:
    """A row of the table; perplexities that no number holds are infinite."""
    return (
        *(name, documents, tokens, num_bytes, words, nll / tokens, _exp(nll / tokens)),
        *(nll / math.log(2) / num_bytes, _exp(nll / words) if words else math.nan),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
