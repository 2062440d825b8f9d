"""A command that writes text: that on standard output, everything else on standard error."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from litmegalodon.utils.printing import harmless


def note(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)


class ReadingBar:
    """Counts the tokens that are read, on a terminal as a bar."""

    def __init__(self, total: int | None) -> None:
        """`total`: tokens to come, about; None where nobody knows."""
        self.tokens, self._began = 0, time.monotonic()
        self._bar = tqdm(
            desc="reading",
            total=total,
            unit=" tokens",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )

    def update(self, tokens: int) -> None:
        """So many more were read."""
        self.tokens += tokens
        self._bar.update(tokens)

    def close(self) -> None:
        """Take the bar away and say how many it were."""
        self._bar.close()
        if not self.tokens:
            return
        seconds = time.monotonic() - self._began
        speed = f", {self.tokens / seconds:,.0f} tokens/s" if seconds > 0.1 else ""
        note(f"read {self.tokens:,} tokens in {seconds:.1f} s{speed}")


class TextOutput:
    """Writes texts that are made side by side one after the other to standard output.

    The first one appears as it is made, the next when it has ended. A single one is written as it
    is, each of several is followed by a line's end.
    """

    def __init__(self, count: int) -> None:
        self._waiting: list[list[str]] = [[] for _ in range(count)]
        self._count, self._current, self._last = count, 0, "\n"
        self._head()

    def add(self, index: int, text: str) -> None:
        """A text goes on."""
        if index == self._current:
            self._write(text)
        else:
            self._waiting[index].append(text)

    def end(self, ended: Iterable[Any]) -> None:
        """Which texts have ended, one truth value each."""
        ended = list(ended)
        while self._current < self._count and ended[self._current]:
            if self._count > 1:
                self._write("\n")
            self._current += 1
            if self._current < self._count:
                self._head()
                self._write("".join(self._waiting[self._current]))

    def finish_line(self) -> None:
        """Let what a terminal shows next begin on a line of its own."""
        if sys.stdout.isatty() and self._last != "\n":
            print(file=sys.stderr, flush=True)

    def _head(self) -> None:
        if self._count > 1:
            note(f"--- prompt {self._current + 1} of {self._count}")

    def _write(self, text: str) -> None:
        if not text:
            return
        # UTF-8 whatever the locale says, and without waiting for a line's end.
        shown = harmless(text) if sys.stdout.isatty() else text
        sys.stdout.buffer.write(shown.encode())
        sys.stdout.buffer.flush()
        self._last = text[-1]


@contextmanager
def closed_pipe_ends_it() -> Iterator[None]:
    """End with exit code 0, as other tools do, when whoever read standard output has gone."""
    try:
        yield
    except BrokenPipeError:
        # What is still in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
