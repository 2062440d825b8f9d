"""Tokens in the order of reading, each row of a batch from documents of its own.

Row j of a batch of N is slot j. A slot reads the documents that are its own one after another,
without end, epoch after epoch: from a source's shards as they come (`ShardReader`), from a store in
a random order (`StoreReader`), or from several of these by weight (`MixtureReader`). Which
documents are a slot's own depends on N alone, so the same rows come whatever the number of
processes. Where a slot stands is a vector of integers, its place; from a place reading goes on as
if it had never stopped.

Shapes: n tokens of a piece, w numbers of a place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from litmegalodon.data.documents import LeftOut, Shard
from litmegalodon.data.order import row_at
from litmegalodon.data.store import OnError, TokenStore, tokenized
from litmegalodon.data.tokenizer import Tokenizer

# Tokens that a store gives at a time.
STRETCH = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Tokens of a document that follow one another.

    tokens: integers [n], BOS first where the piece `opens` a document, EOS last where it `closes`
        one.
    unpredicted: how many first tokens are not predicted.
    place, end: int64 [w], where its first token stands, and where reading goes on after its last.
    step: int64 [w], what a token adds to the place within the piece.
    """

    tokens: np.ndarray
    unpredicted: int
    opens: bool
    closes: bool
    place: np.ndarray
    step: np.ndarray
    end: np.ndarray

    def at(self, token: int) -> np.ndarray:
        """The place of a token of the piece, of its end for n."""
        return self.place + token * self.step if token < len(self.tokens) else self.end

    def after(self, tokens: int) -> "Piece":
        """The piece without its first tokens."""
        if not tokens:
            return self
        return replace(
            self,
            tokens=self.tokens[tokens:],
            unpredicted=max(0, self.unpredicted - tokens),
            opens=False,
            place=self.at(tokens),
        )


class Reader(Protocol):
    """What a slot reads."""

    # w
    width: int

    def pieces(self, place: np.ndarray) -> Iterator[Piece]:
        """Pieces from a place on, without end; the first place is all zeros.

        ValueError where there is no document for this slot at all.
        """

    def left_out(self, place: np.ndarray) -> int:
        """How many places of the source gave no document, up to a place."""


@dataclass(frozen=True)
class StoreReader:
    """Documents `slot`, `slot + slots`, ... of a store, permuted anew in every epoch.

    A place is (how many documents came before, tokens of the one at hand).
    """

    store: TokenStore
    slot: int
    slots: int
    seed: int
    shuffle: bool

    width = 2

    def pieces(self, place: np.ndarray) -> Iterator[Piece]:
        index, done = map(int, place)
        while True:
            sample = self.slot + index * self.slots
            _, document = row_at(sample, self.store.num_documents, self.seed, self.shuffle)
            first, stop = self.store.start(document), self.store.start(document + 1)
            prompt = self.store.prompt(document)
            for begin in range(done, stop - first, STRETCH):
                end = min(begin + STRETCH, stop - first)
                closes = end == stop - first
                yield Piece(
                    tokens=self.store.tokens(first + begin, first + end),
                    unpredicted=max(0, prompt - begin),
                    opens=begin == 0,
                    closes=closes,
                    place=np.array([index, begin]),
                    step=np.array([0, 1]),
                    end=np.array([index + 1, 0] if closes else [index, end]),
                )
            index, done = index + 1, 0

    def left_out(self, place: np.ndarray) -> int:
        return 0


@dataclass(frozen=True)
class ShardReader:
    """A slot's own documents of a source, shards permuted anew in every epoch.

    With at least as many shards as slots these are shards `slot`, `slot + slots`, ... whole; with
    fewer, documents `slot`, `slot + slots`, ... of the epoch, so that every slot passes over all of
    the text. A place is (shards before, record of the shard, documents of the epoch before, pieces
    of the document before, tokens of the piece before, places left out so far).
    """

    shards: Sequence[Shard]
    tokenizer: Tokenizer
    slot: int
    slots: int
    seed: int
    shuffle: bool
    on_error: OnError

    width = 6

    def pieces(self, place: np.ndarray) -> Iterator[Piece]:
        index, record, seen, piece, token, left_out = map(int, place)
        whole = len(self.shards) >= self.slots
        barren = 0
        while True:
            sample = self.slot + index * self.slots if whole else index
            _, number = row_at(sample, len(self.shards), self.seed, self.shuffle)
            fruitful = False
            for at, item in self.shards[number].documents(record):
                own = whole or seen % self.slots == self.slot
                if isinstance(item, LeftOut):
                    # Of the slots that pass over it, the one whose turn it is counts it.
                    if own:
                        left_out += self.on_error(item)
                    continue
                if own:
                    fruitful = True
                    here = (index, at, seen, left_out)
                    yield from self._of(item, here, piece, token)
                    piece = token = 0
                seen += 1
            barren = 0 if fruitful else barren + 1
            # Two epochs, since shards come in another order in the next one; whole shards without a
            # document can follow each other by chance for longer.
            if barren > len(self.shards) * (20 if whole else 2):
                raise ValueError(
                    f"data.batch_size={self.slots}: streaming gives each row of a batch documents"
                    f" of its own, and there is none for row {self.slot + 1}; set a smaller"
                    " data.batch_size, or data.streaming=false"
                )
            index, record = index + 1, 0
            seen = seen if whole or index % len(self.shards) else 0

    def _of(self, document, here: tuple[int, ...], skip: int, token: int) -> Iterator[Piece]:
        index, record, seen, left_out = here
        step = np.array([0, 0, 0, 0, 1, 0])
        tokens = tokenized(document, self.tokenizer, skip)
        for number, (ids, unpredicted, closes) in enumerate(tokens, skip):
            end = [index, record, seen, number + 1, 0, left_out]
            found = Piece(
                tokens=ids,
                unpredicted=unpredicted,
                opens=number == 0,
                closes=closes,
                place=np.array([index, record, seen, number, 0, left_out]),
                step=step,
                end=np.array([index, record + 1, seen + 1, 0, 0, left_out] if closes else end),
            )
            yield found.after(token if number == skip else 0)

    def left_out(self, place: np.ndarray) -> int:
        return int(place[5])


class MixtureReader:
    """Documents of several readers, each next one from the reader that is most behind its share.

    `weights` are shares of the tokens. A place is (1 + reader of the document at hand, 0 between
    documents; tokens read of each reader; each reader's place).
    """

    def __init__(self, readers: Sequence[Reader], weights: Sequence[float]) -> None:
        self.readers = list(readers)
        self.weights = np.array(weights) / sum(weights)
        widths = [reader.width for reader in self.readers]
        self._bounds = np.cumsum([1 + len(widths), *widths])
        self.width = int(self._bounds[-1])

    def pieces(self, place: np.ndarray) -> Iterator[Piece]:
        place = place.copy()
        count = len(self.readers)
        running = [
            reader.pieces(self._part(place, i).copy()) for i, reader in enumerate(self.readers)
        ]
        while True:
            if not place[0]:
                place[0] = 1 + int(np.argmin(place[1 : 1 + count] / self.weights))
            chosen = int(place[0]) - 1
            piece = next(running[chosen])
            self._part(place, chosen)[:] = piece.place
            step, end = np.zeros_like(place), place.copy()
            step[1 + chosen] = 1
            self._part(step, chosen)[:] = piece.step
            end[1 + chosen] += len(piece.tokens)
            self._part(end, chosen)[:] = piece.end
            end[0] = 0 if piece.closes else place[0]
            yield replace(piece, place=place.copy(), step=step, end=end)
            place = end.copy()

    def left_out(self, place: np.ndarray) -> int:
        return sum(r.left_out(self._part(place, i)) for i, r in enumerate(self.readers))

    def _part(self, place: np.ndarray, i: int) -> np.ndarray:
        return place[self._bounds[i] : self._bounds[i + 1]]
