"""Where the text comes from that a model reads: files, folders, standard input.

Text is UTF-8. What is none is refused, whatever the tokenizer could read: it is a file given by
mistake far more often than it is meant.
"""

import codecs
import functools
import io
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

# Bytes that are read at once.
BLOCK = 1 << 20
# Bytes of a text from which its number of tokens is judged.
SAMPLE = 1 << 16


@dataclass(frozen=True)
class TextFiles:
    """Files of text that are read one after the other, end to end.

    Attributes:
        files: in reading order.
        left_out: files of the folder that are no text, and those that can't be read.
    """

    files: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()

    def blocks(self) -> Iterator[bytes]:
        """The text in blocks of bytes; ValueError at the first byte that is no UTF-8."""
        for path in self.files:
            with open(path, "rb") as file:
                yield from checked(
                    iter(functools.partial(file.read, BLOCK), b""), f"prompt_file={path}"
                )

    def count_tokens(self, tokenizer: Any) -> int | None:
        """About how many tokens it is, judged by its beginning; None for a pipe."""
        if not all(path.is_file() for path in self.files):
            return None
        with open(self.files[0], "rb") as file:
            beginning = file.read(SAMPLE)
        tokens = len(tokenizer.encode_piece(beginning, first=True))
        size = sum(path.stat().st_size for path in self.files)
        return round(tokens / max(len(beginning), 1) * size)


def find_text(setting: str, value: str) -> TextFiles:
    """The files that a path means: a file, or those below a folder, sorted by path.

    Files and folders whose names begin with a dot are passed over. Every file is looked through,
    so that reading does not fail half-way.

    Args:
        setting: what named the path, for messages.
        value: the path.

    Raises:
        ValueError: there is nothing, the file is no text, or no file of the folder is.
    """
    path = Path(value).expanduser()
    if not path.exists():
        raise ValueError(f"{setting}={value}: there is no such file or folder")
    if not path.is_dir():
        text = TextFiles((path,))
        # A pipe can be read once only.
        if path.is_file():
            _look_through(text)
        return text
    files, left_out = [], []
    for file in _below(path):
        try:
            _look_through(TextFiles((file,)))
            files.append(file)
        except (ValueError, OSError):
            left_out.append(file)
    if not files:
        raise ValueError(f"{setting}={value}: the folder holds no file of UTF-8 text")
    return TextFiles(tuple(files), tuple(left_out))


def _look_through(text: TextFiles) -> None:
    for _ in text.blocks():
        pass


def standard_input() -> Iterator[bytes]:
    """Standard input in blocks of bytes, as they come.

    Raises:
        ValueError: it is no UTF-8 text.
    """
    read = functools.partial(cast(io.BufferedReader, sys.stdin.buffer).read1, BLOCK)
    return checked(iter(read, b""), "prompt_file=-")


def checked(blocks: Iterable[bytes], setting: str) -> Iterator[bytes]:
    """The same blocks; ValueError at the first byte that is no UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    for block in blocks:
        held = len(decoder.getstate()[0])
        _decode(decoder, block, setting, done - held)
        done += len(block)
        yield block
    _decode(decoder, b"", setting, done - len(decoder.getstate()[0]), final=True)


def _decode(
    decoder: codecs.IncrementalDecoder, block: bytes, setting: str, offset: int, final: bool = False
) -> None:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{setting}: is no UTF-8 text, byte {offset + error.start:,} is no character; convert"
            " it first"
        ) from None


def _below(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())
