"""Reading text into a state of fixed size, and writing on from it.

A text's last token is always known but not yet read: reading it gives the logits of what follows.
So what was read can be kept, saved and continued, by more text or by the model, at any place.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litmegalodon.data.tokenizer import PIECE, pieces
from litmegalodon.inference.generation import generate_together
from litmegalodon.inference.snapshot import load_state, save_state
from litmegalodon.inference.text_state import TextState, advance
from litmegalodon.models import Megalodon

Text = str | bytes | bytearray | memoryview


class Reader:
    """A model that reads one text and writes on from it.

    Reading takes constant memory and every token the same time, however long the text is. Texts
    that are read one after the other are one document; how it is cut makes no difference.

    Args:
        model: tokens, state, last_only -> logits, state.
        tokenizer: has `encode_piece`, `bytes_of`, `vocab_size`, `bos_id`, `eos_id`, `fingerprint`.
        state: what was read before, a `TextState` or a file of `save_state`; a new document by
            default.
        piece_tokens: tokens that go through the model at once.

    Attributes:
        state: what has been read; may be set.
        ended: why the last text came to its end: max_new_tokens, stop, or document where the model
            ended it.
    """

    def __init__(
        self,
        model: Megalodon,
        tokenizer: Any,
        state: TextState | str | Path | None = None,
        piece_tokens: int = 4096,
    ) -> None:
        if piece_tokens < 1:
            raise ValueError(f"piece_tokens={piece_tokens}: must be at least 1")
        if not getattr(model, "streams", True):
            raise ValueError(
                f"a {model.config.kind} remembers nothing from call to call here: the baseline is "
                "trained and validated, and writes no text"
            )
        self.model, self.tokenizer, self.piece_tokens = model, tokenizer, piece_tokens
        self.ended = ""
        if state is None:
            state = TextState(None, tokenizer.bos_id)
        elif not isinstance(state, TextState):
            state = load_state(state, model, tokenizer)
        self.state = state

    def read(
        self, text: Text | Iterable[Text], progress: Callable[[int], None] | None = None
    ) -> int:
        """Read text, whole or in parts that need not end with a character; returns its tokens.

        `progress` is called with the number of tokens after each piece. Interrupted, `state` is
        that after a whole number of pieces.
        """
        count = 0
        for part in text_pieces(text):
            first = self.state.tokens == 1
            ids = torch.from_numpy(self.tokenizer.encode_piece(part, first))
            self._read_tokens(ids, progress or (lambda tokens: None))
            count += len(ids)
        return count

    def generate(self, max_new_tokens: int = 200, **settings: Any) -> Iterator[str]:
        """Write on, text by text as soon as its characters are certain; see `generate_together`."""
        return (text for _, text in generate_together([self], max_new_tokens, **settings))

    def save_state(self, path: str | Path) -> None:
        """Write `state` to a safetensors file; `Reader(model, tokenizer, state=path)` goes on."""
        save_state(path, self.state, self.model, self.tokenizer)

    def _read_tokens(self, ids: Tensor, progress: Callable[[int], None]) -> None:
        tokens = torch.cat([torch.tensor([self.state.last]), ids])
        start = 0
        while start < len(ids):
            # Up to a multiple of the piece, so that pieces are whole chunks where they can be.
            place = self.state.tokens - 1
            count = min(self.piece_tokens - place % self.piece_tokens, len(ids) - start)
            piece = tokens[None, start : start + count]
            _, memory = advance(self.model, piece, self.state.memory)
            start += count
            self.state = TextState(memory, int(tokens[start]))
            progress(count)


def text_pieces(text: Text | Iterable[Text], size: int = PIECE) -> Iterator[bytes]:
    """The pieces that a tokenizer takes of a text, which may come in parts: the same however it is
    cut.
    """
    rest = bytearray()
    for part in [text] if isinstance(text, Text) else text:
        rest += part.encode() if isinstance(part, str) else part
        while len(rest) > size:
            # A piece is a function of the text's first `size` + 1 bytes.
            yield (piece := next(pieces(bytes(rest[: size + 1]), size)))
            del rest[: len(piece)]
    if rest:
        yield bytes(rest)
