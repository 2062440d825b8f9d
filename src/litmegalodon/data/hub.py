"""Data sets of the Hugging Face Hub, or of its readers on local files, streamed.

`datasets` is imported where it is first needed: that takes seconds. No data set's own code is run:
one that is a script is refused.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from litmegalodon.data.columns import Columns
from litmegalodon.data.documents import Document, LeftOut, is_held_out, sum_if_known
from litmegalodon.data.holding_out import FRACTION, fraction_of

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset

# Rows that are taken from a data set at a time.
ROWS = 64

# Held-out documents come from this many shards, to open few of thousands, and from this many
# records at the front of one.
VAL_SHARDS = 8
VAL_RECORDS = 1 << 20

# A file as the Hub names it, with the commit that is read.
ON_HUB = re.compile(r"hf://datasets/(?P<repository>[^@]+)@(?P<commit>[^/]+)(?P<path>/.*)")

Numbers = range | frozenset[int]


@dataclass(frozen=True, eq=False)
class HubShard:
    """One of the data set's own shards, a file most often, or the part of it in a split.

    `only` are the numbers of the records to give, None for all except those of `but`; of these
    `part` (i, n) gives the ones alone that have the remainder i by n.
    """

    name: str
    where: str
    dataset: "IterableDataset"
    index: int
    columns: Columns
    only: Numbers | None = None
    but: Numbers = range(0)
    part: tuple[int, int] = (0, 1)

    def in_part(self, part: int, parts: int) -> "HubShard":
        """The same records, of which no more is taken out of Arrow's tables than the part's.

        That reading broke off is told in every part: it may have gone on in the others.
        """
        return replace(self, part=(part, parts))

    def documents(self, first: int = 0) -> Iterator[tuple[int, Document | LeftOut]]:
        """Records before `first` are read, and not taken out of Arrow's tables."""
        from litmegalodon.data.arrow import no_text, texts_of

        end = None if self.only is None else max(self.only, default=-1) + 1
        if end is not None and first >= end:
            return
        number = first
        part, parts = self.part
        batches = self._batches(first)
        while True:
            try:
                batch = next(batches, None)
            # A data set passes on what its reader, its decompression or the network raises.
            except Exception as error:
                where = f"{self.where}, record {number + 1}"
                yield number, LeftOut(where, f"cannot be read, nor what follows: {_said(error)}")
                return
            if batch is None:
                return
            schema = batch.schema
            reason = self.columns.missing_from(schema.names) or no_text(schema, self.columns)
            if reason is not None:
                if number % parts == part:
                    yield number, LeftOut(self.where, f"cannot be read: {reason}")
                return
            texts = texts_of(batch, self.columns)
            for i in range(len(batch)):
                held = number not in self.but if self.only is None else number in self.only
                if held and number % parts == part:
                    values = [column[i].as_py() for column in texts]
                    where = f"{self.where}, record {number + 1}"
                    name = f"{self.name}:{number + 1}"
                    yield number, self.columns.document(name, where, values)
                number += 1
                if number == end:
                    return

    def _batches(self, first: int) -> Iterator[Any]:
        """Arrow's record batches of the rows from `first` on."""
        know_zstd()
        part = self.dataset.shard(num_shards=self.dataset.num_shards, index=self.index)
        # In a worker of a DataLoader a data set's own iteration gives a part of the rows; this one
        # gives all.
        for table in part.skip(first).with_format("arrow").iter(batch_size=ROWS):
            yield from table.to_batches()


class HubSource:
    """A data set of the Hub, streamed: `path`, `name` and `revision` as in `load_dataset`.

    `data_files` are patterns in its repository, or local ones where `path` is a reader: json,
    parquet or text. Every record is a document by its columns; shards are the data set's own.
    Held out are the first documents of `val_split`, or without one documents of `split` whose
    names' hashes fall into `validation_fraction` of all, 0.01 by default: at most
    `max_val_documents`, in equal parts from the front of up to 8 shards. All others of `split` are
    trained on.
    ValueError that names the setting where one is wrong, or the data set cannot be opened.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        revision: str | None = None,
        text_column: str = "text",
        prompt_column: str | None = None,
        completion_column: str | None = None,
        validation_fraction: float | None = None,
        max_val_documents: int = 1000,
        data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        if not isinstance(path, str) or not path:
            raise ValueError(
                f"data.source.path={'null' if path is None else path}: must name a data set, as"
                " data.source.path=allenai/c4"
            )
        if not isinstance(split, str) or not split:
            raise ValueError(f"data.source.split={split}: must name a split, as train")
        if val_split == split:
            raise ValueError(
                f"data.source.val_split={val_split}: is the split that is trained on; name another,"
                " or null to hold out a part of it"
            )
        limit = max_val_documents
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(
                f"data.source.max_val_documents={limit}: must be a whole number, at least 1"
            )
        self.path, self.name, self.revision = path, name, revision
        self.split, self.val_split = split, val_split
        self.columns = Columns(text_column, prompt_column, completion_column)
        self.validation_fraction = fraction_of(validation_fraction, "val_split", val_split)
        self.max_val_documents = max_val_documents
        self.data_files = _plain(data_files)
        self.left_out = {"files": 0, "bytes": 0}
        self._streams: dict[str, IterableDataset] = {}

    def shards(self, split: str) -> list[HubShard]:
        """The data set's shards; for held-out documents only those that are looked at for some."""
        held_out = self._held_out
        name = self.val_split if split == "val" and self.val_split else self.split
        number = self._stream(name).num_shards
        if split == "val":
            return [self._shard(name, i, number, only=of_i) for i, of_i in held_out.items()]
        if self.val_split is not None:
            held_out = {}
        return [self._shard(name, i, number, but=held_out.get(i, range(0))) for i in range(number)]

    @cached_property
    def fingerprint(self) -> str:
        """Of the settings and of what the Hub calls the files: their names with the commit.

        Local files count by name, size and what `files.content_digest` reads of them.
        """
        shards = [self._stream(split).num_shards for split in self._splits]
        parts = [
            *(self.path, self.name, self._splits, shards, self.columns),
            # With a split to validate on the fraction is none; fingerprints have the default then.
            *(self.validation_fraction or FRACTION, self.max_val_documents),
            *self._identities,
        ]
        return hashlib.sha256(repr(parts).encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def file_digests(self) -> dict[str, str]:
        """The commit of each file of the Hub, 8 hex digits of size and content of a local one."""
        digests = {}
        for name, size, digest in self._identities:
            if found := ON_HUB.match(name):
                digests[found["repository"] + found["path"]] = f"commit {found['commit'][:12]}"
            else:
                digests[name] = hashlib.sha256(f"{size} {digest}".encode()).hexdigest()[:8]
        return digests

    @property
    def num_bytes(self) -> int | None:
        """Bytes of the splits' records, all their columns included, where the Hub tells them."""
        known = self._builder.info.splits or {}
        return sum_if_known(known[s].num_bytes if s in known else None for s in self._splits)

    @cached_property
    def _builder(self) -> "DatasetBuilder":
        from datasets import load_dataset_builder
        from datasets.utils import logging

        know_zstd()
        # What it logs before it raises is said once more by whoever catches it.
        logging.set_verbosity(logging.CRITICAL)
        try:
            return load_dataset_builder(
                self.path, self.name, data_files=self.data_files, revision=self.revision
            )
        except Exception as error:
            raise ValueError(self._cannot_open(error)) from error

    def _stream(self, split: str) -> "IterableDataset":
        if split not in self._streams:
            builder = self._builder
            try:
                self._streams[split] = builder.as_streaming_dataset(split=split)
            except ValueError as error:
                if "Bad split" not in str(error):
                    raise ValueError(self._cannot_open(error)) from error
                setting = "split" if split == self.split else "val_split"
                raise ValueError(f"data.source.{setting}={split}: {_said(error)}") from error
            except Exception as error:
                raise ValueError(self._cannot_open(error)) from error
        return self._streams[split]

    def _cannot_open(self, error: Exception) -> str:
        opened = f"data.source.path={self.path}: the data set cannot be opened ({_said(error)})"
        if "scripts are no longer supported" in str(error):
            return f"{opened}; scripts are never run, look for a copy of it in Parquet"
        if "gated" in str(error):
            return f"{opened}; ask for access on its page, then `hf auth login` or set HF_TOKEN"
        return (
            f"{opened}; check the name and the network, set HF_HUB_OFFLINE=1 where a cached copy"
            " should do, or read files of this machine: data=files data.source.paths=[...]"
        )

    @cached_property
    def _held_out(self) -> dict[int, Numbers]:
        """The numbers of held-out records by the index of their shard."""
        name = self.val_split or self.split
        number = self._stream(name).num_shards
        asked = min(number, VAL_SHARDS, self.max_val_documents)
        held_out: dict[int, Numbers] = {}
        for i in range(asked):
            limit = self.max_val_documents * (i + 1) // asked - self.max_val_documents * i // asked
            index = i * number // asked
            fraction = self.validation_fraction
            held_out[index] = (
                range(limit)
                if fraction is None
                else _first_held_out(_name(name, index, number), fraction, limit)
            )
        return {index: numbers for index, numbers in held_out.items() if numbers}

    def _shard(self, split: str, index: int, number: int, **which: Any) -> HubShard:
        where = " ".join(filter(None, (self.path, self.name, split)))
        return HubShard(
            name=_name(split, index, number),
            where=f"{where}, shard {index + 1} of {number}",
            dataset=self._stream(split),
            index=index,
            columns=self.columns,
            **which,
        )

    @property
    def _splits(self) -> list[str]:
        return [self.split] + ([self.val_split] if self.val_split else [])

    @cached_property
    def _identities(self) -> list[tuple[str, int, str]]:
        """Name, size and digest of every file of the splits."""
        from litmegalodon.data.files import THREADS

        by_split = self._builder.config.data_files or {}
        files = [str(file) for split in self._splits for file in by_split.get(split, ())]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(_identity, files))


def know_zstd() -> None:
    """Let data sets in zstd be read without the package zstandard, which `datasets` asks for."""
    import pyarrow as pa
    from fsspec.compression import compr, register_compression

    def opened(file: Any, mode: str = "rb", **_: Any) -> io.BufferedReader:
        return io.BufferedReader(pa.input_stream(file, compression="zstd"))

    if "zstd" not in compr:
        register_compression("zstd", opened, "zst")


def _name(split: str, index: int, number: int) -> str:
    return f"{split}/{index:05}-of-{number:05}"


def _first_held_out(shard: str, fraction: float, limit: int) -> frozenset[int]:
    """The first numbers, at most `limit`, of a shard's records that are held out by their names."""
    held_out = (i for i in range(VAL_RECORDS) if is_held_out(f"{shard}:{i + 1}", fraction))
    return frozenset(islice(held_out, limit))


def _identity(file: str) -> tuple[str, int, str]:
    from litmegalodon.data.files import content_digest

    if not os.path.exists(file):
        return file, 0, ""
    size = os.path.getsize(file)
    try:
        return os.path.basename(file), size, content_digest(file, size).hex()
    except OSError as error:
        raise ValueError(
            f"data.source.data_files: {file} cannot be read ({error.strerror}); mend that, or leave"
            " it out of the patterns"
        ) from None


def _plain(data_files: Any) -> Any:
    """Hydra's lists and mappings as Python's own, which are all that `datasets` takes."""
    listed = isinstance(data_files, Sequence) and all(isinstance(file, str) for file in data_files)
    if not (data_files is None or listed or isinstance(data_files, Mapping)):
        raise ValueError(
            f"data.source.data_files={data_files}: must be a pattern of files or several, or such"
            " by split"
        )
    if isinstance(data_files, Mapping):
        return {str(split): _plain(files) for split, files in data_files.items()}
    return data_files if data_files is None or isinstance(data_files, str) else list(data_files)


def _said(error: Exception) -> str:
    """An error in one line, at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
