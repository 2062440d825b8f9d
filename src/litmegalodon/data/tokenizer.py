"""Text to token ids and back.

A tokenizer never adds the boundary tokens itself: packing opens every document with `bos_id` and
closes it with `eos_id`.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np


class Tokenizer(Protocol):
    """What packing, evaluation and generation need of a tokenizer."""

    bos_id: int
    eos_id: int
    vocab_size: int

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers exactly when they give the same ids for every text."""

    def encode(self, text: bytes | str) -> np.ndarray:
        """Token ids of `text`, int64 [n], without boundary tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without the boundary tokens; bytes that are no UTF-8 become U+FFFD."""

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids` without the boundary tokens."""


class ByteTokenizer:
    """Bytes as tokens: ids 0 to 255 are the bytes of the UTF-8 text, then `bos_id` and `eos_id`."""

    bos_id = 256
    eos_id = 257
    vocab_size = 258
    fingerprint = "bytes-bos256-eos257"

    def encode(self, text: bytes | str) -> np.ndarray:
        data = text.encode() if isinstance(text, str) else text
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return self.bytes_of(ids).decode("utf-8", errors="replace")

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids` without boundary tokens; ValueError for an id beyond the vocabulary."""
        ids = [int(i) for i in ids]
        outside = [i for i in ids if not 0 <= i < self.vocab_size]
        if outside:
            raise ValueError(
                f"token {outside[0]} is outside the tokenizer's vocabulary of {self.vocab_size}:"
                " mask the ids above it before sampling"
            )
        return bytes(i for i in ids if i < self.bos_id)
