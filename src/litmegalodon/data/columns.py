"""Which columns of a record are a document, and what a record without them is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from litmegalodon.data.documents import Document, LeftOut
from litmegalodon.data.utf8 import first_broken_byte


@dataclass(frozen=True)
class Columns:
    """The column of the text, or the two of a prompt and its completion, by which a source reads.

    With `prompt` and `completion` a document is read whole, and only the completion is predicted;
    `text` is then without effect. ValueError that names the setting where they do not go together.
    """

    text: str = "text"
    prompt: str | None = None
    completion: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None):
            given, missing = "prompt", "completion"
            if self.prompt is None:
                given, missing = missing, given
            raise ValueError(
                f"data.source.{given}_column={getattr(self, given)}: goes together with"
                f" data.source.{missing}_column; set both, or text_column alone"
            )
        for setting, column in zip(self.settings, self.names, strict=True):
            if not isinstance(column, str) or not column:
                raise ValueError(f"data.source.{setting}={column}: must be the name of a column")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns that are read: (text,) or (prompt, completion)."""
        if self.prompt is None or self.completion is None:
            return (self.text,)
        return (self.prompt, self.completion)

    @cached_property
    def settings(self) -> tuple[str, ...]:
        """The settings that name them, in the same order."""
        return ("text_column",) if self.prompt is None else ("prompt_column", "completion_column")

    def missing_from(self, present: Sequence[str]) -> str | None:
        """What to say of records that have only the columns `present`; None if they suffice."""
        for setting, column in zip(self.settings, self.names, strict=True):
            if column not in present:
                names = ", ".join(map(repr, present))
                return f"has no column {column!r}" + (
                    f" but {names}; set data.source.{setting} to one of them"
                    if names
                    else ", nor any other"
                )
        return None

    def document(self, name: str, where: str, values: Sequence[Any]) -> Document | LeftOut:
        """The document of a record whose columns `names` hold `values`: str, bytes or other."""
        parts = []
        for column, value in zip(self.names, values, strict=True):
            if isinstance(value, str):
                try:
                    value = value.encode()
                except UnicodeEncodeError as error:
                    half = ascii(value[error.start])
                    return LeftOut(
                        where,
                        f"column {column!r} has half of a surrogate pair, {half}, as its character"
                        f" {error.start}, which is no text",
                    )
            elif isinstance(value, bytes):
                broken = first_broken_byte(value)
                if broken is not None:
                    what = f"its byte {broken + 1:,} is {value[broken]:#04x}"
                    return LeftOut(where, f"column {column!r} is no UTF-8: {what}")
            elif value is None:
                return LeftOut(where, f"column {column!r} is null")
            else:
                return LeftOut(where, f"column {column!r} holds {_kind(value)}, not text")
            parts.append(value)
        if not parts[-1]:
            return LeftOut(where, f"column {self.names[-1]!r} is empty", error=False)
        return Document(name, parts[-1], *parts[:-1])


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
