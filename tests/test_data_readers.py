"""Files of every format give their documents from any number on, and say what cannot be read."""

import json
import os
import tracemalloc
import zlib
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import as_jsonl, as_parquet, compressed, written_corpus
from litmegalodon.data import json_line, readers, utf8
from litmegalodon.data.columns import Columns
from litmegalodon.data.documents import Document, LeftOut
from litmegalodon.data.readers import CorpusFile

COMPRESSIONS = ["", ".gz", ".zst"]
RECORDS = [f"{stem}{end}" for stem in (".jsonl", ".parquet") for end in COMPRESSIONS]
TEXTS = [f"{stem}{end}" for stem in (".txt", ".md") for end in COMPRESSIONS]
NAMES = {"": None, ".gz": "gzip", ".zst": "zstd"}

texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9), min_size=1, max_size=9
)


def listed(path):
    return CorpusFile(path.name, str(path), path.stat().st_size)


def read(path, first=0, columns=None, **settings):
    """(number, document) with texts as bytes."""
    given = readers.documents(listed(path), columns or Columns(), first, **settings)
    return [(number, plain(item)) for number, item in given]


def plain(item):
    return replace(item, text=bytes(item.text)) if isinstance(item, Document) else item


def written(folder, name, data, compression=None):
    path = folder / name
    path.write_bytes(compressed(data, compression) if compression else data)
    return path


def only(path, **settings):
    """The one thing that a file gives."""
    [(_, item)] = read(path, **settings)
    return item


def make_blocks_small(patch):
    for module, name in ((readers, "BLOCK"), (readers, "BATCH"), (utf8, "BLOCK")):
        patch.setattr(module, name, 16)


@pytest.fixture
def small_blocks(monkeypatch):
    make_blocks_small(monkeypatch)


@pytest.mark.parametrize("format", RECORDS)
@settings(max_examples=25, deadline=None)
@given(texts)
def test_every_record_is_a_document_from_any_number_on(format, tmp_path_factory, texts):
    with pytest.MonkeyPatch.context() as patch:
        make_blocks_small(patch)
        [path] = written_corpus(tmp_path_factory.mktemp("corpus"), format, texts)
        unit = "line" if "jsonl" in format else "row"
        expected = [
            Document(f"{path.name}:{i + 1}", text.encode())
            if text
            else LeftOut(f"{path}, {unit} {i + 1}", "column 'text' is empty", error=False)
            for i, text in enumerate(texts)
        ]
        for first in range(len(texts) + 2):
            assert read(path, first) == list(enumerate(expected))[first:]


@pytest.mark.parametrize("format", TEXTS)
@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=99))
def test_a_text_file_is_one_document(format, tmp_path_factory, text):
    with pytest.MonkeyPatch.context() as patch:
        make_blocks_small(patch)
        [path] = written_corpus(tmp_path_factory.mktemp("corpus"), format, [text])
        assert read(path) == [(0, Document(path.name, text.removeprefix("\ufeff").encode()))] or (
            text == "\ufeff"
        )
        assert read(path, first=1) == []


@pytest.mark.parametrize("format", RECORDS)
def test_prompt_and_completion_are_read_apart(format, tmp_path):
    [path] = written_corpus(tmp_path, format, ["4", "", "6"], prompts=["2+2=", "3+2=", ""])
    given = read(path, columns=Columns(prompt="prompt", completion="completion"))
    assert given[0] == (0, Document(f"{path.name}:1", b"4", prompt=b"2+2="))
    assert (given[1][1].reason, given[1][1].error) == ("column 'completion' is empty", False)
    assert given[2] == (2, Document(f"{path.name}:3", b"6", prompt=b""))


@pytest.mark.parametrize("format", RECORDS)
def test_only_wanted_records_are_given(format, tmp_path):
    [path] = written_corpus(tmp_path, format, ["a", "b", "c", "d", "e"])
    wanted = {f"{path.name}:2", f"{path.name}:5"}
    given = read(path, wanted=wanted.__contains__)
    assert [(number, item.text) for number, item in given] == [(1, b"b"), (4, b"e")]


@pytest.mark.parametrize("format", [*RECORDS, *TEXTS])
@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_the_parts_of_a_file_are_all_of_it_once(format, parts, tmp_path):
    [path, *_] = written_corpus(tmp_path, format, ["a", "", "c", "d", "e", "f", "g"])
    whole = read(path, wanted=lambda name: not name.endswith("4"))
    given = [
        read(path, wanted=lambda n: not n.endswith("4"), part=(i, parts)) for i in range(parts)
    ]
    assert sorted((x for part in given for x in part), key=lambda x: x[0]) == whole
    assert all(n % parts == i for i, part in enumerate(given) for n, _ in part)


def test_lines_of_other_parts_are_not_parsed(tmp_path, monkeypatch):
    [path] = written_corpus(tmp_path, ".jsonl", [str(i) for i in range(50)])
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json_line.json, "loads", lambda text: parsed.append(text) or loads(text))
    assert [number for number, _ in read(path, first=20, part=(3, 10))] == [23, 33, 43]
    assert len(parsed) == 3


def test_lines_that_are_skipped_or_not_wanted_are_not_parsed(tmp_path, monkeypatch):
    [path] = written_corpus(tmp_path, ".jsonl", [str(i) for i in range(50)])
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json_line.json, "loads", lambda text: parsed.append(text) or loads(text))
    assert len(read(path, first=40, wanted=lambda name: not name.endswith("5"))) == len(parsed) == 9


def test_groups_of_rows_before_the_first_are_not_read(tmp_path, monkeypatch):
    [path] = written_corpus(tmp_path, ".parquet", [str(i) for i in range(10)])
    groups = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, **kw: groups.extend(kw["row_groups"]) or iter_batches(self, **kw),
    )
    assert [number for number, _ in read(path, first=7)] == [7, 8, 9]
    assert groups == [3, 4]


@pytest.mark.parametrize("end", COMPRESSIONS)
def test_line_ends_of_windows_and_byte_order_marks_are_no_text(end, tmp_path):
    data = b'\xef\xbb\xbf{"text": "a\\r\\n"}\r\n{"text": "b"}\r\n'
    path = written(tmp_path, f"a.jsonl{end}", data, NAMES[end])
    assert [item.text for _, item in read(path)] == [b"a\r\n", b"b"]
    path = written(tmp_path, f"a.txt{end}", b"\xef\xbb\xbfa\r\nb", NAMES[end])
    assert only(path).text == b"a\r\nb"


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


@settings(max_examples=50, deadline=None)
@given(texts)
def test_long_lines_are_read_as_short_ones_are(tmp_path_factory, texts):
    [path] = written_corpus(tmp_path_factory.mktemp("corpus"), ".jsonl", texts)
    short = read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_line, "LONG", 1)
        assert read(path) == short
        columns = Columns(prompt="text", completion="text")
        given = [item for _, item in read(path, columns=columns) if isinstance(item, Document)]
    assert [(item.prompt, item.text) for item in given] == [
        (text.encode(), text.encode()) for text in texts if text
    ]


def test_blank_lines_are_counted_and_no_error(tmp_path):
    path = written(tmp_path, "a.jsonl", b'\n{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    assert [getattr(item, "error", None) for _, item in read(path)] == [
        False,
        None,
        False,
        False,
        None,
    ]


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


def test_members_of_a_gzip_file_are_read_on_and_zeros_after_them_are_padding(tmp_path):
    parts = [as_jsonl([{"text": text}]) for text in ("a", "b")]
    data = b"".join(compressed(part, "gzip") for part in parts)
    for number, padding in enumerate((b"", bytes(9), bytes(200_000))):
        path = written(tmp_path, f"{number}.jsonl.gz", data + padding)
        assert [item.text for _, item in read(path)] == [b"a", b"b"]
    *good, (_, bad) = read(written(tmp_path, "c.jsonl.gz", data + bytes(9) + b"garbage"))
    assert [item.text for _, item in good] == [b"a", b"b"] and bad.error


@pytest.mark.parametrize("format", [*TEXTS[::3], ".jsonl"])
def test_a_file_without_a_byte_is_left_out_and_no_error(format, tmp_path):
    path = written(tmp_path, f"a{format}", b"")
    assert read(path) == [(0, LeftOut(str(path), "is empty", error=False))]
    assert read(path, first=1) == []


@pytest.mark.parametrize("format", [*TEXTS, *RECORDS])
def test_a_path_that_is_no_utf8_is_read(format, tmp_path):
    [path] = written_corpus(tmp_path / os.fsdecode(b"caf\xe9"), format, ["some text"])
    assert only(path).text == b"some text"


def test_a_path_that_is_no_utf8_can_be_printed(tmp_path):
    path = written(tmp_path, os.fsdecode(b"caf\xe9.jsonl"), b"{\n")
    assert only(path).where == f"{tmp_path}/caf\\xe9.jsonl, line 1"


@pytest.mark.parametrize("format", TEXTS)
def test_an_empty_text_file_is_left_out_and_no_error(format, tmp_path):
    [path] = written_corpus(tmp_path, format, [""])
    assert only(path) == LeftOut(str(path), "is empty", error=False)


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


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_is_read_from_all_of_arrows_types_for_it(kind, tmp_path):
    texts = pa.array(["a", None, "é", "a"]).cast(kind)
    path = written(tmp_path, "a.parquet", as_parquet({"text": texts}))
    given = [item for _, item in read(path)]
    assert [given[i].text for i in (0, 2, 3)] == [b"a", "é".encode(), b"a"]
    assert given[1] == LeftOut(f"{path}, row 2", "column 'text' is null")


def test_a_column_of_nulls_alone_is_null_in_every_row(tmp_path):
    path = written(tmp_path, "a.parquet", as_parquet({"text": [None, None]}))
    assert [item.reason for _, item in read(path)] == ["column 'text' is null"] * 2


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


def test_a_text_file_takes_no_memory_and_a_long_line_takes_its_own(tmp_path):
    size = 30_000_000
    text = written(tmp_path, "a.txt", b"word " * (size // 5))
    small = as_jsonl([{"text": "x" * 1000}]) * 10_000
    lines = written(
        tmp_path, "a.jsonl", small + as_jsonl([{"text": "word " * (size // 5)}]) + small
    )
    for path, limit in ((text, 0.3), (lines, 2.5)):
        tracemalloc.start()
        try:
            total = sum(len(item.text) for _, item in readers.documents(listed(path), Columns()))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert total >= size
        assert peak < limit * size


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"prompt": "q"},
            "data.source.prompt_column=q: goes together with data.source.com",
        ),
        (
            {"completion": "a"},
            "data.source.completion_column=a: goes together with data.",
        ),
        ({"text": ""}, "data.source.text_column=: must be the name of a column"),
        ({"text": 3}, "data.source.text_column=3: must be the name of a column"),
    ],
)
def test_columns_that_do_not_go_together_are_named(columns, message):
    with pytest.raises(ValueError) as raised:
        Columns(**columns)
    assert str(raised.value).startswith(message)
