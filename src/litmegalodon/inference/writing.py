"""From drawn tokens to text that can be shown at once: whole characters, no stop string."""

import codecs
from collections import deque
from collections.abc import Sequence
from typing import Any


class Writer:
    """Turns tokens into text as soon as it is certain.

    The texts returned, joined, are those of all tokens decoded as UTF-8 (what is none becomes
    U+FFFD), up to the first stop string to be complete, which is left out.

    Attributes:
        stopped: whether a stop string has come.
    """

    # A token's text may depend on the ones before it, as a space at a text's beginning does.
    CONTEXT = 4

    def __init__(self, tokenizer: Any, last: int, stops: Sequence[str] = ()) -> None:
        """`last` is the token before the first one."""
        self.stopped = False
        self._tokenizer, self._stops = tokenizer, stops
        self._context = deque([last], maxlen=self.CONTEXT)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # The end of the text that may turn out to be the beginning of a stop string.
        self._held = ""

    def push(self, token: int) -> str:
        """The text that a token makes certain."""
        bytes_of, context = self._tokenizer.bytes_of, list(self._context)
        new = bytes_of([*context, token])[len(bytes_of(context)) :]
        self._context.append(token)
        return self._release(self._decoder.decode(new))

    def finish(self) -> str:
        """The rest of the text, when no token follows."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        # (end, start) of each stop string's first occurrence
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, and is longer than."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
