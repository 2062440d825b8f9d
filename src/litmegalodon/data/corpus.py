"""A source opened for training: stores of tokens, or shards to be read as they come."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from litmegalodon.data.documents import SPLITS, Document, Shard, Source
from litmegalodon.data.mixture import parts_of
from litmegalodon.data.store import MemoryStore, OnError, TokenStore, read_documents
from litmegalodon.data.tokenizer import Tokenizer

GIB = 2**30


@dataclass(frozen=True)
class Part:
    """One of the sources that training mixes: a store, or shards where it is streamed."""

    weight: float
    store: TokenStore | None = None
    shards: Sequence[Shard] = ()


@dataclass
class Corpus:
    """What is trained on, and the held-out documents, which are always in reach."""

    train: list[Part] = field(default_factory=list)
    val: list[TokenStore] = field(default_factory=list)
    val_documents: list[Document] = field(default_factory=list)
    # Places that gave no document, in what was read at once.
    left_out: int = 0

    @property
    def streamed(self) -> bool:
        """Whether any of the parts is read as it comes."""
        return any(part.store is None for part in self.train)


def open_corpus(
    source: Source, tokenizer: Tokenizer, streaming: bool, on_error: OnError, limit: float
) -> Corpus:
    """Read a source: all of it, or with `streaming` its held-out documents.

    `limit` is the text in GiB that may be in memory. ValueError, before anything is read, where
    there is more, and where a split holds no text.
    """
    corpus = Corpus()
    for part, weight in parts_of(source):
        if hasattr(part, "store"):
            _check_tokenizer(part.tokenizer_fingerprint, tokenizer)
            corpus.train.append(Part(weight, part.store("train")))
            if part.store("val").num_documents:
                corpus.val.append(part.store("val"))
                corpus.val_documents += part.validation_documents(tokenizer)
            continue
        size = part.num_bytes
        if not streaming and size is not None and size > limit * GIB:
            raise ValueError(
                f"data.in_memory_limit={limit}: the source has {size / GIB:.1f} GiB of text, and"
                " without streaming all of it is read into memory; set data.streaming=true, prepare"
                " it once with scripts/prepare_corpus.py, or raise the limit"
            )
        counted = {"places": 0}
        documents = _within(read_documents(part.shards("val"), on_error, counted), limit)
        held_out = list(documents)
        corpus.val_documents += held_out
        if held_out:
            corpus.val.append(MemoryStore(held_out, tokenizer))
        if streaming:
            corpus.train.append(Part(weight, shards=part.shards("train")))
        else:
            documents = _within(read_documents(part.shards("train"), on_error, counted), limit)
            corpus.train.append(Part(weight, MemoryStore(documents, tokenizer)))
        corpus.left_out += counted["places"]
    texts = {
        "train": any(part.store is None or part.store.num_bytes for part in corpus.train),
        "val": any(store.num_bytes for store in corpus.val),
    }
    for split in SPLITS:
        if not texts[split]:
            raise ValueError(
                f"data.source: its {'training' if split == 'train' else 'held-out'} documents"
                " hold no text; give it more documents or change how it splits them"
            )
    return corpus


def _within(documents: Iterable[Document], limit: float) -> Iterator[Document]:
    """The documents; ValueError where they grow larger than `limit` GiB."""
    size = 0
    for document in documents:
        size += len(document.text)
        if size > limit * GIB:
            raise ValueError(
                f"data.in_memory_limit={limit}: the documents that are kept in memory have more"
                f" than {limit} GiB of text; set data.streaming=true, hold out fewer documents, or"
                " raise the limit"
            )
        yield document


def _check_tokenizer(prepared_with: str, tokenizer: Tokenizer) -> None:
    if prepared_with != tokenizer.fingerprint:
        raise ValueError(
            f"data.tokenizer: its fingerprint is {tokenizer.fingerprint}, and the corpus was"
            f" prepared with {prepared_with}; use the tokenizer that it was prepared with"
        )
