"""One document a row, its answer alone predicted: what is asked about whole sequences.

    tokens   BOS prompt answer        without the answer's last token, then padding (EOS)
    target    -    -    answer        -: ignored; the end is not predicted

Shapes: L seq_len.
"""

from litmegalodon.data.packing import Row, Rows, empty_row
from litmegalodon.data.store import TokenStore


class QuestionRows(Rows):
    """A row for each document of a store.

    A target is a token of the document's text: all of it without a prompt. ValueError where a
    document is longer than a row: nothing is cropped.
    """

    def __init__(self, store: TokenStore, seq_len: int, eos_id: int, setting: str) -> None:
        self.store = store
        self.seq_len, self.eos_id = seq_len, eos_id
        # The last token of the text and EOS are not read.
        longest = max(map(self._read, range(len(self))), default=0)
        if longest > seq_len:
            raise ValueError(
                f"data.{setting}={seq_len}: data.cutting=questions has a whole document in each"
                f" row, and the longest one takes {longest} tokens; set data.{setting}={longest}"
            )

    @property
    def num_targets(self) -> int:
        return self.store.num_targets - len(self)

    @property
    def filled(self) -> int:
        return self.store.num_tokens - 2 * len(self)

    def check_outputs(self, outputs: int) -> None:
        """ValueError if a target is not below `outputs`, the number of a model's classes."""
        store = self.store
        answers = (
            store.tokens(store.start(i) + store.prompt(i), store.start(i + 1) - 1)
            for i in range(len(self))
        )
        largest = max((int(answer.max()) for answer in answers if len(answer)), default=-1)
        if largest >= outputs:
            raise ValueError(
                f"model.config.output_size={outputs}: the answers of data.cutting=questions hold"
                f" the token {largest}; set at least {largest + 1}, or -1 for all of the vocabulary"
            )

    def padding(self, i: int) -> int:
        return self.seq_len - self._read(i)

    def __len__(self) -> int:
        return self.store.num_documents

    def _row(self, i: int) -> Row:
        start, read = self.store.start(i), self._read(i)
        span = self.store.tokens(start, start + read + 1)
        tokens, targets, resets = empty_row(self.seq_len, self.eos_id)
        tokens[:read] = span[:-1]
        first = self.store.prompt(i) - 1
        targets[first:read] = span[first + 1 :]
        resets[0] = True
        return tokens, targets, resets

    def _read(self, i: int) -> int:
        return self.store.start(i + 1) - self.store.start(i) - 2
