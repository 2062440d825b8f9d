"""Text to token ids and back.

A tokenizer never adds the boundary tokens itself: a document is opened with `bos_id` and closed
with `eos_id` where it is cut into rows. A long text is tokenised piece by piece, so that a document
of any length takes the memory of one piece; the pieces are a function of the text alone.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

# Bytes of a piece: far above what a word spans, far below what a machine minds.
PIECE = 1 << 20


class Tokenizer(Protocol):
    """What packing, evaluation and generation need of a tokenizer."""

    bos_id: int
    eos_id: int
    vocab_size: int

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers exactly when they give the same ids for every text."""

    def encode(self, text: bytes | memoryview | str) -> np.ndarray:
        """Token ids of `text`, int64 [n], without boundary tokens: those of its pieces, joined."""

    def encode_piece(self, piece: bytes | memoryview, first: bool) -> np.ndarray:
        """Token ids of one of `pieces(text)`, int64 [n]; `first` says that it opens the text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without the boundary tokens; bytes that are no UTF-8 become U+FFFD."""

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids` without the boundary tokens."""


def pieces(text: bytes | memoryview, size: int = PIECE) -> Iterator[bytes]:
    """`text` in pieces of at most `size` bytes, none for an empty text.

    A piece ends before a line's end where there is one in its second half, else before a space,
    else between two characters.
    """
    start, length = 0, len(text)
    while length - start > size:
        window = bytes(text[start : start + size + 1])
        for separator in (b"\n", b" "):
            cut = window.rfind(separator, size // 2)
            if cut > 0:
                break
        else:
            cut = size
            # Bytes 10xxxxxx continue a character of at most four.
            while cut > max(1, size - 3) and window[cut] & 0xC0 == 0x80:
                cut -= 1
        yield window[:cut]
        start += cut
    if start < length:
        yield bytes(text[start:])


class ByteTokenizer:
    """Bytes as tokens: ids 0 to 255 are the bytes of the UTF-8 text, then `bos_id` and `eos_id`."""

    bos_id = 256
    eos_id = 257
    vocab_size = 258
    fingerprint = "bytes-bos256-eos257"

    def encode(self, text: bytes | memoryview | str) -> np.ndarray:
        return self.encode_piece(text.encode() if isinstance(text, str) else text, first=True)

    def encode_piece(self, piece: bytes | memoryview, first: bool) -> np.ndarray:
        return np.frombuffer(piece, dtype=np.uint8).astype(np.int64)

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


def check_tokenizer(tokenizer: Tokenizer, state_dict: Mapping[str, Any], whose: str) -> None:
    """ValueError if weights, trained with a data module of this state, are of other ids."""
    name, ours = "tokenizer.fingerprint", tokenizer.fingerprint
    if state_dict[name] != ours:
        raise ValueError(
            f"data.{name}={ours}: {whose} was trained with {state_dict[name]}, to which these"
            " ids are other text; take the tokenizer that it was trained with"
        )
