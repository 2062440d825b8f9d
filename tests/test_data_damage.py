"""What cannot be read of a file is named, and the rest of it is read."""

import os
import zlib

import pyarrow.parquet as pq
import pytest

from data_helpers import as_jsonl, as_parquet, written_corpus
from litmegalodon.data import json_line, readers
from litmegalodon.data.columns import Columns
from litmegalodon.data.documents import LeftOut
from reader_helpers import (
    COMPRESSIONS,
    NAMES,
    RECORDS,
    TEXTS,
    listed,
    make_blocks_small,
    only,
    read,
    written,
)


@pytest.fixture
def small_blocks(monkeypatch):
    make_blocks_small(monkeypatch)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a', "is no JSON: Unterminated string starting at character 10"),
        (b'{"text": "caf\xe9"}', "is no UTF-8: byte 14 of the line is 0xe9"),
        (b'{"words": "a", "id": 1}', "has no column 'text' but 'words', 'id'; set"),
        (b"{}", "has no column 'text', nor any other"),
        (b'{"text": null}', "column 'text' is null"),
        (b'{"text": 7}', "column 'text' holds a number, not text"),
        (b'{"text": true}', "column 'text' holds true or false, not text"),
        (b'{"text": ["a"]}', "column 'text' holds a list, not text"),
        (b'{"text": {"a": 1}}', "column 'text' holds an object, not text"),
        (b'{"text": "\\ud83d"}', r"column 'text' has half of a surrogate pair, '\ud83d', as its"),
        (b'["a"]', "is no JSON object but list"),
        (b"[" * 200_000, "is no JSON that can be read: "),
        (b'{"text": ' + b"1" * 5000 + b"}", "is no JSON that can be read: "),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else "",
)
def test_a_bad_line_is_named_and_the_next_one_is_read(line, reason, tmp_path):
    path = written(tmp_path, "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    before, (number, bad), after = read(path)
    assert (before[1].text, after[1].text) == (b"a", b"c")
    assert number == 1 and bad.where == f"{path}, line 2" and bad.error
    assert bad.reason.startswith(reason)


@pytest.mark.parametrize("end", COMPRESSIONS)
def test_a_column_that_the_first_line_lacks_too_is_said_so(end, tmp_path):
    data = b"\xef\xbb\xbf" + as_jsonl([{"words": "a"}] * 3 + [{"text": "b"}, {"id": 1}])
    path = written(tmp_path, f"a.jsonl{end}", data, NAMES[end])
    whole = read(path)
    assert [item.where.partition(", ")[2] for _, item in whole if isinstance(item, LeftOut)] == [
        "line 1",
        "line 2, as line 1",
        "line 3, as line 1",
        "line 5",
    ]
    assert read(path, first=2) == whole[2:]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a', "is no JSON object with text in 'text': Missing a closing quotation mark"),
        (b'{"text": "caf\xe9"}', "is no UTF-8: byte 14 of the line is 0xe9"),
        (b'{"words": "a"}', "has no column 'text', or null in it"),
        (b'{"text": null}', "has no column 'text', or null in it"),
        (b'{"text": 7}', "is no JSON object with text in 'text': Column(/text) changed from stri"),
        (b'{"text": "\\ud83d"}', "is no JSON object with text in 'text': The surrogate pair in"),
        (b'["a"]', "is no JSON object with text in 'text': Column() changed from object to array"),
        (b'{"text": "a"} {"text": "b"}', "holds 2 JSON objects, not one"),
    ],
)
def test_a_bad_line_that_is_long_is_named_too(line, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(json_line, "LONG", 1)
    path = written(tmp_path, "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "c", "id": {}}\n')
    before, (number, bad), after = read(path)
    assert (before[1].text, after[1].text) == (b"a", b"c")
    assert number == 1 and bad.where == f"{path}, line 2" and bad.error
    assert bad.reason.startswith(reason)


@pytest.mark.parametrize("end", COMPRESSIONS)
@pytest.mark.parametrize(
    ("data", "byte", "line"),
    [
        (b"one\ntwo caf\xe9\n", 12, 2),
        (b"\xff\xfeo\0n\0e\0", 1, 1),
        (b"x" * 15 + "é".encode() + b"\n\x80", 19, 2),
        (b"cut \xf0\x9f\x98", 5, 1),
        (b"x" * 15 + b"\xf0\x9f\x98", 16, 1),
    ],
)
def test_broken_utf8_in_a_text_file_is_named_by_byte_and_line(
    data, byte, line, end, tmp_path, small_blocks
):
    path = written(tmp_path, f"a.txt{end}", data, NAMES[end])
    bad = only(path)
    assert bad.where == f"{path}, line {line}" and bad.error
    assert bad.reason == f"is no UTF-8: byte {byte} of the file is {data[byte - 1]:#04x}"


@pytest.mark.parametrize("format", [f for f in [*TEXTS, *RECORDS] if f.endswith(("gz", "zst"))])
def test_a_compressed_file_without_a_byte_is_a_truncated_one(format, tmp_path):
    path = written(tmp_path, f"a{format}", b"")
    [(_, bad)] = read(path)
    assert bad == LeftOut(str(path), "cannot be read: Truncated compressed stream")


@pytest.mark.parametrize("lost", [1, 9, 500, 20_000])
def test_a_truncated_gzip_file_gives_every_whole_line_before_the_break(lost, tmp_path):
    lines = [os.urandom(99).hex() for _ in range(400)]
    [path] = written_corpus(tmp_path, ".jsonl.gz", lines)
    data = path.read_bytes()[:-lost]
    path.write_bytes(data)
    there = zlib.decompressobj(31).decompress(data).count(b"\n")
    *good, (number, bad) = read(path)
    assert [item.text.decode() for _, item in good] == lines[:there] and there > 50
    assert number == there and bad.where == f"{path}, line {there + 1}"
    assert bad.reason == "cannot be read, nor what follows: Truncated compressed stream"


def test_a_truncated_zstd_file_gives_lines_of_all_its_whole_blocks(tmp_path):
    lines = [os.urandom(99).hex() for _ in range(3000)]
    [path] = written_corpus(tmp_path, ".jsonl.zst", lines)
    path.write_bytes(path.read_bytes()[:-100])
    *good, (number, bad) = cut = read(path)
    assert [item.text.decode() for _, item in good] == lines[: len(good)]
    # A block is at most 128 KiB.
    assert len(good) >= len(lines) - (128 << 10) // 200
    assert bad.where == f"{path}, line {number + 1}" and number == len(good)
    for first in (7, number, number + 1):
        assert read(path, first) == [item for item in cut if item[0] >= first]


@pytest.mark.parametrize("end", COMPRESSIONS)
@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"words": ["a"], "id": [1]}, "has no column 'text' but 'words', 'id'; set data.source"),
        (
            {"text": [1], "b": ["a"]},
            "has int64 in column 'text', not text; set data.source",
        ),
        ({"text": [["a"]]}, "has list<element: string> in column 'text', not text; set data"),
    ],
    ids=["missing", "number", "list"],
)
def test_a_table_without_the_column_as_text_is_named_once(columns, reason, end, tmp_path):
    path = written(tmp_path, f"a.parquet{end}", as_parquet(columns), NAMES[end])
    bad = only(path)
    assert bad.where == str(path) and bad.error
    assert bad.reason.startswith(f"cannot be read: {reason}")


def test_bytes_in_a_table_that_are_no_utf8_are_named_by_row(tmp_path):
    path = written(tmp_path, "a.parquet", as_parquet({"text": [b"a", b"caf\xe9", b"c"]}))
    (_, a), (_, bad), (_, c) = read(path)
    assert (a.text, c.text) == (b"a", b"c")
    assert bad.where == f"{path}, row 2"
    assert bad.reason == "column 'text' is no UTF-8: its byte 4 is 0xe9"


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_truncated_stream_gives_what_can_be_read_and_says_from_where_it_cannot(
    end, tmp_path, monkeypatch
):
    monkeypatch.setattr(readers, "BLOCK", 1000)
    [path] = written_corpus(tmp_path, f".jsonl{end}", [os.urandom(999).hex() for _ in range(400)])
    whole = read(path)
    path.write_bytes(path.read_bytes()[:-99_000])
    *good, (number, bad) = cut = read(path)
    assert good == whole[: len(good)] and len(good) > 50
    assert number == len(good) and bad.error
    assert bad.where == f"{path}, line {number + 1}"
    assert bad.reason == "cannot be read, nor what follows: Truncated compressed stream"
    for first in (3, number, number + 1, 300):
        assert read(path, first) == [item for item in cut if item[0] >= first]


@pytest.mark.parametrize(
    "format", [".txt.gz", ".txt.zst", ".parquet.gz", ".parquet.zst", ".parquet"]
)
def test_a_truncated_file_that_has_to_be_read_whole_gives_nothing_but_the_reason(format, tmp_path):
    [path] = written_corpus(tmp_path, format, ["some text " * 100])
    path.write_bytes(path.read_bytes()[:-9])
    bad = only(path)
    assert bad.where == str(path) and bad.error
    assert bad.reason.startswith("cannot be read: ") and "\n" not in bad.reason


def test_damage_within_a_table_ends_it_at_the_row(tmp_path):
    texts = [os.urandom(50).hex() for _ in range(8)]
    [path] = written_corpus(tmp_path, ".parquet", texts)
    data = bytearray(path.read_bytes())
    # The second group's page of texts.
    offset = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    *good, (number, bad) = read(path)
    assert [item.text.decode() for _, item in good] == texts[:2]
    assert number == 2 and bad.where == f"{path}, row 3" and bad.error
    assert "cannot be read, nor what follows: " in bad.reason
    assert [number for number, _ in read(path, first=4)] == [4, 5, 6, 7]


@pytest.mark.parametrize("format", [".txt", ".jsonl", ".jsonl.gz", ".parquet"])
def test_a_file_that_vanished_or_changed_since_it_was_listed_is_named(format, tmp_path):
    [path] = written_corpus(tmp_path, format, ["some text"])
    file = listed(path)
    path.write_bytes(path.read_bytes() + b"x")
    [(_, bad)] = readers.documents(file, Columns())
    assert bad.where == str(path) and bad.error
    assert bad.reason.startswith(
        "cannot be read: changed since the run began"
        f" (it has {file.size + 1} bytes and had {file.size})"
    )
    path.unlink()
    [(_, bad)] = readers.documents(file, Columns())
    assert bad == LeftOut(str(path), "cannot be read: No such file or directory")


@pytest.mark.parametrize("format", [".txt", ".txt.gz", ".jsonl", ".jsonl.zst", ".parquet"])
def test_a_file_without_permission_is_named(format, tmp_path, monkeypatch):
    [path] = written_corpus(tmp_path, format, ["some text"])
    file = listed(path)

    # Tests may run as root, who may read anything.
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    [(_, bad)] = readers.documents(file, Columns())
    assert bad == LeftOut(str(path), "cannot be read: Permission denied")


def test_lines_that_come_or_go_while_a_file_is_read_are_noticed(tmp_path):
    [path] = written_corpus(tmp_path, ".jsonl", ["a", "b"])
    file = listed(path)
    given = readers.documents(file, Columns())
    assert next(given)[1].text == b"a"
    with path.open("ab") as more:
        more.write(as_jsonl([{"text": "c"}]))
    *_, (number, bad) = given
    assert number == 3 and "it was changed while it was read" in bad.reason
