"""The data of a run for Lightning: endless batches to train on, then held-out rows.

A micro-batch is `data.batch_size` rows over all data-parallel ranks together. Packed rows of a
store come in one global order, of which a rank takes its residue; lanes and streams are slots, of
which a rank has its share (`slots`). What resumes a run is the index of the first sample not yet
trained and, for slots, the place of each.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from litmegalodon.data.batches import TrainBatches, ValBatches
from litmegalodon.data.corpus import HeldOut, Opening, Part
from litmegalodon.data.counts import counts_of, row_counts_of
from litmegalodon.data.difference import difference, files_of
from litmegalodon.data.documents import Document, Source, compression_baselines
from litmegalodon.data.packing import PackedRows, Rows, check_cutting, check_length
from litmegalodon.data.question_rows import QuestionRows
from litmegalodon.data.slots import Cut, Position, SlotBatches, SlotLoader
from litmegalodon.data.store import OnError
from litmegalodon.data.streams import MixtureReader, Reader, ShardReader, StoreReader
from litmegalodon.data.tokenizer import Tokenizer, check_tokenizer
from litmegalodon.data.whole import JoinedDocuments, WholeDocuments
from litmegalodon.utils.ranges import whole


class TextDataModule(LightningDataModule):
    """Documents of `source` as batches that resume anywhere, on any number of ranks.

    A batch is `tokens, targets` int64 [b, L], `resets` bool [b, L], `cursor` int64 [], the global
    index of the sample after its last one, in training `padding` int64 [], its positions without a
    document's token, and with slots `places` int64 [b, w] and `left_out` int64 []. Whoever trains
    on it tells `trained(batch)`, which is all that a checkpoint keeps of the position.

    Args:
        source, tokenizer: what is read, and its tokens.
        seq_len: L, tokens in a row.
        batch_size: rows over all data-parallel ranks; must divide by their number.
        num_workers: processes that prepare batches.
        val_seq_len, val_batch_size: of validation, by default as in training.
        reset_documents: whether documents in a row are isolated from each other.
        shuffle, seed: whether the order is random, and which.
        cutting: `packed`, documents end to end; or `lanes`, in which a row of a batch goes on where
            the same row of the last batch ended, so that the model can carry its state; or
            `questions`, one document a row, whose text alone is predicted, not its end.
        streaming: read documents as they come, shard by shard, instead of all into memory first.
        chunk_size: of the model; lanes are made of whole chunks.
        on_error: `raise` where a source finds no document in a place that should hold one, or
            `skip` and count it.
        in_memory_limit: GiB of text that may be in memory.

    Raises:
        ValueError: names the setting that is out of range or does not suit the data.
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
        cutting: str = "packed",
        streaming: bool = False,
        chunk_size: int | None = None,
        on_error: str = "raise",
        in_memory_limit: float = 4.0,
    ) -> None:
        super().__init__()
        self.source = source
        self.tokenizer = tokenizer
        self.seq_len = whole("data.seq_len", seq_len, 1)
        self.batch_size = whole("data.batch_size", batch_size, 1)
        self.num_workers = whole("data.num_workers", num_workers, 0)
        self.val_seq_len = (
            seq_len if val_seq_len is None else whole("data.val_seq_len", val_seq_len, 1)
        )
        self.val_batch_size = (
            batch_size
            if val_batch_size is None
            else whole("data.val_batch_size", val_batch_size, 1)
        )
        self.reset_documents = reset_documents
        self.shuffle = shuffle
        self.seed = whole("data.seed", seed, 0)
        check_cutting(cutting, seq_len, chunk_size, streaming)
        self.cutting, self.chunk_size = cutting, chunk_size
        self.streaming = streaming
        self.on_error = OnError(on_error)
        self._opening = Opening(tokenizer, self.on_error, in_memory_limit)
        self._position = Position()
        # Where the next checkpoint that is loaded leaves the position, in place of its own.
        self._ahead: tuple[int, torch.Tensor | None] | None = None
        self._parts: list[Part] | None = None
        self._held_out: HeldOut | None = None
        # Rows in any order; no rows of training where there are slots.
        self._train: list[Rows] = []
        self._val: list[Rows] = []

    @property
    def cursor(self) -> int:
        """Global index of the first sample that is not yet trained."""
        return self._position.cursor

    @property
    def carries_state(self) -> bool:
        """Whether a row of a batch goes on in the same row of the next one: lanes."""
        return self.cutting == "lanes"

    def trained(self, cursor: int | torch.Tensor, places: torch.Tensor | None = None) -> None:
        """Note that all samples before `cursor` are trained, as far as `places` where a batch has
        them: after each optimizer step.
        """
        self._position.cursor = int(cursor)
        self._position.places = None if places is None else places.cpu().numpy()

    def setup(self, stage: str | None = None) -> None:
        """Read the documents, once, to validate or test the held-out ones alone; ValueError if
        they and the settings do not fit.
        """
        self._check_shared("batch_size")
        self._check_shared("val_batch_size")
        if self._parts is None and stage in (None, "fit"):
            parts = self._opening.train(self.source, self.streaming)
            if self.streaming and not _streamed(parts):
                rank_zero_info("data.streaming=true: has no effect, a prepared corpus is mapped")
            if not self.carries_state and not _streamed(parts):
                self._train = [self._rows(part.store, "seq_len") for part in parts]
                check_length(self._train)
            self._parts = parts
            if self.cutting == "questions" and not self.reset_documents:
                rank_zero_info("data.reset_documents=false: has no effect on rows of one question")
        if self._held_out is None:
            self._held_out = self._opening.held_out(self.source)
            self._val = [self._rows(store, "val_seq_len") for store in self._held_out.stores]

    def train_dataloader(self) -> DataLoader | SlotLoader:
        """Endless batches from the cursor on; iterating again goes on after the last trained batch.

        With `trainer.overfit_batches` every pass begins at sample 0, so that it sees the same ones.
        """
        self.setup()
        parts, (rank, world) = self._parts or [], self._data_rank()
        overfit = getattr(self.trainer, "overfit_batches", 0)
        position = Position() if overfit else self._position
        if not self._train:
            if overfit and self.carries_state:
                raise ValueError(
                    f"trainer.overfit_batches={overfit}: lanes carry their state from batch to"
                    " batch and cannot begin again; set data.cutting=packed"
                )
            align = (self.carries_state and self.reset_documents and self.chunk_size) or 1
            cut = Cut(self.seq_len, self.tokenizer.eos_id, self.reset_documents, align)
            readers = [self._reader(slot) for slot in self._slots()]
            fewest = min((len(part.shards) for part in parts if part.shards), default=None)
            if fewest is not None and fewest < self.batch_size:
                rank_zero_info(
                    f"data.streaming=true: {fewest} shards for data.batch_size={self.batch_size}"
                    " rows, so each row passes over all of the text; more files, or a corpus"
                    " prepared with scripts/prepare_corpus.py, read faster"
                )
            if self.num_workers > len(readers):
                rank_zero_info(
                    f"data.num_workers={self.num_workers}: {len(readers)} are used, one for each"
                    " row of a batch in this process"
                )
            batches = SlotBatches(readers, cut, position, self.batch_size)
            return SlotLoader(batches, self.num_workers)
        stream = TrainBatches(
            rows=self._train,
            weights=tuple(part.weight for part in parts),
            position=position,
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            rank=rank,
            world=world,
        )
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """All held-out rows in order, once; a rank without a row left gets ignored ones."""
        self.setup("validate")
        rank, world = self._data_rank()
        # Cutting rows out of an array costs less than starting workers for every validation.
        return DataLoader(ValBatches(self._val, self.val_batch_size, rank, world), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """The held-out rows of `val_dataloader`."""
        return self.val_dataloader()

    def whole_documents(
        self, max_tokens: int | None = None, joined: int | None = None
    ) -> WholeDocuments:
        """The held-out documents one by one, or joined to as many texts, of each the first
        `max_tokens` at most; each process reads some of its own, also where several share their
        rows otherwise.
        """
        trainer, stores = self.trainer, self._read_held_out().stores

        def rank() -> tuple[int, int]:
            assert trainer is not None
            return trainer.global_rank, trainer.world_size

        if joined is None:
            return WholeDocuments(stores, rank, max_tokens)
        return JoinedDocuments(joined, stores, rank, max_tokens)

    def state_dict(self) -> dict[str, Any]:
        """The cursor, with the places of all ranks' slots: every rank has to ask for it."""
        return {"cursor": self.cursor, "places": self._all_places(), **self._identity()} | {
            "tokenizer.fingerprint": self.tokenizer.fingerprint,
            "source.files": files_of(self.source),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's cursor, after `check`; evaluating leaves the position alone."""
        self.check(state_dict)
        if not self._is_fitting():
            return
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self.trained(*ahead)
            return
        places = state_dict.get("places")
        if places is not None:
            places = torch.tensor(places)[self._slots()]
        self.trained(state_dict["cursor"], places)

    def move_past(self, cursor: int, places: torch.Tensor | None = None) -> None:
        """Read on behind `cursor`, and from this process' `places`, once the next checkpoint is
        loaded: what lies between is left out.
        """
        self._ahead = (cursor, places)

    def check(self, state_dict: Mapping[str, Any]) -> None:
        """ValueError if these settings give other batches than a checkpoint's.

        batch_size may differ where the cursor counts samples of one order. Evaluating needs the
        same tokenizer only.
        """
        self.check_tokenizer(state_dict, "the checkpoint")
        if not self._is_fitting():
            return
        for name, ours in self._identity().items():
            # A setting that the checkpoint does not know had no other value then.
            theirs = state_dict.get(name, ours)
            if ours != theirs:
                differs = ""
                if name == "source.fingerprint":
                    differs = difference(state_dict.get("source.files"), files_of(self.source))
                raise ValueError(
                    f"data.{name}={ours}: the checkpoint was trained with {theirs}, so resuming"
                    f" would read other batches{differs}; go back to {theirs}, or take only its"
                    " weights with init_from= in place of ckpt_path="
                )

    def check_tokenizer(self, state_dict: Mapping[str, Any], whose: str) -> None:
        """ValueError if weights were trained on the ids of another tokenizer."""
        check_tokenizer(self.tokenizer, state_dict, whose)

    def summary(self) -> dict[str, int | float | str | None]:
        """What has been read, for printing.

        `fingerprint`, `tokenizer`, `val_{documents,bytes,tokens,rows,utilisation}`,
        `left_out_{files,bytes,places}`; where it was set up to train `train_{documents,bytes,
        tokens}`, and for rows in any order `train_{rows,utilisation}`; for streams `train_shards`
        and, about, `train_bytes` only, None where that is unknown.
        """
        stores = self._read_held_out().stores
        counts: dict[str, Any] = {"val": counts_of(stores) | row_counts_of(self._val)}
        if self._parts is not None and _streamed(self._parts):
            shards = sum(len(part.shards) for part in self._parts)
            counts["train"] = {"shards": shards, "bytes": self.source.num_bytes}
        elif self._parts is not None:
            counts["train"] = counts_of([part.store for part in self._parts])
            counts["train"] |= row_counts_of(self._train) if self._train else {}
        named = {f"{split}_{k}": v for split, found in counts.items() for k, v in found.items()}
        left_out = {f"left_out_{name}": count for name, count in self.source.left_out.items()}
        identity = {"fingerprint": self.source.fingerprint, "tokenizer": self.tokenizer.fingerprint}
        return {**identity, **named, **left_out, "left_out_places": self._opening.left_out}

    @property
    def val_bytes(self) -> int:
        """Bytes of the held-out documents: what bits per byte are counted over."""
        return sum(store.num_bytes for store in self._read_held_out().stores)

    @property
    def val_targets(self) -> int:
        """Predicted tokens of the held-out documents, in packed rows with their ends."""
        self.setup("validate")
        return sum(rows.num_targets for rows in self._val)

    def check_outputs(self, outputs: int) -> None:
        """ValueError if an answer is predicted that so many outputs have no class for."""
        self.setup("validate")
        for rows in (*self._train, *self._val):
            if isinstance(rows, QuestionRows):
                rows.check_outputs(outputs)

    def baselines(self) -> dict[str, float]:
        """Bits per byte of gzip -9 and xz on the held-out documents: `{"gzip": ..., "xz": ...}`."""
        return compression_baselines(document.text for document in self.validation_documents())

    def validation_documents(self) -> list[Document]:
        """The held-out documents, in order."""
        return self._read_held_out().documents

    def _read_held_out(self) -> HeldOut:
        self.setup("validate")
        assert self._held_out is not None
        return self._held_out

    def _is_fitting(self) -> bool:
        return self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING

    def _rows(self, store: Any, setting: str) -> Rows:
        seq_len, eos_id = getattr(self, setting), self.tokenizer.eos_id
        if self.cutting == "questions":
            return QuestionRows(store, seq_len, eos_id, setting)
        return PackedRows(store, seq_len, eos_id, self.reset_documents)

    def _slots(self) -> list[int]:
        """The rows of a batch that are this rank's."""
        rank, world = self._data_rank()
        share = self.batch_size // world
        return list(range(rank * share, (rank + 1) * share))

    def _reader(self, slot: int) -> Reader:
        parts = self._parts or []
        readers = [self._part_reader(part, slot) for part in parts]
        if len(readers) == 1:
            return readers[0]
        return MixtureReader(readers, [part.weight for part in parts])

    def _part_reader(self, part: Part, slot: int) -> Reader:
        slots, order = (slot, self.batch_size), (self.seed, self.shuffle)
        if part.store is not None:
            return StoreReader(part.store, *slots, *order)
        return ShardReader(part.shards, self.tokenizer, *slots, *order, self.on_error)

    def _all_places(self) -> list[list[int]] | None:
        """The places of all slots, gathered from the ranks."""
        places = self._position.places
        if places is None:
            return None
        if self._data_rank()[1] == 1:
            return places.tolist()
        assert self.trainer is not None
        strategy = self.trainer.strategy
        mine = np.concatenate([np.array(self._slots())[:, None], places], axis=1)
        # [ranks, b, 1 + w]; ranks that read the same rows say the same.
        found = strategy.all_gather(torch.from_numpy(mine).to(strategy.root_device))
        by_slot = {row[0]: row[1:] for row in found.flatten(0, 1).tolist()}
        return [by_slot[slot] for slot in range(self.batch_size)]

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share for a cursor to mean the same sample, by setting."""
        identity = {
            "source.fingerprint": self.source.fingerprint,
            "seq_len": self.seq_len,
            "reset_documents": self.reset_documents,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "cutting": self.cutting,
            "streaming": self.streaming,
        }
        self.setup()
        return identity if self._train else identity | {"batch_size": self.batch_size}

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


def _streamed(parts: list[Part]) -> bool:
    return any(part.store is None for part in parts)
