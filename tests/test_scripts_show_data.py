"""Looking at data: rows and their boundaries, lengths, what is left out, what is held out twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_helpers import as_jsonl, datamodule, written_corpus
from litmegalodon.data import ByteTokenizer, Document, FilesSource, ListSource
from litmegalodon.data.preparing import prepare
from litmegalodon.data.row_text import row_text
from litmegalodon.data.survey import draw_lengths, survey
from runs import ENVIRONMENT, ROOT


def show_data(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "show_data.py"), *arguments],
        cwd=cwd,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows_of(texts, seq_len, rows, **settings):
    module = datamodule(train=texts, seq_len=seq_len, shuffle=False, **settings)
    batches = iter(module.train_dataloader())
    found = [next(batches) for _ in range(rows)]
    parts = ("tokens", "targets", "resets")
    return [row_text(*(b[p][0].tolist() for p in parts), ByteTokenizer(), 20) for b in found]


def test_a_row_shows_where_documents_begin_end_and_go_on():
    first, second = rows_of([b"one\ntwo", b"three", b"4"], 12, 2)
    assert first == [
        "-- document begins, reset",
        "| one",
        "| two",
        "-- document ends",
        "-- document begins, reset",
        "| th",
    ]
    assert second == [
        "| ree",
        "-- document ends",
        "-- document begins, reset",
        "| 4",
        "-- document ends",
        "-- padding: 5 tokens",
    ]


def test_a_row_shows_documents_that_see_each_other_and_prompts():
    [row] = rows_of([(b"2+2=", b"4"), b"x"], 10, 1, reset_documents=False)
    assert row == [
        "-- document begins, no reset",
        "> 2+2=",
        "| 4",
        "-- document ends",
        "-- document begins, no reset",
        "| x",
        "-- document ends",
    ]


def test_long_stretches_of_a_row_are_shortened_in_the_middle():
    [row] = rows_of([b"0123456789abcdefghijklmnopqrst"], 32, 1)
    assert row[1] == "| 0123456789 [... 10 characters ...] klmnopqrst"


def test_a_survey_counts_tokens_of_all_documents_or_of_the_first(tmp_path):
    source = ListSource([Document("a", b"xyz"), Document("b", b"12", b"3")], [Document("c", b"x")])
    found = survey(source, ByteTokenizer(), "train", None)
    assert (found.names, found.lengths, found.text_bytes) == (["a", "b"], [5, 5], 6)
    assert found.complete
    first = survey(source, ByteTokenizer(), "train", 1)
    assert first.lengths == [5] and not first.complete
    assert survey(source, ByteTokenizer(), "train", 2).complete


def test_held_out_documents_that_are_trained_on_are_found_each():
    train = [Document("a", b"same"), Document("b", b"other"), Document("c", b"same")]
    val = [Document("d", b"same"), Document("e", b"new"), Document("f", b"same")]
    source = ListSource(train, val)
    found = {split: survey(source, ByteTokenizer(), split, None) for split in ("train", "val")}
    assert found["val"].copies_in(found["train"]) == [("d", "a"), ("f", "a")]
    assert found["train"].copies_in(found["val"]) == [("a", "d"), ("c", "d")]


def test_a_survey_counts_places_without_a_document_and_names_errors(tmp_path):
    lines = as_jsonl([{"text": "a"}, {"text": ""}]) + b"{\n" * 9
    (tmp_path / "a.jsonl").write_bytes(lines)
    written_corpus(tmp_path / "val", ".txt", ["x"])
    found = survey(
        FilesSource(f"{tmp_path}/a.jsonl", f"{tmp_path}/val"), ByteTokenizer(), "train", None
    )
    assert (len(found.lengths), found.left_out, found.errors) == (1, 10, 9)
    assert [place.where for place in found.named] == [
        f"{tmp_path}/a.jsonl, line {i}" for i in range(3, 8)
    ]


@pytest.mark.parametrize("sizes", [[1], [3, 3], [1, 1000, 100_000]])
def test_lengths_are_drawn_however_alike_they_are(sizes, tmp_path):
    documents = [Document(str(size), b"x" * size) for size in sizes]
    source = ListSource(documents, documents[:1])
    found = {split: survey(source, ByteTokenizer(), split, None) for split in ("train", "val")}
    draw_lengths(found, 1024, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_script_shows_the_default_data(tmp_path):
    done = show_data("show.rows=2", f"paths.log_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "to train on: ",
        "held out: ",
        "left out: ",
        "\nrow 1: 1,024 tokens, ",
        "\nrow 2: ",
    ):
        assert line in done.stdout
    [drawing] = tmp_path.glob("show_data/runs/*/lengths.png")
    assert os.path.relpath(drawing, tmp_path) in done.stdout


@pytest.mark.slow
def test_the_script_shows_files_and_what_is_wrong_with_them(tmp_path):
    written_corpus(tmp_path / "corpus", ".jsonl", [f"text {i} " * 90 for i in range(40)])
    written_corpus(tmp_path / "val", ".txt", ["text 3 " * 90, "new"])
    with (tmp_path / "corpus" / "corpus.jsonl").open("ab") as file:
        file.write(b'{"text": "cut')
    (tmp_path / "corpus" / "cover.png").write_bytes(b"four")
    arguments = [
        "data=files",
        "data.source.paths=[corpus]",
        "data.source.val_paths=[val]",
        f"paths.log_dir={tmp_path}",
    ]
    done = show_data(*arguments, "data.on_error=skip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: 1 files of 4 bytes (.png: 1); 0 empty places, 1 errors\n" in done.stdout
    assert "  corpus/corpus.jsonl, line 41: is no JSON: Unterminated string" in done.stdout
    assert "token for token: 1\n  val/0000.txt is corpus/corpus.jsonl:4\n" in done.stdout
    done = show_data(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: corpus/corpus.jsonl, line 41: is no JSON: ")


def test_another_tokenizer_than_the_corpus_was_prepared_with_is_refused_first(tmp_path):
    class Other(ByteTokenizer):
        fingerprint = "other"

    source = ListSource([Document("a", b"some text")], [Document("b", b"more")])
    prepare(source, Other(), tmp_path / "corpus", units={"train": 1, "val": 1})
    arguments = ["data=prepared", "data.source.folder=corpus", f"paths.log_dir={tmp_path}"]
    done = show_data(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.tokenizer: its fingerprint is bytes-")
    assert "to train on" not in done.stdout


@pytest.mark.parametrize("setting", ["rows=-1", "rows=1.5", "characters=1", "documents=0"])
def test_a_setting_of_show_out_of_range_is_named(setting, tmp_path):
    done = show_data(f"show.{setting}", f"paths.log_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: show.{setting}: must be a whole number, at least ")
