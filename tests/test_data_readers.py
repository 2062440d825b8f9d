"""Files of every format give their documents from any number on, and say what cannot be read."""

import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import as_jsonl, as_parquet, compressed, written_corpus
from litmegalodon.data import json_line, readers
from litmegalodon.data.columns import Columns
from litmegalodon.data.documents import Document, LeftOut
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

texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9), min_size=1, max_size=9
)


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
