"""Documents end to end, cut into rows; nothing is cropped, dropped or predicted twice.

    stream   BOS a b c EOS BOS d EOS | after the last document: padding (EOS, ignored)
    target    a  b c EOS -    d EOS -      -: ignored, BOS is never predicted

Row i is the tokens i L to (i+1) L - 1; a long document continues in the next row, and the target of
a row's last position is the token that opens the next one.

Shapes: L seq_len, N tokens of the corpus.
"""

from collections.abc import Sequence

import numpy as np

from litmegalodon.data.documents import Document
from litmegalodon.data.tokenizer import Tokenizer

IGNORED = -100

Row = tuple[np.ndarray, np.ndarray, np.ndarray]


class PackedRows(Sequence[Row]):
    """Rows `(tokens int64 [L], targets int64 [L], resets bool [L])` of documents in given order.

    `resets` is True at a document's first token and where the last row's padding begins; it is
    False everywhere with `reset_documents=False`, as in the released reference.
    `num_bytes` counts the documents' text, `num_tokens` adds their boundary tokens, `num_targets`
    are the positions that are predicted.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        seq_len: int,
        reset_documents: bool = True,
    ) -> None:
        self.seq_len = seq_len
        self.reset_documents = reset_documents
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
        parts = [np.empty(0, dtype)]
        for document in documents:
            ids = tokenizer.encode(document.text)
            parts.append(np.concatenate([[self.bos_id], ids, [self.eos_id]]).astype(dtype))
        # [N]
        self.tokens = np.concatenate(parts)
        self.num_documents = len(documents)
        self.num_bytes = sum(len(document.text) for document in documents)
        self.num_tokens = len(self.tokens)
        self.num_targets = self.num_tokens - self.num_documents

    @property
    def utilisation(self) -> float:
        """Share of all positions that hold a token of a document, 0 to 1."""
        return self.num_tokens / max(1, len(self) * self.seq_len)

    def __len__(self) -> int:
        return -(-self.num_tokens // self.seq_len)

    def __getitem__(self, i: int) -> Row:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is not in range({len(self)})")
        tokens, targets, resets = self.ignored_row()
        # One token more than the row: the last target.
        span = self.tokens[i * self.seq_len : (i + 1) * self.seq_len + 1].astype(np.int64)
        real = min(len(span), self.seq_len)
        tokens[:real] = span[:real]
        targets[: len(span) - 1] = np.where(span[1:] == self.bos_id, IGNORED, span[1:])
        if self.reset_documents:
            resets[:real] = span[:real] == self.bos_id
            resets[real : real + 1] = True
        return tokens, targets, resets

    def ignored_row(self) -> Row:
        """A row of padding, for a rank that has no row left: nothing in it is predicted."""
        tokens = np.full(self.seq_len, self.eos_id, dtype=np.int64)
        targets = np.full(self.seq_len, IGNORED, dtype=np.int64)
        resets = np.zeros(self.seq_len, dtype=bool)
        resets[0] = self.reset_documents
        return tokens, targets, resets
