"""Documents of one file: plain text, JSON lines or Parquet, each also compressed by gzip or zstd.

A file is read in blocks and never held whole, but for a compressed text file, whose one document is
all of it, and a Parquet file inside gzip or zstd, which has to be read from its end. A text file is
mapped, so that it takes no memory of its own; a file that another program cuts short while it is
mapped ends the process with SIGBUS, as everywhere.

A byte order mark at the start of a text or JSON file is dropped.
"""

import codecs
import io
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from litmegalodon.data.arrow import no_text, texts_of
from litmegalodon.data.columns import Columns
from litmegalodon.data.decompression import TRUNCATED, GzipStream, ZstdStream
from litmegalodon.data.documents import Document, LeftOut
from litmegalodon.data.json_line import document_of_line
from litmegalodon.data.utf8 import blocks, first_broken_byte, first_broken_byte_of

TEXT_FORMATS = (".txt", ".md")
FORMATS = (*TEXT_FORMATS, ".jsonl", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

# Bytes that are read at a time, and about how much text of Parquet's rows is decoded at a time.
BLOCK = 1 << 20
BATCH = 8 << 20

# A record's number, and what it gives.
Numbered = tuple[int, Document | LeftOut]


@dataclass(frozen=True)
class CorpusFile:
    """A file of a source: `name` there, `path`, its bytes and time of change when it was listed.

    `mtime_ns` None leaves the time aside.
    """

    name: str
    path: str
    size: int
    mtime_ns: int | None = None

    @property
    def compression(self) -> str | None:
        """Its compression's name, told by the last ending."""
        return COMPRESSIONS.get(_ending(self.path))

    @property
    def format(self) -> str | None:
        """One of FORMATS, told by the ending below that of a compression; None if it is none."""
        ending = _ending(os.path.splitext(self.path)[0] if self.compression else self.path)
        return ending if ending in FORMATS else None

    @property
    def shown(self) -> str:
        """Its path to print: bytes in it that are no UTF-8 as escapes."""
        return os.fsencode(self.path).decode(errors="backslashreplace")

    def record(self, number: int) -> str:
        """The name of one of the file's records, which it counts from 1 as an editor does lines."""
        return f"{self.name}:{number + 1}"


@dataclass
class _Place:
    """The number of the next record, and what such files call one; None until it is opened."""

    number: int
    unit: str | None = None


class _UnreadableError(Exception):
    """A file that can be opened but not read as it should be."""


class _ChangedError(_UnreadableError):
    """A file that is another one than when it was listed."""


def documents(
    file: CorpusFile,
    columns: Columns,
    first: int = 0,
    wanted: Callable[[str], bool] = lambda name: True,
    part: tuple[int, int] = (0, 1),
    tells_of_file: bool = True,
) -> Iterator[Numbered]:
    """(number, document) of a file from number `first` on, of those records whose names are wanted.

    `part` (i, n) gives those numbers alone that have the remainder i by n. A LeftOut stands for a
    record that cannot be read, or as the last one for all that follow. What is so for whoever reads
    the file, as that it is empty or breaks off, counts in one part and with `tells_of_file` only;
    that it changed or cannot be opened now in all. Lines and groups of rows before `first`, and
    lines that are not wanted, are not parsed.
    """
    remainder, parts = part

    def in_part(number: int) -> bool:
        return number % parts == remainder

    def chosen(number: int) -> bool:
        return in_part(number) and wanted(file.record(number))

    if file.format in TEXT_FORMATS and (first > 0 or not in_part(0) or not wanted(file.name)):
        return
    place = _Place(first)
    try:
        _check_unchanged(file, os.stat(file.path))
        if file.size == 0 and file.compression is not None:
            raise _UnreadableError(TRUNCATED)
        if file.size == 0 and file.format != ".parquet":
            if first == 0 and in_part(0) and tells_of_file:
                yield 0, LeftOut(file.shown, "is empty", error=False)
        elif file.format in TEXT_FORMATS:
            yield 0, _text(file)
        elif file.format == ".parquet":
            yield from _rows(file, columns, first, chosen, place)
        else:
            yield from _lines(file, columns, first, chosen, place)
    except (OSError, pa.ArrowException, _UnreadableError) as error:
        # One before `first` was given to whoever read that far.
        counts = _of_this_moment(error) or (tells_of_file and in_part(place.number))
        if place.number >= first:
            item = _broken_off(file, place, error)
            yield place.number, replace(item, again=not counts)


def _of_this_moment(error: Exception) -> bool:
    """Whether another reading of the file may have gone well."""
    # What the system refuses has a number; what decompression and Arrow find in the data has none.
    return isinstance(error, _ChangedError) or getattr(error, "errno", None) is not None


def _check_unchanged(file: CorpusFile, status: os.stat_result) -> None:
    if status.st_size != file.size:
        sizes = f"it has {status.st_size:,} bytes and had {file.size:,}"
        raise _ChangedError(f"changed since the run began ({sizes}); start again")
    if file.mtime_ns not in (None, status.st_mtime_ns):
        raise _ChangedError("changed since the run began (it was written again); start again")


def _broken_off(file: CorpusFile, place: _Place, error: Exception) -> LeftOut:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    if place.unit is None or place.number == 0:
        return LeftOut(file.shown, f"cannot be read: {reason}")
    where = f"{file.shown}, {place.unit} {place.number + 1}"
    return LeftOut(where, f"cannot be read, nor what follows: {reason}")


def _opened(file: CorpusFile) -> "io.BufferedReader[Any]":
    """What is in a file, decompressed."""
    # Arrow itself opens no file whose name is no UTF-8.
    opened = io.BufferedReader(open(file.path, "rb", buffering=0), BLOCK)  # noqa: SIM115
    if file.compression is None:
        return opened
    stream = GzipStream(opened) if file.compression == "gzip" else ZstdStream(opened)
    return io.BufferedReader(stream, BLOCK)


def _text(file: CorpusFile) -> Document | LeftOut:
    with _opened(file) as stream:
        # A process may only map some tens of thousands of files at a time.
        if file.compression is not None or file.size <= BLOCK:
            text = memoryview(stream.read())
            broken = first_broken_byte(text)
        else:
            text = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            # Read rather than looked at in the map, whose pages then count as the process' own.
            broken = first_broken_byte_of(iter(lambda: stream.read(BLOCK), b""))
    if broken is not None:
        line = 1 + sum(block.count(b"\n") for block in blocks(text[:broken]))
        return LeftOut(
            f"{file.shown}, line {line}",
            f"is no UTF-8: byte {broken + 1:,} of the file is {text[broken]:#04x}",
        )
    if text[:3] == codecs.BOM_UTF8:
        text = text[3:]
    return Document(file.name, text) if text else LeftOut(file.shown, "is empty", error=False)


def _lines(
    file: CorpusFile,
    columns: Columns,
    first: int,
    chosen: Callable[[int], bool],
    place: _Place,
) -> Iterator[Numbered]:
    with _opened(file) as stream:
        place.number, place.unit = 0, "line"
        if stream.peek(3)[:3] == codecs.BOM_UTF8:
            stream.read(3)
        _skip_lines(stream, first, place)
        shown, compared = file.shown, _ToFirstLine(file, columns)
        for line in stream:
            number = place.number
            place.number += 1
            if chosen(number):
                name, where = file.record(number), f"{shown}, line {number + 1}"
                holder = [line]
                # A line may take as much memory as there is: no second reference to it.
                del line
                yield number, compared(document_of_line(holder, columns, name, where))
        if file.compression is None and stream.tell() != file.size:
            raise _ChangedError(
                f"it was changed while it was read, from {file.size:,} bytes to {stream.tell():,}"
            )


@dataclass
class _ToFirstLine:
    """Says of a line that lacks a column whether the first one does too: then the setting is wrong.

    Held-out lines, which are read first, lie anywhere in a file.
    """

    file: CorpusFile
    columns: Columns
    reason: str | None = None

    def __call__(self, item: Document | LeftOut) -> Document | LeftOut:
        if not isinstance(item, LeftOut) or not item.reason.startswith("has no column"):
            return item
        if self.reason is None:
            with _opened(self.file) as stream:
                line = stream.readline(BLOCK).removeprefix(codecs.BOM_UTF8)
            first = document_of_line([line], self.columns, "", "")
            self.reason = first.reason if isinstance(first, LeftOut) else ""
        if item.reason != self.reason or item.where.endswith(", line 1"):
            return item
        return replace(item, where=f"{item.where}, as line 1")


def _skip_lines(stream: io.BufferedReader, first: int, place: _Place) -> None:
    """Go to line `first`, or to the end of the file, at the speed of counting line ends."""
    while place.number < first and (block := stream.peek()):
        missing = first - place.number
        passed = min(missing, block.count(b"\n"))
        rest = len(block.split(b"\n", missing)[-1]) if passed == missing else 0
        stream.read(len(block) - rest)
        place.number += passed


def _rows(
    file: CorpusFile,
    columns: Columns,
    first: int,
    chosen: Callable[[int], bool],
    place: _Place,
) -> Iterator[Numbered]:
    with _opened(file) as stream:
        # A table is read from its end.
        table = stream if file.compression is None else pa.BufferReader(stream.read())
        parquet = pq.ParquetFile(table, buffer_size=BLOCK)
        schema = parquet.schema_arrow
        place.number, place.unit = 0, "row"
        reason = columns.missing_from(schema.names) or no_text(schema, columns)
        if reason is not None:
            raise _UnreadableError(reason)
        shown, start = file.shown, 0
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            rows = metadata.num_rows
            if start + rows > first:
                place.number = start
                batches = parquet.iter_batches(
                    batch_size=max(1, min(rows, BATCH * rows // max(1, _size(metadata, columns)))),
                    row_groups=[group],
                    columns=list(columns.names),
                )
                for batch in batches:
                    begin = max(first, place.number)
                    numbers = [*filter(chosen, range(begin, place.number + len(batch)))]
                    rows_here = pa.array([number - place.number for number in numbers], pa.int64())
                    texts = [column.take(rows_here) for column in texts_of(batch, columns)]
                    values = zip(*(column.to_pylist() for column in texts), strict=True)
                    for number, of_row in zip(numbers, values, strict=True):
                        name, where = file.record(number), f"{shown}, row {number + 1}"
                        yield number, columns.document(name, where, of_row)
                    place.number += len(batch)
            start += rows


def text_bytes(file: CorpusFile, columns: Columns) -> int | None:
    """About how much text a file holds, without reading it; None where that is unknown."""
    if file.compression is not None:
        return None
    if file.format != ".parquet":
        return file.size
    try:
        with _opened(file) as stream:
            metadata = pq.read_metadata(stream)
    except (OSError, pa.ArrowException):
        # Said when it is read.
        return 0
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return sum(_size(group, columns) for group in groups)


def _size(group: pq.RowGroupMetaData, columns: Columns) -> int:
    """Bytes of a group's rows in the columns that are read."""
    chunks = [group.column(i) for i in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in columns.names)


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()
