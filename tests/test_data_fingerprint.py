"""A fingerprint of files changes with what is read of them, and with nothing else."""

import os

import pytest

from data_helpers import datamodule, texts_of, tree, written_corpus
from litmegalodon.data import FilesSource, MixtureSource, files

WORDS = [f"text number {i}" for i in range(60)]


def test_moving_a_corpus_changes_neither_names_nor_fingerprint(tmp_path):
    sources = []
    for place in ("here", "there"):
        written_corpus(tmp_path / place, ".jsonl", WORDS)
        sources.append(FilesSource(f"{tmp_path}/{place}/*.jsonl"))
    assert texts_of(sources[0]) == texts_of(sources[1])
    assert sources[0].fingerprint == sources[1].fingerprint


def test_the_fingerprint_changes_with_all_that_is_read(tmp_path):
    fingerprints = []

    def note(**settings):
        source = FilesSource(**{"paths": f"{tmp_path}/*.jsonl", **settings})
        fingerprints.append(source.fingerprint)

    [path] = written_corpus(tmp_path, ".jsonl", WORDS * 4000)
    note()
    note(validation_fraction=0.02)
    note(text_column="id")
    note(prompt_column="text", completion_column="id")
    written_corpus(tmp_path / "val", ".jsonl", WORDS)
    note(val_paths=f"{tmp_path}/val")
    data = path.read_bytes()
    for at in (data.index(b"number 0"), len(data) // 2, data.rindex(b"number 59")):
        # One byte of the head, one of the middle, one of the tail.
        path.write_bytes(data[:at] + b"N" + data[at + 1 :])
        note()
    path.rename(tmp_path / "other.jsonl")
    note()
    tree(tmp_path, "b.jsonl")
    note()
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)
    note()
    assert fingerprints[-1] == fingerprints[-2]


def test_of_a_large_file_the_fingerprint_reads_evenly_spaced_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE", 1000)
    monkeypatch.setattr(files, "BLOCK", 10)
    [path] = written_corpus(tmp_path, ".jsonl", WORDS * 100)
    data = bytearray(path.read_bytes())
    unchanged = files.content_digest(str(path), len(data))
    for at in (0, (len(data) - 10) * 128 // 255, len(data) - 1):
        path.write_bytes(data[:at] + b"N" + data[at + 1 :])
        assert files.content_digest(str(path), len(data)) != unchanged


def test_a_copy_written_later_has_the_same_fingerprint(tmp_path):
    [path] = written_corpus(tmp_path, ".jsonl", WORDS)
    before = FilesSource(str(path)).fingerprint
    os.utime(path, ns=(1, 1))
    assert FilesSource(str(path)).fingerprint == before


def test_the_fingerprint_does_not_read_all_of_a_very_large_file(tmp_path):
    with (tmp_path / "a.txt").open("wb") as file:
        # Reading all of its holes would take minutes.
        file.truncate(1 << 38)
    assert FilesSource(str(tmp_path)).fingerprint == FilesSource(f"{tmp_path}/*").fingerprint


@pytest.mark.parametrize("mixed", [False, True], ids=["files", "mixture"])
def test_a_corpus_that_a_run_cannot_go_on_with_is_refused_by_its_first_file(mixed, tmp_path):
    def module(**settings):
        source = FilesSource(str(tmp_path), **{"validation_fraction": 0.2, **settings})
        source = MixtureSource({"books": source}, {"books": 1}) if mixed else source
        return datamodule(source=source)

    *_, last = written_corpus(tmp_path, ".txt", WORDS)
    state = module().state_dict()
    module().load_state_dict(state)
    prefix = "books: " if mixed else ""

    def refused(what, **settings):
        with pytest.raises(ValueError, match=rf"source\.fingerprint=.*batches \({what}\); go"):
            module(**settings).load_state_dict(state)

    last.write_text("changed")
    refused(rf"{prefix}{last.name} has changed; 1 of the files differ")
    last.unlink()
    refused(rf"{prefix}{last.name} is gone; 1 of the files differ")
    tree(tmp_path, "0000 a.txt")
    refused(rf"{prefix}0000 a\.txt is new; 2 of the files differ")
    (tmp_path / "0000 a.txt").unlink()
    last.write_text(WORDS[-1])
    refused("the files are the same: .*", validation_fraction=0.3)
