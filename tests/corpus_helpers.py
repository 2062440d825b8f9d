"""A small corpus of several shards for worker processes, which import nothing large for it."""

import os
import signal

from litmegalodon.data import ByteTokenizer, Document, ListShard, ListSource


class Shards(ListSource):
    """Training documents in several shards, a list of Document or LeftOut each."""

    def __init__(self, shards, val):
        super().__init__([item for items in shards for item in items], val)
        self._shards = [ListShard(f"shard {s}", items) for s, items in enumerate(shards)]

    def shards(self, split):
        return self._shards if split == "train" else super().shards(split)


def source():
    """Three shards of five documents, and four held-out ones."""
    texts = {(s, i): b"%d text %d" % (s, i) * (i + 1) for s in range(3) for i in range(5)}
    shards = [[Document(f"{s}:{i}", texts[s, i]) for i in range(5)] for s in range(3)]
    return Shards(shards, [Document(f"held out {i}", b"held out %d" % i) for i in range(4)])


class Deadly(ByteTokenizer):
    """Ends its process, as the system does where memory runs out."""

    def encode_piece(self, piece, first):
        os.kill(os.getpid(), signal.SIGKILL)
