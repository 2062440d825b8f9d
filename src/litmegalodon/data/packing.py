"""Documents end to end, cut into rows; nothing is cropped, dropped or predicted twice.

    stream   BOS a b c EOS BOS d EOS | after the last document: padding (EOS, ignored)
    target    a  b c EOS -    d EOS -      -: ignored, BOS and prompts are never predicted

Row i is the tokens i L to (i+1) L - 1; a long document continues in the next row, and the target of
a row's last position is the token that opens the next one.

Shapes: L seq_len, N tokens of the corpus.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from litmegalodon.data.store import IGNORED, TokenStore

CUTTINGS = ("packed", "lanes", "questions")

Row = tuple[np.ndarray, np.ndarray, np.ndarray]


class Rows(ABC):
    """Rows `(tokens int64 [L], targets int64 [L], resets bool [L])` of a store's documents."""

    store: TokenStore
    seq_len: int
    eos_id: int
    # Whether documents are kept apart by resets, padding too.
    reset_documents = True

    def __getitem__(self, i: int) -> Row:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is not in range({len(self)})")
        return self._row(i)

    def ignored_row(self) -> Row:
        """A row of padding, for a rank that has no row left: nothing in it is predicted."""
        tokens, targets, resets = empty_row(self.seq_len, self.eos_id)
        resets[0] = self.reset_documents
        return tokens, targets, resets

    @property
    @abstractmethod
    def num_targets(self) -> int:
        """Predicted tokens of all rows."""

    @property
    @abstractmethod
    def filled(self) -> int:
        """Positions of all rows that hold a token of a document."""

    @abstractmethod
    def padding(self, i: int) -> int:
        """Positions of row `i` that hold no token of a document."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _row(self, i: int) -> Row: ...


class PackedRows(Rows):
    """A store's documents end to end.

    `resets` is True at a document's first token and where the last row's padding begins; it is
    False everywhere with `reset_documents=False`, as in the released reference.
    """

    def __init__(
        self, store: TokenStore, seq_len: int, eos_id: int, reset_documents: bool = True
    ) -> None:
        self.store = store
        self.seq_len, self.eos_id = seq_len, eos_id
        self.reset_documents = reset_documents

    @property
    def num_targets(self) -> int:
        return self.store.num_targets

    @property
    def filled(self) -> int:
        return self.store.num_tokens

    def padding(self, i: int) -> int:
        return max(0, (i + 1) * self.seq_len - self.store.num_tokens)

    def __len__(self) -> int:
        return -(-self.store.num_tokens // self.seq_len)

    def _row(self, i: int) -> Row:
        store, first = self.store, i * self.seq_len
        # One token more than the row: the last target.
        stop = min(first + self.seq_len + 1, store.num_tokens)
        span = store.tokens(first, stop)
        real = min(len(span), self.seq_len)
        tokens, targets, resets = empty_row(self.seq_len, self.eos_id)
        tokens[:real] = span[:real]
        targets[: len(span) - 1] = span[1:]
        document = store.document_of(first)
        while (start := store.start(document)) < stop:
            # Position p predicts token p + 1; tokens of the prompt are not predicted.
            unpredicted = start + store.prompt(document)
            targets[max(0, start - 1 - first) : max(0, unpredicted - 1 - first)] = IGNORED
            if self.reset_documents and first <= start < first + real:
                resets[start - first] = True
            document += 1
            if document == store.num_documents:
                break
        if self.reset_documents:
            resets[real : real + 1] = True
        return tokens, targets, resets


def empty_row(seq_len: int, eos_id: int) -> Row:
    """A row of padding without a reset: EOS, and nothing to predict."""
    return (
        np.full(seq_len, eos_id, dtype=np.int64),
        np.full(seq_len, IGNORED, dtype=np.int64),
        np.zeros(seq_len, dtype=bool),
    )


def check_length(parts: Sequence[Rows]) -> None:
    """ValueError where packed rows to train on are longer than all documents of their store."""
    for rows in parts:
        if isinstance(rows, PackedRows) and rows.store.num_tokens < rows.seq_len:
            number = rows.store.num_tokens
            raise ValueError(
                f"data.seq_len={rows.seq_len}: longer than the training documents, which have"
                f" {number} tokens; set data.seq_len={number} or less, or give more text"
            )


def check_cutting(
    cutting: str, seq_len: int, chunk_size: int | None, streaming: bool = False
) -> None:
    """ValueError where data.cutting is unknown, rows of lanes are not whole chunks, or questions
    are to be streamed.
    """
    if cutting not in CUTTINGS:
        choices = f"{', '.join(CUTTINGS[:-1])} or {CUTTINGS[-1]}"
        raise ValueError(f"data.cutting={cutting}: must be {choices}")
    if cutting == "questions" and streaming:
        raise ValueError(
            "data.cutting=questions: rows of a document each are not cut from a stream; set"
            " data.streaming=false, or prepare the corpus with scripts/prepare_corpus.py"
        )
    if cutting != "lanes":
        return
    if chunk_size is None:
        raise ValueError(
            "data.cutting=lanes: what lanes carry from row to row has a fixed size, and a model "
            "without model.config.chunk_size attends to all of a row; set data.cutting=packed"
        )
    if seq_len % chunk_size:
        nearest = max(1, round(seq_len / chunk_size)) * chunk_size
        raise ValueError(
            f"data.seq_len={seq_len}: rows of lanes are whole chunks of"
            f" model.config.chunk_size={chunk_size}; set data.seq_len={nearest}"
        )
