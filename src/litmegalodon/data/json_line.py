"""The document of a line of JSON, in little more memory than the line takes."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from litmegalodon.data.columns import Columns
from litmegalodon.data.documents import Document, LeftOut
from litmegalodon.data.utf8 import first_broken_byte

# Bytes of a line from which on Arrow parses it. Python's own parser is quicker on short lines and
# says better what is wrong, but holds a text that has one emoji in four bytes a character, twice.
LONG = 16 << 20

# Arrow counts the bytes of a block in 32 bits.
TOO_LONG = (1 << 31) - 2


def document_of_line(
    holder: list[bytes], columns: Columns, name: str, where: str
) -> Document | LeftOut:
    """The document of a line, which is taken out of its holder so that it can be freed early."""
    line = memoryview(holder.pop())
    if line[-1:] == b"\n":
        line = line[:-1]
    if LONG <= len(line) <= TOO_LONG:
        broken = first_broken_byte(line)
        if broken is not None:
            return _no_utf8(where, line, broken)
        return _by_arrow(line, columns, name, where)
    try:
        text = str(line, "utf-8")
    except UnicodeDecodeError as error:
        return _no_utf8(where, line, error.start)
    del line
    if not text or text.isspace():
        return LeftOut(where, "is empty", error=False)
    try:
        record: Any = json.loads(text)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return LeftOut(where, f"is no JSON: {what} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets thousands deep.
        return LeftOut(where, f"is no JSON that can be read: {error}")
    del text
    if not isinstance(record, dict):
        return LeftOut(where, f"is no JSON object but {type(record).__name__}")
    try:
        values = [record[column] for column in columns.names]
    except KeyError:
        return LeftOut(where, str(columns.missing_from(list(record))))
    return columns.document(name, where, values)


def _by_arrow(line: memoryview, columns: Columns, name: str, where: str) -> Document | LeftOut:
    schema = pa.schema([(column, pa.large_string()) for column in columns.names])
    try:
        table = pa_json.read_json(
            pa.BufferReader(line),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(line) + 1),
            parse_options=pa_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowInvalid as error:
        what = " ".join(str(error).split()).removeprefix("JSON parse error: ")
        return LeftOut(where, f"is no JSON object with text in {_named(columns)}: {what}")
    if table.num_rows != 1:
        return LeftOut(where, f"holds {table.num_rows} JSON objects, not one")
    buffers = [table.column(column)[0].as_buffer() for column in columns.names]
    if any(buffer is None for buffer in buffers):
        return LeftOut(where, f"has no column {_named(columns)}, or null in it")
    *prompt, text = [memoryview(buffer) for buffer in buffers]
    if not text:
        return LeftOut(where, f"column {columns.names[-1]!r} is empty", error=False)
    return Document(name, text, *map(bytes, prompt))


def _no_utf8(where: str, line: memoryview, broken: int) -> LeftOut:
    return LeftOut(where, f"is no UTF-8: byte {broken + 1:,} of the line is {line[broken]:#04x}")


def _named(columns: Columns) -> str:
    return " and ".join(map(repr, columns.names))
