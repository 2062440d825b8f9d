"""Held-out documents whole, for whoever reads them in a way of their own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from litmegalodon.data.store import TokenStore

# A text's length, the number of its store, and the document that it is or begins with.
Place = tuple[int, int, int]


class WholeDocuments(Dataset):
    """Documents from the longest to the shortest, each rank its share, as many batches on each.

    A batch is `tokens` int64 [1, n], BOS to EOS, `unpredicted`, how many first tokens are not
    predicted, and `longest`, the largest n of the ranks' documents at this place: whoever has to
    make as many calls as the others makes as many as that takes. A rank without a document left
    has n = 0.

    Args:
        stores: of the documents.
        rank: gives this process' rank among the data-parallel ones and their number; asked when
            the first batch is.
        max_tokens: of a longer document only as many first tokens are taken, None for all.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        rank: Callable[[], tuple[int, int]],
        max_tokens: int | None = None,
    ) -> None:
        self.stores, self.rank = list(stores), rank
        found = [(min(n, max_tokens or n), s, d) for n, s, d in self._texts()]
        self._places = sorted(found, key=lambda place: (-place[0], place[1:]))

    def __len__(self) -> int:
        return -(-len(self._places) // self.rank()[1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} is not in range({len(self)})")
        rank, world = self.rank()
        longest = self._places[i * world][0]
        if i * world + rank >= len(self._places):
            nothing = torch.zeros(1, 0, dtype=torch.int64)
            return {"tokens": nothing, "unpredicted": 0, "longest": longest}
        length, s, d = self._places[i * world + rank]
        tokens = torch.from_numpy(self._tokens(length, s, d).astype(np.int64))
        return {
            "tokens": tokens[None],
            "unpredicted": self.stores[s].prompt(d),
            "longest": longest,
        }

    def _texts(self) -> Iterator[Place]:
        for s, store in enumerate(self.stores):
            for d in range(store.num_documents):
                yield store.start(d + 1) - store.start(d), s, d

    def _tokens(self, length: int, s: int, d: int) -> np.ndarray:
        first = self.stores[s].start(d)
        return self.stores[s].tokens(first, first + length)


class JoinedDocuments(WholeDocuments):
    """Documents end to end as texts longer than each of them, in batches as of WholeDocuments.

    A text is BOS and prompt of one document, then what is predicted of that and of all after it,
    in order and from the last one on with the first: no end, no BOS and no prompt stands between.

    Args:
        texts: their number at most, each beginning with another document, evenly spaced.
        stores, rank, max_tokens: as of WholeDocuments.
    """

    def __init__(
        self,
        texts: int,
        stores: Sequence[TokenStore],
        rank: Callable[[], tuple[int, int]],
        max_tokens: int | None = None,
    ) -> None:
        self.texts = texts
        super().__init__(stores, rank, max_tokens)

    def _texts(self) -> Iterator[Place]:
        every = [(s, d) for s, store in enumerate(self.stores) for d in range(store.num_documents)]
        # Without the ends.
        predicted = sum(store.num_targets - store.num_documents for store in self.stores)
        number = min(self.texts, len(every))
        for i in range(number):
            s, d = every[i * len(every) // number]
            yield self.stores[s].prompt(d) + predicted, s, d

    def _tokens(self, length: int, s: int, d: int) -> np.ndarray:
        first = self.stores[s].start(d)
        parts = [self.stores[s].tokens(first, first + self.stores[s].prompt(d))]
        missing = length - len(parts[0])
        while missing > 0:
            store = self.stores[s]
            first = store.start(d) + store.prompt(d)
            part = store.tokens(first, min(store.start(d + 1) - 1, first + missing))
            parts.append(part)
            missing -= len(part)
            d += 1
            if d == store.num_documents:
                s, d = (s + 1) % len(self.stores), 0
        return np.concatenate(parts)[:length]
