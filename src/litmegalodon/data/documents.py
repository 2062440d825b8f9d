"""What a corpus is: named documents in shards, split once into training and held-out ones."""

import gzip
import hashlib
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Document:
    """One text that the model reads from a fresh state; `name` is unique within its source.

    `text` is UTF-8, bytes or a view of a mapped file. `prompt` stands before it: it is read, and
    not predicted.
    """

    name: str
    text: bytes | memoryview
    prompt: bytes = b""


@dataclass(frozen=True)
class LeftOut:
    """A place in a source that gives no document: where, as a user finds it, and why.

    An `error` ends the run unless data.on_error=skip; all are counted, but for what is told
    `again`: of a file that is read for both splits one counts it.
    """

    where: str
    reason: str
    error: bool = True
    again: bool = False


class Shard(Protocol):
    """A part of a source that is read from front to end, a file for example."""

    name: str

    def documents(self, first: int = 0) -> Iterator[tuple[int, Document | LeftOut]]:
        """(number, document) in a fixed order, from number `first` on, skipping without effort.

        Numbers grow, and may leave some out: they are the records' places in the shard. A reader
        raises nothing for what it finds in the data: it gives a LeftOut, and ends where it cannot
        go on.
        """


class Source(Protocol):
    """Where documents come from: a function of the source's settings, never of chance."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with what is read, as far as can be known without reading all:
        the names, order, split and sizes of the shards at least.
        """

    @property
    def left_out(self) -> Mapping[str, int]:
        """What the source saw and did not take: `{"files": ..., "bytes": ...}`."""

    @property
    def num_bytes(self) -> int | None:
        """About how much text there is, None where that is unknown: what memory it would take."""

    def shards(self, split: str) -> Sequence[Shard]:
        """The shards of `train` or `val`, in a fixed order.

        ValueError that names the setting where there are none, or a file cannot be found or read.
        """


@dataclass(frozen=True)
class ListShard:
    """Documents in memory."""

    name: str
    items: Sequence[Document | LeftOut]

    def documents(self, first: int = 0) -> Iterator[tuple[int, Document | LeftOut]]:
        for number in range(first, len(self.items)):
            yield number, self.items[number]


class ListSource:
    """Documents that are already in memory."""

    def __init__(self, train: Iterable[Document], val: Iterable[Document]) -> None:
        self._documents = {"train": list(train), "val": list(val)}
        self.left_out = {"files": 0, "bytes": 0}

    @cached_property
    def fingerprint(self) -> str:
        return corpus_fingerprint(self._documents)

    @property
    def num_bytes(self) -> int:
        return sum(len(document.text) for split in SPLITS for document in self._documents[split])

    def shards(self, split: str) -> list[ListShard]:
        return [ListShard(split, self._documents[split])]


def corpus_fingerprint(documents: Mapping[str, Sequence[Document]]) -> str:
    """First 16 hex digits of the SHA-256 over splits, names and bytes of the documents in order."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for document in documents[split]:
            name = document.name.encode(errors="surrogateescape")
            parts = [split.encode(), name, document.text]
            parts += [b"prompt", document.prompt] if document.prompt else []
            for part in parts:
                # The length in front keeps ("ab", "c") and ("a", "bc") apart.
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
    return digest.hexdigest()[:16]


def sum_if_known(sizes: Iterable[int | None]) -> int | None:
    """The sum, None where a part of it is unknown."""
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


def is_held_out(name: str, fraction: float) -> bool:
    """Whether the document of this name is in the part `fraction` of all that is held out."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") < fraction * 2**64


def compression_baselines(texts: Iterable[bytes | memoryview]) -> dict[str, float]:
    """Bits per byte that gzip -9 and xz need for the texts as one file, file headers included.

    `{"gzip": ..., "xz": ...}`; ValueError if there is no byte.
    """
    data = b"".join(texts)
    if not data:
        raise ValueError("no bytes to compress: the held-out documents are empty")
    compressed = {"gzip": gzip.compress(data, 9, mtime=0), "xz": lzma.compress(data)}
    return {name: 8 * len(packed) / len(data) for name, packed in compressed.items()}
