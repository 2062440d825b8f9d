"""What a corpus is made of: how long its documents are, and which held-out ones are trained on."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from litmegalodon.data.documents import LeftOut, Source
from litmegalodon.data.mixture import parts_of
from litmegalodon.data.store import TokenStore, tokenized
from litmegalodon.data.tokenizer import Tokenizer

# Places without a document that are named; all are counted.
NAMED = 5


@dataclass
class Survey:
    """The documents of a split, or the first of them, in order.

    lengths: tokens of each, boundary tokens included.
    digests: equal for documents of equal tokens.
    text_bytes: of all, prompts included; None where the corpus is tokenised already.
    left_out, errors: places without a document, and how many of them are errors.
    named: the first errors.
    complete: whether these are all documents.
    """

    names: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    text_bytes: int | None = 0
    left_out: int = 0
    errors: int = 0
    named: list[LeftOut] = field(default_factory=list)
    complete: bool = True

    def copies_in(self, other: "Survey") -> list[tuple[str, str]]:
        """(name here, name there) of the documents that are also in `other`, token for token."""
        there = dict(zip(reversed(other.digests), reversed(other.names), strict=True))
        return [
            (name, there[digest])
            for name, digest in zip(self.names, self.digests, strict=True)
            if digest in there
        ]


def survey(source: Source, tokenizer: Tokenizer, split: str, limit: int | None) -> Survey:
    """Read and tokenise the documents of a split, at most `limit`; keeps none of their text."""
    found = Survey()
    for part, _ in parts_of(source):
        items = (
            _of_store(part.store(split), split)
            if hasattr(part, "store")
            else _of_shards(part, tokenizer, split)
        )
        for item in items:
            if isinstance(item, LeftOut):
                if item.again:
                    continue
                found.left_out += 1
                found.errors += item.error
                if item.error and len(found.named) < NAMED:
                    found.named.append(item)
                continue
            if limit is not None and len(found.lengths) == limit:
                found.complete = False
                return found
            name, tokens, text_bytes = item
            digest, length = hashlib.sha256(), 0
            for ids in tokens:
                digest.update(ids.astype(np.int32).tobytes())
                length += len(ids)
            found.names.append(name)
            found.lengths.append(length)
            found.digests.append(digest.digest())
            if text_bytes is None or found.text_bytes is None:
                found.text_bytes = None
            else:
                found.text_bytes += text_bytes
    return found


# A document's name, its tokens piece by piece, and the bytes of its text where they are known.
Tokens = tuple[str, Iterable[np.ndarray], int | None]


def _of_shards(source: Source, tokenizer: Tokenizer, split: str) -> Iterator[Tokens | LeftOut]:
    for shard in source.shards(split):
        for _, item in shard.documents():
            if isinstance(item, LeftOut):
                yield item
            else:
                tokens = (ids for ids, _, _ in tokenized(item, tokenizer))
                yield item.name, tokens, len(item.prompt) + len(item.text)


def _of_store(store: TokenStore, split: str) -> Iterator[Tokens]:
    for i in range(store.num_documents):
        tokens = store.tokens(store.start(i), store.start(i + 1))
        yield f"{split} document {i + 1}", [tokens], None


def draw_lengths(surveys: dict[str, Survey], row: int, path: Path) -> None:
    """Two histograms over the tokens of a document: documents, and the tokens they hold.

    `row` is the number of tokens in a row, drawn as a line.
    """
    lengths = {split: np.array(found.lengths) for split, found in surveys.items() if found.lengths}
    ends = [(of_split.min(), of_split.max()) for of_split in lengths.values()]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    # Eight bins to a factor of ten, one at least where all are of one length.
    bins = np.geomspace(low, high + 1, max(2, int(8 * np.log10((high + 1) / low)) + 2))
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Outlines, since held-out documents are of about the same lengths.
    for (split, of_split), style in zip(lengths.items(), ("-", "--"), strict=False):
        label = {"train": "to train on", "val": "held out"}.get(split, split)
        options = {"bins": bins, "histtype": "step", "linestyle": style, "linewidth": 1.5}
        left.hist(of_split, weights=np.full(len(of_split), 100 / len(of_split)), **options)
        right.hist(of_split, weights=100 * of_split / of_split.sum(), label=label, **options)
    _label(left, "% of documents", row)
    _label(right, "% of tokens", row)
    right.legend()
    figure.savefig(path, dpi=120)


def _label(axes: Axes, what: str, row: int) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("tokens of a document")
    axes.set_ylabel(what)
    axes.axvline(row, color="grey", linewidth=1, linestyle=":", label=f"a row, {row:,} tokens")
