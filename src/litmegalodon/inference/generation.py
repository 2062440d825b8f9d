"""Writing on from what was read, one token of every text at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litmegalodon.inference.drawing import Drawing, check_stops
from litmegalodon.inference.sampling import sample_next
from litmegalodon.inference.text_state import TextState, advance
from litmegalodon.inference.writing import Writer
from litmegalodon.models import MegalodonState

if TYPE_CHECKING:
    from litmegalodon.inference.reader import Reader

# Tokens of a text that `repetition_penalty` looks back on: after a book every word has been read.
RECENT = 256


def generate_together(
    readers: Sequence["Reader"],
    max_new_tokens: int = 200,
    *,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    agree: Callable[[list[int]], list[int]] | None = None,
    **drawing: Any,
) -> Iterator[tuple[int, str]]:
    """Write on from what several readers of one model have read, in one batch.

    Each text is the one that its reader would write alone: it has random numbers of its own, and
    leaves the batch when it ends. It ends where the model ends the document, before the first of
    the stop strings, or after `max_new_tokens`. BOS and ids outside the tokenizer's vocabulary are
    never drawn. Afterwards, also after a generator was closed early, a reader's `state` is that
    after the last token drawn, which may be part of a stop string; the end of a document is not
    read, so that a text can be continued.

    Args:
        readers: what to write on from; changed.
        max_new_tokens: how many tokens a text has at most.
        stop: strings, one or many.
        seed: of each text's random numbers.
        agree: maps the tokens drawn here to those that all processes continue with: where
            parameters are sharded, every process has to make the same calls.
        drawing: settings of `Drawing`.

    Returns:
        (index of a reader, the next part of its text) as soon as there is one, never empty.

    Raises:
        ValueError: a setting is out of range, the readers have different models, or, while
            generating, the logits hold NaN.
    """
    how, stops = Drawing(**drawing), check_stops(stop)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be 0 or more")
    if not readers:
        raise ValueError("readers: there is none to write on from")
    if any(reader.model is not readers[0].model for reader in readers):
        raise ValueError("readers: have different models; a batch is of one model")
    # A function of its own: a generator would check nothing before its first text is asked for.
    return _generate(readers, max_new_tokens, how, stops, seed, agree)


class _Row:
    """One text that is being written."""

    def __init__(self, index: int, reader: "Reader", stops: Sequence[str], seed: int) -> None:
        self.index, self.reader = index, reader
        self.last = reader.state.last
        self.writer = Writer(reader.tokenizer, self.last, stops)
        self.generator = torch.Generator().manual_seed(seed)
        self.recent: deque[int] = deque(maxlen=RECENT)
        self.ended = reader.ended = ""

    def take(self, token: int) -> str:
        """Go on by a drawn token; the text that it makes certain."""
        if token == self.reader.tokenizer.eos_id:
            self.ended = "document"
            return self.writer.finish()
        self.last = token
        self.recent.append(token)
        text = self.writer.push(token)
        if self.writer.stopped:
            self.ended = "stop"
        return text

    def leave(self, memory: MegalodonState | None) -> None:
        """Hand what was read and written to the reader."""
        self.reader.state, self.reader.ended = TextState(memory, self.last), self.ended


def _generate(
    readers: Sequence["Reader"],
    max_new_tokens: int,
    drawing: Drawing,
    stops: Sequence[str],
    seed: int,
    agree: Callable[[list[int]], list[int]] | None,
) -> Iterator[tuple[int, str]]:
    rows = [_Row(i, reader, stops, seed) for i, reader in enumerate(readers)]
    model, tokenizer = readers[0].model, readers[0].tokenizer
    alone = len(rows) == 1
    memory = rows[0].reader.state.memory if alone else _joined(rows)

    def of_row(memory: MegalodonState | None, place: int) -> MegalodonState | None:
        if alone or memory is None:
            return memory
        return memory.row(place, model.config.attention_chunk)

    try:
        for _ in range(max_new_tokens):
            before = memory
            logits, after = advance(model, torch.tensor([[row.last] for row in rows]), memory)
            ids = sample_next(
                _allowed(logits, tokenizer),
                drawing,
                [row.generator for row in rows],
                [row.recent for row in rows],
            ).tolist()
            ids = ids if agree is None else agree(ids)
            # From here to the next call of the model, rows and memory belong together.
            texts = [row.take(token) for row, token in zip(rows, ids, strict=True)]
            memory, stepped = after, rows
            for place, row in enumerate(rows):
                if row.ended:
                    # The end of a document was drawn from the memory before `last` was read.
                    row.leave(of_row(before if row.ended == "document" else after, place))
            going = [place for place, row in enumerate(rows) if not row.ended]
            rows = [rows[place] for place in going]
            if 0 < len(going) < len(stepped):
                memory = memory.select(going)
            yield from ((row.index, t) for row, t in zip(stepped, texts, strict=True) if t)
            if not rows:
                return
        for row in rows:
            row.ended = "max_new_tokens"
            if text := row.writer.finish():
                yield row.index, text
    finally:
        for place, row in enumerate(rows):
            row.leave(of_row(memory, place))


def _joined(rows: list[_Row]) -> MegalodonState:
    """The memory of all rows; those that have read nothing get that of having read nothing."""
    model = rows[0].reader.model
    memories = [row.reader.state.memory for row in rows]
    fresh = model.fresh_state()
    return MegalodonState.join([fresh if memory is None else memory for memory in memories])


def _allowed(logits: Tensor, tokenizer: Any) -> Tensor:
    """Logits [B, V] without BOS, which only opens documents, and rows beyond the vocabulary."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill((ids >= tokenizer.vocab_size) | (ids == tokenizer.bos_id), -torch.inf)
