"""A source opened for training: stores of tokens, or shards to be read as they come."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from litmegalodon.data.documents import Document, LeftOut, Shard, Source
from litmegalodon.data.mixture import parts_of
from litmegalodon.data.store import MemoryStore, OnError, TokenStore
from litmegalodon.data.tokenizer import Tokenizer

GIB = 2**30


@runtime_checkable
class Tokenised(Protocol):
    """What a source also has whose documents are tokens already."""

    def store(self, split: str) -> TokenStore:
        """The tokens of `train` or `val`."""

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """ValueError if they are those of another tokenizer."""

    def validation_documents(self, tokenizer: Tokenizer) -> list[Document]:
        """The held-out documents as text."""


@dataclass(frozen=True)
class Part:
    """One of the sources that training mixes: a store, or shards where it is streamed."""

    weight: float
    store: TokenStore | None = None
    shards: Sequence[Shard] = ()


@dataclass
class HeldOut:
    """The held-out documents, which are always in memory or mapped, and their tokens."""

    stores: list[TokenStore] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)


class Opening:
    """What both splits are read with: `limit` GiB of text may be in memory, places that give no
    document are counted in `left_out`.
    """

    def __init__(self, tokenizer: Tokenizer, on_error: OnError, limit: float) -> None:
        self.tokenizer, self.on_error, self.limit = tokenizer, on_error, limit
        self.left_out = 0
        # Bytes of text and prompts in memory.
        self._size = 0

    def held_out(self, source: Source) -> HeldOut:
        """Read the held-out documents; ValueError where they hold no text or too much."""
        found = HeldOut()
        for part, _ in parts_of(source):
            if isinstance(part, Tokenised):
                part.check_tokenizer(self.tokenizer)
                store, documents = part.store("val"), part.validation_documents(self.tokenizer)
            else:
                documents = list(self._read(part.shards("val")))
                store = MemoryStore(documents, self.tokenizer)
            if store.num_documents:
                found.stores.append(store)
                found.documents += documents
        if not any(store.num_bytes for store in found.stores):
            raise _no_text("held-out", type(source).__name__)
        return found

    def train(self, source: Source, streaming: bool) -> list[Part]:
        """Open the documents to train on, reading them into memory unless `streaming`.

        ValueError, before anything is read, where that is too much, and where they hold no text.
        """
        parts: list[Part] = []
        for part, weight in parts_of(source):
            if isinstance(part, Tokenised):
                part.check_tokenizer(self.tokenizer)
                parts.append(Part(weight, part.store("train")))
            elif streaming:
                parts.append(Part(weight, shards=part.shards("train")))
            else:
                self._check_size(part.num_bytes)
                documents = self._read(part.shards("train"))
                parts.append(Part(weight, MemoryStore(documents, self.tokenizer)))
            if parts[-1].store is not None and not parts[-1].store.num_bytes:
                raise _no_text("training", type(part).__name__)
        return parts

    def _read(self, shards: Iterable[Shard]) -> Iterator[Document]:
        for shard in shards:
            for _, item in shard.documents():
                if isinstance(item, LeftOut):
                    self.left_out += self.on_error(item)
                    continue
                self._size += len(item.prompt) + len(item.text)
                if self._size > self.limit * GIB:
                    raise self._too_much("more than", self.limit)
                yield item

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self.limit * GIB:
            raise self._too_much("", size / GIB)

    def _too_much(self, about: str, gib: float) -> ValueError:
        return ValueError(
            f"data.in_memory_limit={self.limit:g}: the documents to be kept in memory have {about}"
            f" {gib:.3g} GiB of text; set data.streaming=true, prepare them once with"
            " scripts/prepare_corpus.py, hold out fewer, or raise the limit"
        )


def _no_text(kind: str, source: str) -> ValueError:
    return ValueError(
        f"data.source: the {kind} documents of {source} hold no text; give it more documents or"
        " change how it splits them"
    )
