"""The same corpus however the work is shared and however often it is interrupted."""

import errno
import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_helpers import Deadly, source
from data_helpers import ShardedSource, documents, written_corpus
from litmegalodon.data import (
    ByteTokenizer,
    FilesSource,
    LeftOut,
    ListSource,
    MixtureSource,
    PreparedCorpus,
    json_line,
    manifest,
    preparing,
    whole_files,
)
from litmegalodon.data.preparing import prepare
from runs import ENVIRONMENT, ROOT

tokenizer = ByteTokenizer()
UNITS = {"train": 5, "val": 2}


def files(folder):
    """Everything in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "corpus"
    assert prepare(source(), tokenizer, folder, units=UNITS) == []
    return files(folder)


def test_every_token_of_every_document_is_there_once(tmp_path, undisturbed):
    for name, content in undisturbed.items():
        (tmp_path / name).write_bytes(content)
    corpus = PreparedCorpus(str(tmp_path), verify=True)
    for split in ("train", "val"):
        store = corpus.store(split)
        found = [
            store.tokens(store.start(i), store.start(i + 1)).tolist()
            for i in range(store.num_documents)
        ]
        texts = [item.text for shard in source().shards(split) for _, item in shard.documents()]
        assert sorted(found) == sorted([256, *text, 257] for text in texts)


def test_there_are_as_many_files_as_asked_for_at_least(undisturbed):
    names = [name for name in undisturbed if name.endswith(".arrow")]
    # Three input shards in two parts each; one in two.
    assert sorted(names) == [f"train-{i:05}-of-00006.arrow" for i in range(6)] + [
        f"val-{i:05}-of-00002.arrow" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("shards", "least", "size", "expected"),
    [
        (1, 16, None, (1, 16)),
        (3, 16, 10**15, (3, 6)),
        (16, 16, 0, (16, 1)),
        # Books, a file each.
        (28_000, 16, 11 << 30, (176, 1)),
        (28_000, 16, 1 << 20, (16, 1)),
        (28_000, 16, None, (4096, 1)),
        # Files that are large already.
        (300, 16, 1 << 40, (300, 1)),
        (0, 2, 0, (0, 2)),
    ],
)
def test_files_are_neither_few_nor_tiny(shards, least, size, expected):
    assert manifest.shared_out(shards, least, size) == expected


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 20))
def test_units_share_out_every_document_in_order(shards, least, size):
    groups, parts = manifest.shared_out(shards, least, size * manifest.UNIT_BYTES)
    by_split = [dict.fromkeys(("train", "val"), n) for n in (shards, groups, parts)]
    found = [unit for unit in manifest.Plan({}, "", *by_split).units() if unit.split == "train"]
    taken = [(shard, unit.part) for unit in found for shard in range(unit.first, unit.stop)]
    assert sorted(taken) == [(shard, part) for shard in range(shards) for part in range(parts)]
    assert [unit.index for unit in found] == list(range(len(found)))
    assert not shards or len(found) >= least
    assert all(unit.first < unit.stop for unit in found)
    assert parts == 1 or taken == sorted(taken)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1, 2)])
def test_machines_in_any_order_make_the_same_corpus(tmp_path, undisturbed, order):
    left = [
        prepare(source(), tokenizer, tmp_path, machine=(number, 3), units=UNITS) for number in order
    ]
    assert [bool(missing) for missing in left] == [True, True, *[False] * (len(order) - 2)]
    assert files(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_the_same_corpus(tmp_path, undisturbed, workers):
    assert prepare(source(), tokenizer, tmp_path, workers=workers, units=UNITS) == []
    assert files(tmp_path) == undisturbed


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_corpus_goes_on_after_an_interruption(tmp_path, undisturbed, after):
    def interrupt(finished, number, of):
        if number == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source(), tokenizer, tmp_path, units=UNITS, done=interrupt)
    # What a kill leaves: a file half written, one without its entry, one that is not whole.
    (tmp_path / ".val-00001-of-00002.arrow.part").write_bytes(b"half")
    (tmp_path / ".val-00001-of-00002.json.part").write_bytes(b"half")
    (tmp_path / ".manifest.json.part").write_bytes(b"half")
    (tmp_path / "train-00004-of-00006.arrow").write_bytes(b"without an entry")
    first = tmp_path / "train-00000-of-00006.arrow"
    first.write_bytes(first.read_bytes()[:-1])
    whole = set(range(after)) - {0, 4}
    kept = []
    prepare(
        source(),
        tokenizer,
        tmp_path,
        units=UNITS,
        done=lambda finished, number, of: kept.append(finished.kept),
    )
    assert [number for number, was_kept in enumerate(kept) if was_kept] == sorted(whole)
    assert files(tmp_path) == undisturbed


def test_preparing_again_changes_nothing(tmp_path):
    prepare(source(), tokenizer, tmp_path, units=UNITS)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    prepare(source(), tokenizer, tmp_path, machine=(1, 2), units=UNITS)
    assert times == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_the_model_is_copied_beside_the_tokens(tmp_path):
    class WithModel(ByteTokenizer):
        model = b"a model"

    prepare(source(), WithModel(), tmp_path, units=UNITS)
    assert (tmp_path / "tokenizer.model").read_bytes() == b"a model"


class OtherTokenizer(ByteTokenizer):
    fingerprint = "other"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": OtherTokenizer()}, "of tokenizer bytes-bos256-eos257, and .* other;"),
        ({"source": ListSource(documents([b"a"]), documents([b"b"]))}, "of source .*, and this"),
        ({"units": {"train": 9, "val": 2}}, "of parts of each train 2, val 2, and .* train 3"),
    ],
)
def test_another_corpus_in_the_same_folder_is_refused(tmp_path, changed, message):
    same = {"source": source(), "tokenizer": tokenizer, "folder": tmp_path, "units": UNITS}
    prepare(**same, machine=(1, 9))
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"output={tmp_path}: holds a corpus {message}"):
        prepare(**same | changed)
    assert files(tmp_path) == before


def test_an_edit_of_the_same_size_between_two_machines_is_refused(tmp_path):
    # More than the fingerprint would read of a file's ends alone.
    lines = [f"{i:07}" for i in range(40_000)]
    [path] = written_corpus(tmp_path / "text", ".jsonl", lines)
    corpus = tmp_path / "corpus"
    assert prepare(FilesSource(str(path)), tokenizer, corpus, machine=(1, 2), units=UNITS)
    path.write_bytes(path.read_bytes().replace(b"0020000", b"0020O00"))
    with pytest.raises(ValueError, match=f"output={corpus}: holds a corpus of source "):
        prepare(FilesSource(str(path)), tokenizer, corpus, machine=(2, 2), units=UNITS)


@pytest.mark.parametrize("after", [1, 4])
def test_a_file_that_changes_between_two_of_its_parts_is_an_error(tmp_path, after):
    [path] = written_corpus(tmp_path / "text", ".jsonl", [str(i) for i in range(50)])

    def change(finished, number, of):
        if number == after:
            path.write_bytes(path.read_bytes()[:-1])

    text = FilesSource(str(path), validation_fraction=0.3)
    with pytest.raises(ValueError, match="changed since the run began"):
        prepare(text, tokenizer, tmp_path / "a", units={"train": 4, "val": 2}, done=change)
    assert not (tmp_path / "a" / "manifest.json").exists()


def test_few_files_in_many_parts_are_parsed_once_in_all(tmp_path, monkeypatch):
    [path] = written_corpus(tmp_path / "text", ".jsonl", [str(i) for i in range(50)])
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json_line.json, "loads", lambda text: parsed.append(text) or loads(text))
    prepare(FilesSource(str(path)), tokenizer, tmp_path / "a", units={"train": 9, "val": 2})
    # The first line once more, to see whether the file can be read.
    assert sum(str(text).startswith('{"text"') for text in parsed) == 51


def test_of_two_plans_for_a_new_folder_the_first_stays(tmp_path):
    plans = [manifest.Plan({"fingerprint": name}, name, {}, {}, {}) for name in ("first", "second")]
    for plan in plans:
        manifest.write_plan(tmp_path, plan, {})
    assert manifest.read_plan(tmp_path) == (plans[0], {})


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=rf"output={tmp_path}: holds other files \(letter\.txt\)"):
        prepare(source(), tokenizer, tmp_path)
    assert list(files(tmp_path)) == ["letter.txt"]


def test_a_mixture_is_refused(tmp_path):
    mixture = MixtureSource({"a": source(), "b": source()}, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"data\.source\.weights: .* prepare each"):
        prepare(mixture, tokenizer, tmp_path)


def test_a_file_that_another_process_writes_is_left_alone(tmp_path):
    path = tmp_path / ".train-00000-of-00006.arrow.part"
    with path.open("wb") as file:
        prepare(source(), tokenizer, tmp_path, machine=(8, 8), units=UNITS)
        file.write(b"theirs")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another process is writing train-00000-of-00006"):
            prepare(source(), tokenizer, tmp_path, units=UNITS)
        assert path.read_bytes() == b"theirs"


BAD = LeftOut("a.jsonl, line 3", "is no JSON")
EMPTY = LeftOut("a.jsonl, line 4", "is empty", error=False)


def test_a_place_without_a_document_ends_it_and_leaves_nothing_behind(tmp_path):
    bad = ShardedSource([[b"a", b"b", BAD]])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: is no JSON; .*data\.on_error=skip"):
        prepare(bad, tokenizer, tmp_path, units={"train": 2, "val": 1})
    assert set(files(tmp_path)) == {"corpus.json"}


def test_skipped_places_are_counted_once_in_the_manifest(tmp_path, capsys):
    bad = ShardedSource([[b"a", BAD, b"b", EMPTY, *[BAD] * 40]])
    # What was made before the setting changed is kept.
    with pytest.raises(ValueError):
        prepare(bad, tokenizer, tmp_path, units={"train": 2, "val": 1})
    prepare(bad, tokenizer, tmp_path, units={"train": 2, "val": 1}, on_error="skip")
    corpus = PreparedCorpus(str(tmp_path))
    totals = corpus.manifest["totals"]["train"]
    assert (totals["left_out_places"], totals["left_out_errors"]) == (42, 41)
    assert corpus.store("train").num_documents == 2
    assert corpus.left_out["documents"] == 42
    told = [entry["left_out"]["examples"] for entry in corpus.manifest["files"]["train"]]
    assert told[1][:2] == ["a.jsonl, line 3: is no JSON", "a.jsonl, line 4: is empty"]
    assert max(map(len, told)) == preparing.EXAMPLES
    assert "left out a.jsonl, line 3: is no JSON" in capsys.readouterr().out


def test_a_file_that_breaks_off_is_counted_once_in_the_manifest(tmp_path):
    [path] = written_corpus(
        tmp_path / "text", ".jsonl.gz", [os.urandom(9).hex() for _ in range(200)]
    )
    path.write_bytes(path.read_bytes()[:-99])
    corpus = tmp_path / "corpus"
    text = FilesSource(str(path), validation_fraction=0.5)
    prepare(text, tokenizer, corpus, units=UNITS, on_error="skip")
    assert PreparedCorpus(str(corpus)).left_out["documents"] == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize(
    "name",
    ["corpus.json", "train-00003-of-00006.arrow", "val-00000-of-00002.json", "manifest.json"],
)
def test_a_full_disk_is_one_sentence_and_the_rest_is_kept(
    tmp_path, monkeypatch, undisturbed, name, number
):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(number, os.strerror(number))

    def claim(path, wait, claim=whole_files._claim):
        full = path.name == f".{name}.part"
        return io.BufferedWriter(Full(path, "ab")) if full else claim(path, wait)

    monkeypatch.setattr(whole_files, "_claim", claim)
    reason = rf"{name} could not be written: {os.strerror(number).lower()}; .* run the same command"
    with pytest.raises(ValueError, match=f"output={tmp_path}: {reason}"):
        prepare(source(), tokenizer, tmp_path, units=UNITS)
    monkeypatch.undo()
    found = files(tmp_path)
    assert not [left for left in found if left.startswith(".")]
    assert found.items() <= undisturbed.items()
    assert ("train-00002-of-00006.json" in found) == (name != "corpus.json")
    prepare(source(), tokenizer, tmp_path, units=UNITS)
    assert files(tmp_path) == undisturbed


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"output={tmp_path}/file/a: .*not a directory"):
        prepare(source(), tokenizer, tmp_path / "file" / "a")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(preparing.Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"permission denied; name a folder that may be written"):
        prepare(source(), tokenizer, tmp_path / "a")


@pytest.mark.slow
def test_a_limit_of_file_sizes_is_one_sentence(tmp_path):
    program = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
from litmegalodon.data import ByteTokenizer, Document, ListSource
from litmegalodon.data.preparing import prepare
prepare(ListSource([Document("a", bytes(10**6))], []), ByteTokenizer(), Path({str(tmp_path)!r}))
"""
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert "could not be written: file too large; raise the limit" in done.stderr
    assert set(files(tmp_path)) == {"corpus.json"}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told(tmp_path):
    with pytest.raises(ValueError, match="workers=2: one of them ended early, killed"):
        prepare(source(), Deadly(), tmp_path, workers=2, units=UNITS)


@pytest.mark.slow
def test_an_error_in_a_worker_ends_all_and_leaves_nothing_half_written(tmp_path, undisturbed):
    bad = source()
    bad.shards("train")[1].items[1] = BAD
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3"):
        prepare(bad, tokenizer, tmp_path, workers=2, units=UNITS)
    assert not [name for name in files(tmp_path) if name.startswith(".")]


def test_the_plan_of_a_corpus_is_its_identity(tmp_path):
    prepare(source(), tokenizer, tmp_path, units=UNITS)
    plan, made_from = manifest.read_plan(tmp_path)
    assert made_from == {"left_out": {"files": 0, "bytes": 0}}
    assert len(plan.digest) == 16
    entry = whole_files.read_json(tmp_path / "train-00000-of-00006.json")
    assert entry["plan"] == plan.digest
    data = (tmp_path / entry["file"]).read_bytes()
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
