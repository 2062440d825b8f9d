"""A row of a batch as text that shows where documents begin and end."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from litmegalodon.data.store import IGNORED
from litmegalodon.data.tokenizer import Tokenizer


def row_text(
    tokens: Sequence[int],
    targets: Sequence[int],
    resets: Sequence[bool],
    tokenizer: Tokenizer,
    characters: int = 400,
) -> list[str]:
    """Lines that show a row: text as `| ...`, prompts as `> ...`, boundaries as `-- ...`.

    A stretch of more than `characters` is shortened in its middle.
    """
    lines = []
    marks = list(_marks(tokens, targets, resets, tokenizer))
    for mark, group in groupby(zip(marks, tokens, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in group]
        if mark in ("| ", "> "):
            text = _shortened(tokenizer.decode(ids), characters)
            lines += [mark + line for line in text.split("\n")]
        elif mark == PADDING:
            lines.append(f"-- padding: {len(ids):,} tokens")
        else:
            lines += [f"-- {mark}"] * len(ids)
    return lines


PADDING = "padding"


def _marks(
    tokens: Sequence[int], targets: Sequence[int], resets: Sequence[bool], tokenizer: Tokenizer
) -> Iterator[str]:
    """What each position is: a boundary's name, `| ` of text or `> ` of a prompt."""
    for i, token in enumerate(tokens):
        reset = "reset" if resets[i] else "no reset"
        # A token is predicted where the one before has it as its target; of a row's first token
        # that stands in the row before, and what follows tells as much.
        predicted = targets[i - 1] != IGNORED if i else targets[i] != IGNORED
        if token == tokenizer.bos_id:
            yield f"document begins, {reset}"
        elif token == tokenizer.eos_id:
            ends = predicted if i else len(tokens) == 1 or tokens[1] != token
            yield "document ends" if ends else PADDING
        elif resets[i]:
            yield f"reset at {token}, which is no document's beginning"
        else:
            yield "| " if predicted else "> "


def _shortened(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    half = characters // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]} [... {left_out:,} characters ...] {text[len(text) - half :]}"
