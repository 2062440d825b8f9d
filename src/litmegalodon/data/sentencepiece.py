"""SentencePiece models as tokenizers; Llama 2's 32K works unchanged."""

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from litmegalodon.data.tokenizer import pieces

# How SentencePiece writes a space inside a token.
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

# A serialised field that, put behind a model, replaces its own: normalizer_spec (3, a message),
# in it add_dummy_prefix (3, a varint). A parser of protocol buffers merges what stands twice.
_DUMMY_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3])

# What is no UTF-8, as errors="surrogateescape" decodes it.
_BROKEN = re.compile("([\udc80-\udcff]+)")


class SentencePieceTokenizer:
    """The tokenizer of a SentencePiece model file.

    The ids of a text of one piece are those of `SentencePieceProcessor.encode`. Those of a longer
    text are too, where a line's end opens a token and never stands inside one, as in a model that
    was trained on lines: the space that such models put before a text is put before the first
    piece only. Bytes that are no UTF-8 become the model's byte tokens, so that they come back as
    they were; a model without byte tokens reads each as U+FFFD, its unknown token in general.
    ValueError `data.tokenizer.path=...` where the file cannot be read, is no model, or is one
    without the boundary tokens.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)
        try:
            self.model = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(
                f"data.tokenizer.path={path}: {(error.strerror or 'cannot be read').lower()};"
                " name a SentencePiece model file, or train one with scripts/train_tokenizer.py"
            ) from error
        self._load()

    def _load(self) -> None:
        self._processor = self._processor_of(self.model)
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        for name, token in {"bos": self.bos_id, "eos": self.eos_id}.items():
            if token < 0:
                raise ValueError(
                    f"data.tokenizer.path={self.path}: the model has no {name} token, which"
                    f" documents need; train it with {name}_id=, as scripts/train_tokenizer.py does"
                )
        letter = self._processor.normalize("a")
        if letter.endswith(SPACE):
            raise ValueError(
                f"data.tokenizer.path={self.path}: the model writes spaces as suffixes, which is"
                " not supported; train it with treat_whitespace_as_suffix=false"
            )
        self._adds_prefix = letter.startswith(SPACE)
        self._keeps_spaces = SPACE * 2 in self._processor.normalize("a  b")
        # By whether a space is put before the text.
        other = self._processor_of(self.model + _DUMMY_PREFIX + bytes([not self._adds_prefix]))
        self._by_prefix = {self._adds_prefix: self._processor, not self._adds_prefix: other}
        byte = self._processor.piece_to_id("<0x00>")
        self._first_byte = byte if self._processor.is_byte(byte) else None

    def _processor_of(self, model: bytes) -> Any:
        from sentencepiece import SentencePieceProcessor

        try:
            # Empty bytes are a model that is not loaded yet, to SentencePiece.
            return SentencePieceProcessor(model_proto=model if self.model else b" ")
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"data.tokenizer.path={self.path}: is no SentencePiece model"
                f" ({len(self.model)} bytes); name the .model file itself, not its vocabulary or a"
                " configuration"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        # A worker must have this very model, whatever happens to the file.
        return {"path": self.path, "model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the model file."""
        return hashlib.sha256(self.model).hexdigest()[:16]

    def encode(self, text: bytes | memoryview | str) -> np.ndarray:
        text = text.encode() if isinstance(text, str) else text
        parts = [self.encode_piece(piece, first=i == 0) for i, piece in enumerate(pieces(text))]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def encode_piece(self, piece: bytes | memoryview, first: bool) -> np.ndarray:
        try:
            return self._ids(str(piece, "utf-8"), first)
        except UnicodeDecodeError:
            pass
        if self._first_byte is None:
            return self._ids(str(piece, "utf-8", "replace"), first)
        parts = []
        # Odd places hold what is broken.
        for i, part in enumerate(_BROKEN.split(str(piece, "utf-8", "surrogateescape"))):
            if i % 2:
                raw = np.frombuffer(part.encode("utf-8", "surrogateescape"), np.uint8)
                parts.append(self._first_byte + raw.astype(np.int64))
            elif part:
                parts.append(self._ids(part, first and i == 0))
        return np.concatenate(parts)

    def _ids(self, text: str, first: bool) -> np.ndarray:
        # Where spaces at the ends are dropped, the prefix stands in for those at a piece's start.
        stands_in = not self._keeps_spaces and text[:1].isspace()
        prefix = self._adds_prefix if first else stands_in
        return np.asarray(self._by_prefix[prefix].encode(text, out_type=int), dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return self.bytes_of(ids).decode("utf-8", errors="replace")

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids` without the boundary tokens; ValueError for an id beyond the vocabulary.

        The space that the model puts before a text is taken off the first token.
        """
        ids = [int(i) for i in ids]
        outside = [i for i in ids if not 0 <= i < self.vocab_size]
        if outside:
            raise ValueError(
                f"token {outside[0]} is outside the tokenizer's vocabulary of {self.vocab_size}:"
                " mask the ids above it before sampling"
            )
        surfaces = self._surfaces
        data = b"".join([surfaces[i] for i in ids])
        opening = next((i for i in ids if surfaces[i]), None)
        if opening is None or not self._processor.id_to_piece(opening).startswith(SPACE):
            return data
        if not self._keeps_spaces:
            return data.lstrip(b" ")
        return data[1:] if self._adds_prefix else data

    @property
    def names(self) -> list[str]:
        """What the model calls each id; no two alike."""
        return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

    def byte_values(self, ids: np.ndarray) -> np.ndarray:
        """The bytes that those of `ids` stand for which are byte tokens, uint8."""
        if self._first_byte is None:
            return np.empty(0, np.uint8)
        values = ids - self._first_byte
        return values[(values >= 0) & (values < 256)].astype(np.uint8)

    @cached_property
    def _surfaces(self) -> list[bytes]:
        """What each id stands for in a text."""
        processor = self._processor
        surfaces = []
        for i in range(self.vocab_size):
            piece = processor.id_to_piece(i)
            if processor.is_control(i):
                surfaces.append(b"")
            elif processor.is_byte(i):
                surfaces.append(bytes([int(piece[3:5], 16)]))
            elif processor.is_unknown(i):
                surfaces.append(processor.decode([i]).encode())
            else:
                surfaces.append(piece.replace(SPACE, " ").encode())
        return surfaces
