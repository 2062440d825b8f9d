"""Documents that are made when they are asked for, as functions of their number."""

from collections.abc import Iterator
from dataclasses import dataclass

from litmegalodon.data.documents import Document

# Documents of a shard.
SHARD = 1000


class OnDemandSource:
    """Base of sources that make `documents` to train on and `val_documents` to validate on."""

    documents: int
    val_documents: int

    def document(self, split: str, index: int) -> Document:
        """Document `index` of a split, from 0."""
        raise NotImplementedError

    def shards(self, split: str) -> list["OnDemandShard"]:
        number = self.documents if split == "train" else self.val_documents
        starts = range(0, number, SHARD)
        sizes = [min(SHARD, number - start) for start in starts]
        return [
            OnDemandShard(f"{split}/{start}", self, split, start, size)
            for start, size in zip(starts, sizes, strict=True)
        ]

    @property
    def left_out(self) -> dict[str, int]:
        return {"files": 0, "bytes": 0}


@dataclass(frozen=True)
class OnDemandShard:
    """Documents `start` to `start + number` of a split."""

    name: str
    source: OnDemandSource
    split: str
    start: int
    number: int

    def documents(self, first: int = 0) -> Iterator[tuple[int, Document]]:
        for i in range(first, self.number):
            yield i, self.source.document(self.split, self.start + i)
