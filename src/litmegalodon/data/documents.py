"""What a corpus is: named documents, split once into training and held-out ones."""

import gzip
import hashlib
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol


@dataclass(frozen=True)
class Document:
    """One text that the model reads from a fresh state; `name` is unique within its source."""

    name: str
    text: bytes


class DocumentSource(Protocol):
    """Where documents come from: a function of the source's settings, never of chance."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any byte, name, order or split of the documents."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """What the source saw and did not take: `{"files": ..., "bytes": ...}`."""

    def documents(self) -> Mapping[str, list[Document]]:
        """`{"train": [...], "val": [...]}`, each in its fixed order."""


class ListSource:
    """Documents that are already in memory."""

    def __init__(self, train: Iterable[Document], val: Iterable[Document]) -> None:
        self._documents = {"train": list(train), "val": list(val)}
        self.left_out = {"files": 0, "bytes": 0}

    @cached_property
    def fingerprint(self) -> str:
        return corpus_fingerprint(self._documents)

    def documents(self) -> dict[str, list[Document]]:
        return self._documents


def corpus_fingerprint(documents: Mapping[str, list[Document]]) -> str:
    """First 16 hex digits of the SHA-256 over splits, names and bytes of the documents in order."""
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for document in documents[split]:
            name = document.name.encode(errors="surrogateescape")
            for part in (split.encode(), name, document.text):
                # The length in front keeps ("ab", "c") and ("a", "bc") apart.
                digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def compression_baselines(texts: Iterable[bytes]) -> dict[str, float]:
    """Bits per byte that gzip -9 and xz need for the texts as one file, file headers included.

    `{"gzip": ..., "xz": ...}`; ValueError if there is no byte.
    """
    data = b"".join(texts)
    if not data:
        raise ValueError("no bytes to compress: the held-out documents are empty")
    compressed = {"gzip": gzip.compress(data, 9, mtime=0), "xz": lzma.compress(data)}
    return {name: 8 * len(packed) / len(data) for name, packed in compressed.items()}
