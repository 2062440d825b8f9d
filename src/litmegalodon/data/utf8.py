"""Where bytes stop being UTF-8, in the memory of a block however long they are."""

import codecs
from collections.abc import Iterable, Iterator

BLOCK = 1 << 20


def first_broken_byte(data: bytes | memoryview) -> int | None:
    """The number of the first byte that is no UTF-8, counted from 0; None if all are."""
    if len(data) <= BLOCK:
        try:
            str(data, "utf-8")
        except UnicodeDecodeError as error:
            return error.start
        return None
    return first_broken_byte_of(blocks(data))


def first_broken_byte_of(parts: Iterable[bytes]) -> int | None:
    """The same for bytes that come in parts."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = pending = 0
    try:
        for part in parts:
            decoder.decode(part)
            start += len(part)
            # The first bytes of a character that goes on in the next part.
            pending = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return start - pending + error.start
    return None


def blocks(data: bytes | memoryview) -> Iterator[bytes]:
    """`data` in parts of at most BLOCK bytes."""
    for start in range(0, len(data), BLOCK):
        yield bytes(data[start : start + BLOCK])
