"""Held-out documents whole, for whoever reads them in a way of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from litmegalodon.data.store import TokenStore


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
        lengths = [
            (min(store.start(d + 1) - store.start(d), max_tokens or 1 << 62), s, d)
            for s, store in enumerate(self.stores)
            for d in range(store.num_documents)
        ]
        self._documents = sorted(lengths, key=lambda found: (-found[0], found[1:]))

    def __len__(self) -> int:
        return -(-len(self._documents) // self.rank()[1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} is not in range({len(self)})")
        rank, world = self.rank()
        longest = self._documents[i * world][0]
        if i * world + rank >= len(self._documents):
            nothing = torch.zeros(1, 0, dtype=torch.int64)
            return {"tokens": nothing, "unpredicted": 0, "longest": longest}
        length, s, d = self._documents[i * world + rank]
        store = self.stores[s]
        first = store.start(d)
        tokens = torch.from_numpy(store.tokens(first, first + length).astype(np.int64))
        return {"tokens": tokens[None], "unpredicted": store.prompt(d), "longest": longest}
