"""Batches of packed rows for Lightning: an endless stream to train on, then held-out rows.

A micro-batch is `data.batch_size` consecutive samples of the global order, over all data-parallel
ranks together; a rank takes its residue. What resumes a run is one number, the cursor: the global
index of the first sample not yet trained.

Shapes: b rows of a batch on this rank, L seq_len.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from litmegalodon.data.documents import SPLITS, Document, Source, compression_baselines
from litmegalodon.data.order import row_at
from litmegalodon.data.packing import PackedRows, Row
from litmegalodon.data.tokenizer import Tokenizer

Batch = dict[str, torch.Tensor]


class TextDataModule(LightningDataModule):
    """Documents of `source` as batches that resume anywhere, on any number of ranks.

    A batch is `tokens, targets` int64 [b, L], `resets` bool [b, L] and `cursor` int64 [], the
    global index of the sample after its last one. Whoever trains on it tells `trained(cursor)`,
    which is all that a checkpoint keeps of the position.
    batch_size and val_batch_size count rows over all data-parallel ranks and must divide by their
    number; val_seq_len and val_batch_size default to the training ones.
    ValueError that names the setting where one is out of range or does not suit the data.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        seq_len: int = 2048,
        batch_size: int = 8,
        num_workers: int = 0,
        val_seq_len: int | None = None,
        val_batch_size: int | None = None,
        reset_documents: bool = True,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.tokenizer = tokenizer
        self.seq_len = _whole("seq_len", seq_len, 1)
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.num_workers = _whole("num_workers", num_workers, 0)
        self.val_seq_len = seq_len if val_seq_len is None else _whole("val_seq_len", val_seq_len, 1)
        self.val_batch_size = (
            batch_size if val_batch_size is None else _whole("val_batch_size", val_batch_size, 1)
        )
        self.reset_documents = reset_documents
        self.shuffle = shuffle
        self.seed = _whole("seed", seed, 0)
        self._position = Position()
        self._rows: dict[str, PackedRows] = {}

    @property
    def cursor(self) -> int:
        """Global index of the first sample that is not yet trained."""
        return self._position.cursor

    def trained(self, cursor: int | torch.Tensor) -> None:
        """Note that all samples before `cursor` are trained: after each optimizer step."""
        self._position.cursor = int(cursor)

    def setup(self, stage: str | None = None) -> None:
        """Read and pack the documents, once; ValueError if they and the settings do not fit."""
        self._check_shared("batch_size")
        self._check_shared("val_batch_size")
        if self._rows:
            return
        documents = {
            split: [item for shard in self.source.shards(split) for _, item in shard.documents()]
            for split in SPLITS
        }
        for split in SPLITS:
            if not any(document.text for document in documents[split]):
                raise ValueError(
                    f"data.source: its {'training' if split == 'train' else 'held-out'} documents"
                    " hold no text; give it more documents or change how it splits them"
                )
        train = PackedRows(documents["train"], self.tokenizer, self.seq_len, self.reset_documents)
        if train.num_tokens < self.seq_len:
            raise ValueError(
                f"data.seq_len={self.seq_len}: longer than the training documents, which have"
                f" {train.num_tokens} tokens; set data.seq_len={train.num_tokens} or less,"
                " or give more text"
            )
        val = PackedRows(documents["val"], self.tokenizer, self.val_seq_len, self.reset_documents)
        self._rows = {"train": train, "val": val}

    def train_dataloader(self) -> DataLoader:
        """Endless batches from the cursor on; iterating again goes on after the last trained batch.

        With `trainer.overfit_batches` every pass begins at sample 0, so that it sees the same ones.
        """
        self.setup()
        rank, world = self._data_rank()
        overfit = getattr(self.trainer, "overfit_batches", 0)
        stream = TrainBatches(
            rows=self._rows["train"],
            position=Position() if overfit else self._position,
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            rank=rank,
            world=world,
        )
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """All held-out rows in order, once; a rank without a row left gets ignored ones."""
        self.setup()
        rank, world = self._data_rank()
        # Cutting rows out of an array costs less than starting workers for every validation.
        return DataLoader(
            ValBatches(self._rows["val"], self.val_batch_size, rank, world), batch_size=None
        )

    def test_dataloader(self) -> DataLoader:
        """The held-out rows of `val_dataloader`."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's cursor; ValueError if these settings give other batches.

        batch_size may differ, since the cursor counts samples. Evaluating a checkpoint leaves the
        position alone, and compares nothing.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        for name, ours in self._identity().items():
            theirs = state_dict[name]
            if ours != theirs:
                raise ValueError(
                    f"data.{name}={ours}: the checkpoint was trained with {theirs}, so resuming"
                    f" would read other batches; go back to {theirs}, or take only its weights with"
                    " init_from= in place of ckpt_path="
                )
        self.trained(state_dict["cursor"])

    def summary(self) -> dict[str, int | float | str]:
        """What is read, for printing.

        `fingerprint`, `tokenizer`, `{train,val}_{documents,bytes,tokens,rows,utilisation}` and
        `left_out_{files,bytes}`.
        """
        self.setup()
        counts = {
            f"{split}_{name}": value
            for split, rows in self._rows.items()
            for name, value in {
                "documents": rows.num_documents,
                "bytes": rows.num_bytes,
                "tokens": rows.num_tokens,
                "rows": len(rows),
                "utilisation": rows.utilisation,
            }.items()
        }
        left_out = {f"left_out_{name}": count for name, count in self.source.left_out.items()}
        identity = {"fingerprint": self.source.fingerprint, "tokenizer": self.tokenizer.fingerprint}
        return {**identity, **counts, **left_out}

    @property
    def val_bytes(self) -> int:
        """Bytes of the held-out documents: what bits per byte are counted over."""
        self.setup()
        return self._rows["val"].num_bytes

    @property
    def val_targets(self) -> int:
        """Predicted tokens of the held-out documents, their ends included."""
        self.setup()
        return self._rows["val"].num_targets

    def baselines(self) -> dict[str, float]:
        """Bits per byte of gzip -9 and xz on the held-out documents: `{"gzip": ..., "xz": ...}`."""
        return compression_baselines(document.text for document in self.validation_documents())

    def validation_documents(self) -> list[Document]:
        """The held-out documents, in order."""
        return [item for shard in self.source.shards("val") for _, item in shard.documents()]

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share for a cursor to mean the same sample, by setting."""
        return {
            "source.fingerprint": self.source.fingerprint,
            "tokenizer.fingerprint": self.tokenizer.fingerprint,
            "seq_len": self.seq_len,
            "reset_documents": self.reset_documents,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    def _data_rank(self) -> tuple[int, int]:
        """This process' rank among the data-parallel ones and their number, 0 and 1 if alone."""
        of_strategy = getattr(self.trainer, "distributed_sampler_kwargs", None)
        return (of_strategy["rank"], of_strategy["num_replicas"]) if of_strategy else (0, 1)

    def _check_shared(self, setting: str) -> None:
        """ValueError if the ranks cannot share a batch's rows equally."""
        batch_size, (_, world) = getattr(self, setting), self._data_rank()
        if batch_size % world:
            nearest = max(1, round(batch_size / world)) * world
            raise ValueError(
                f"data.{setting}={batch_size}: counts rows over all {world} data-parallel"
                f" processes and must divide by them; set data.{setting}={nearest}"
            )


@dataclass
class Position:
    """The cursor, shared between the data module and its stream."""

    cursor: int = 0


@dataclass(eq=False)
class TrainBatches(IterableDataset):
    """Endless batches of the global order from `position` on, those of one rank."""

    rows: PackedRows
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
            rows = [row_at(i, len(self.rows), self.seed, self.shuffle)[1] for i in samples]
            yield _batch([self.rows[row] for row in rows], first + self.batch_size)
            first += workers * self.batch_size


@dataclass(eq=False)
class ValBatches(Dataset):
    """One rank's rows in order, once; every rank has as many batches, of the same shape."""

    rows: PackedRows
    batch_size: int
    rank: int
    world: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} is not in range({len(self)})")
        end = (i + 1) * self.batch_size
        samples = range(i * self.batch_size + self.rank, end, self.world)
        ignored = self.rows.ignored_row()
        return _batch([self.rows[j] if j < len(self.rows) else ignored for j in samples], end)


def _batch(rows: list[Row], cursor: int) -> Batch:
    # Each [b, L]
    tokens, targets, resets = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return {"tokens": tokens, "targets": targets, "resets": resets, "cursor": torch.tensor(cursor)}


def _whole(name: str, value: int, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"data.{name}={value}: must be a whole number, at least {minimum}")
    return value
