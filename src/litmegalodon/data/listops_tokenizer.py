"""The symbols of ListOps as tokens."""

from collections.abc import Iterable

import numpy as np

from litmegalodon.data.listops import SYMBOLS

_IDS = {symbol.encode(): i for i, symbol in enumerate(SYMBOLS)}


class ListOpsTokenizer:
    """A token for each symbol: a digit is its own id, so that the value of a list is its class.

    Ids 10 to 13 are the operators, 14 closes a list, then `bos_id` and `eos_id`. Symbols are parted
    by white space. ValueError for any other text.
    """

    bos_id = len(SYMBOLS)
    eos_id = len(SYMBOLS) + 1
    vocab_size = len(SYMBOLS) + 2
    fingerprint = "listops-15"

    def encode(self, text: bytes | memoryview | str) -> np.ndarray:
        return self.encode_piece(text.encode() if isinstance(text, str) else text, first=True)

    def encode_piece(self, piece: bytes | memoryview, first: bool) -> np.ndarray:
        symbols = bytes(piece).split()
        try:
            return np.array([_IDS[symbol] for symbol in symbols], dtype=np.int64)
        except KeyError as error:
            raise ValueError(
                f"data.tokenizer: ListOps has no symbol {error.args[0].decode(errors='replace')!r};"
                " data=listops alone is written in these"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        return self.bytes_of(ids).decode()

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """The symbols of `ids`; ValueError for an id beyond the vocabulary."""
        ids = [int(i) for i in ids]
        if outside := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {self.vocab_size}")
        return " ".join(SYMBOLS[i] for i in ids if i < self.bos_id).encode()
