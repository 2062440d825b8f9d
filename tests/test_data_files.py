"""Files as a source: which ones, split how, and what is said where that cannot be done."""

import os
import pickle
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import datamodule, splits_of, texts_of, tree, written_corpus
from litmegalodon.data import Document, FilesSource, LeftOut
from litmegalodon.data.documents import is_held_out
from litmegalodon.data.store import OnError

FORMATS = [
    f"{stem}{end}" for stem in (".txt", ".md", ".jsonl", ".parquet") for end in ("", ".gz", ".zst")
]
WORDS = [f"text number {i}" for i in range(60)]


def names_of(source, split="train"):
    return [shard.name for shard in source.shards(split)]


def message(error):
    return str(error.value)


@pytest.mark.parametrize("format", FORMATS)
def test_a_corpus_of_every_format_is_split_by_names_and_nothing_is_lost(format, tmp_path):
    written_corpus(tmp_path, format, WORDS)
    source = FilesSource(str(tmp_path), validation_fraction=0.2)
    splits = texts_of(source)
    assert 3 <= len(splits["val"]) <= 24
    assert sorted(splits["train"] + splits["val"]) == sorted(WORDS)
    for split, items in splits_of(source).items():
        assert {is_held_out(item.name, 0.2) for item in items} == {split == "val"}


@pytest.mark.parametrize("format", FORMATS)
def test_validation_files_of_their_own_are_all_held_out(format, tmp_path):
    written_corpus(tmp_path / "a", format, WORDS[:5])
    written_corpus(tmp_path / "b", format, WORDS[5:7])
    source = FilesSource([f"{tmp_path}/a"], [f"{tmp_path}/b/*{format}"])
    assert texts_of(source) == {"train": WORDS[:5], "val": WORDS[5:7]}
    names = [item.name for items in splits_of(source).values() for item in items]
    assert len(set(names)) == 7 and all(name.startswith(("a/", "b/")) for name in names)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_shard_goes_on_at_any_number(data, tmp_path_factory):
    format = data.draw(st.sampled_from(FORMATS))
    texts = data.draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=12))
    folder = tmp_path_factory.mktemp("corpus")
    written_corpus(folder, format, texts)
    written_corpus(folder / "val", ".txt", ["held out"])
    for source in (
        FilesSource(f"{folder}/*{format}", f"{folder}/val"),
        FilesSource([f"{folder}/*{format}", f"{folder}/val/*"], validation_fraction=0.5),
    ):
        for split in ("train", "val"):
            try:
                shards = source.shards(split)
            except ValueError:
                continue
            for shard in shards:
                whole = [(number, plain(item)) for number, item in shard.documents()]
                for first in range(len(texts) + 1):
                    given = [(number, plain(item)) for number, item in shard.documents(first)]
                    assert given == [item for item in whole if item[0] >= first]


def plain(item):
    return (item.name, bytes(item.text)) if isinstance(item, Document) else item


def test_patterns_mean_files_folders_and_both_with_wildcards(tmp_path):
    tree(tmp_path, "b/2.jsonl", "b/10.jsonl", "a.jsonl", "B/1.jsonl", "b/c/3.jsonl", "b/.x.jsonl")
    tree(tmp_path, "b/.git/4.jsonl")
    everything = ["B/1.jsonl", "a.jsonl", "b/10.jsonl", "b/2.jsonl", "b/c/3.jsonl"]
    for patterns in (
        str(tmp_path),
        [f"{tmp_path}/**/*.jsonl"],
        [f"{tmp_path}/**"],
        [f"{tmp_path}/b", f"{tmp_path}/*.jsonl", f"{tmp_path}/B/1.jsonl", f"{tmp_path}/b/2.jsonl"],
    ):
        assert names_of(FilesSource(patterns)) == everything
    assert names_of(FilesSource(f"{tmp_path}/[ab]/*.jsonl")) == everything[2:4]
    assert names_of(FilesSource("b/?.jsonl", root=str(tmp_path))) == ["2.jsonl"]
    assert names_of(FilesSource(f"{tmp_path}/b/c/3.jsonl")) == ["3.jsonl"]


def test_patterns_start_at_the_working_folder(tmp_path, monkeypatch):
    tree(tmp_path, "b/2.jsonl", "b/3.jsonl")
    monkeypatch.chdir(tmp_path)
    source = FilesSource("b/*.jsonl")
    assert [shard.file.path for shard in source.shards("train")] == ["b/2.jsonl", "b/3.jsonl"]


def test_a_name_with_wildcards_in_it_can_be_given_as_it_is(tmp_path):
    tree(tmp_path, "[a].jsonl", "a.jsonl")
    assert names_of(FilesSource(f"{tmp_path}/[a].jsonl")) == ["[a].jsonl"]
    tree(tmp_path, "[b]/1.jsonl", "b/2.jsonl")
    [shard] = FilesSource("*.jsonl", root=f"{tmp_path}/[b]").shards("train")
    assert shard.name.endswith("1.jsonl")


def test_links_are_followed_and_one_that_leads_back_is_so_once(tmp_path):
    tree(tmp_path, "corpus/a.jsonl", "elsewhere/b.jsonl")
    (tmp_path / "corpus" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "corpus")
    names = names_of(FilesSource(f"{tmp_path}/corpus"))
    assert names == ["a.jsonl", "more/b.jsonl"]


def test_a_file_that_links_match_too_is_read_once_by_its_own_name(tmp_path):
    tree(tmp_path, "b.jsonl", "elsewhere/c.jsonl")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "z").symlink_to(tmp_path / "elsewhere")
    source = FilesSource([f"{tmp_path}/*.jsonl", f"{tmp_path}/z", f"{tmp_path}/elsewhere"])
    assert names_of(source) == ["b.jsonl", "elsewhere/c.jsonl"]
    assert source.left_out["files"] == 2
    assert source.left_out_endings == {"link to a file that is read": 2}
    # Links alone are files like others, each file once.
    (tmp_path / "links").mkdir()
    for name in ("1.jsonl", "2.jsonl"):
        (tmp_path / "links" / name).symlink_to(tmp_path / "b.jsonl")
    assert names_of(FilesSource(f"{tmp_path}/links")) == ["1.jsonl"]


def test_a_link_of_a_format_to_a_file_of_none_is_read(tmp_path):
    tree(tmp_path, "blobs/0123")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "blobs" / "0123")
    assert names_of(FilesSource(str(tmp_path))) == ["a.jsonl"]


def test_hidden_files_of_a_folder_are_counted(tmp_path):
    tree(tmp_path, "a.jsonl", ".b.jsonl", ".git/c/d.jsonl", "e/.f.jsonl")
    (tmp_path / ".gone").symlink_to(tmp_path / "nowhere")
    source = FilesSource(str(tmp_path))
    assert names_of(source) == ["a.jsonl"]
    assert source.left_out["files"] == 4 and source.left_out_endings == {"hidden": 4}
    asked_for = FilesSource([str(tmp_path), f"{tmp_path}/.b.jsonl"])
    assert names_of(asked_for) == [".b.jsonl", "a.jsonl"]
    assert asked_for.left_out_endings == {"hidden": 3}


def test_a_file_that_is_written_again_during_a_run_is_an_error(tmp_path):
    [path] = written_corpus(tmp_path, ".jsonl", WORDS)
    [shard] = FilesSource(str(path)).shards("train")
    # Of the same size.
    path.write_bytes(path.read_bytes().replace(b"number", b"NUMBER"))
    os.utime(path, ns=(1, 1))
    [(_, bad)] = shard.documents()
    assert bad.where == str(path) and bad.error
    assert "changed since the run began (it was written again)" in bad.reason


def test_files_of_other_formats_are_counted_and_named(tmp_path):
    tree(tmp_path, "a.jsonl", "b.PNG", "c.png", "README", "d.csv.gz")
    source = FilesSource(str(tmp_path))
    assert names_of(source) == ["a.jsonl"]
    sizes = [path.stat().st_size for path in tmp_path.iterdir() if path.name != "a.jsonl"]
    assert source.left_out == {"files": 4, "bytes": sum(sizes)}
    assert source.left_out_endings == {".PNG": 1, ".png": 1, "no ending": 1, ".csv.gz": 1}


def test_endings_are_read_in_any_case(tmp_path):
    tree(tmp_path, "a.JSONL", "B.Txt")
    assert names_of(FilesSource(str(tmp_path), validation_fraction=0.001)) == ["B.Txt", "a.JSONL"]


def test_a_pipe_is_not_waited_for(tmp_path):
    tree(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    source = FilesSource(str(tmp_path))
    assert names_of(source) == ["a.jsonl"] and source.left_out["files"] == 1


def test_a_pattern_that_matches_nothing_is_named_with_its_folder(tmp_path, monkeypatch):
    tree(tmp_path, "a.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as raised:
        FilesSource(["a.jsonl", "b/*.jsonl"]).shards("train")
    assert message(raised) == f"data.source.paths=b/*.jsonl: matches no file in {tmp_path}"
    with pytest.raises(ValueError) as raised:
        FilesSource("a.jsonl", "val", root=str(tmp_path)).shards("train")
    assert message(raised) == f"data.source.val_paths=val: matches no file in {tmp_path}"


def test_a_pattern_that_matches_no_format_says_which_there_are(tmp_path):
    tree(tmp_path, "a.csv", "b.pdf")
    with pytest.raises(ValueError) as raised:
        FilesSource("*", root=str(tmp_path)).shards("train")
    assert message(raised) == (
        f"data.source.paths=*: matches 2 files in {tmp_path}, none of a format that is read"
        " (.csv, .pdf); formats are .txt, .md, .jsonl, .parquet, each also with .gz or .zst"
    )


@pytest.mark.parametrize("value", [None, [], "", [""], [3]])
def test_paths_must_name_files(value):
    with pytest.raises(ValueError, match=r"^data\.source\.paths=.*: must name files, as data\.sou"):
        FilesSource(value)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, True, "0.1"])
def test_a_fraction_out_of_range_is_named(fraction):
    with pytest.raises(ValueError, match=rf"^data\.source\.validation_fraction={fraction}: must"):
        FilesSource("a.txt", validation_fraction=fraction)


def test_a_fraction_beside_files_to_validate_on_is_refused():
    with pytest.raises(ValueError, match=r"fraction=0\.1: has no effect with .*val_paths"):
        FilesSource("a.txt", "b.txt", validation_fraction=0.1)


def test_files_to_train_on_and_validate_on_are_not_the_same(tmp_path):
    tree(tmp_path, "a/1.jsonl", "a/2.jsonl", "a/val/3.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "val")
    for val in ("a/val", "link"):
        with pytest.raises(ValueError) as raised:
            FilesSource("a/**/*.jsonl", val, root=str(tmp_path)).shards("val")
        assert message(raised) == (
            f"data.source.val_paths: 1 of its files would also be trained on, {tmp_path}/{val}/"
            "3.jsonl for one; change data.source.paths so that it misses them"
        )


def test_one_text_file_cannot_be_split_and_that_is_said(tmp_path):
    tree(tmp_path, "book.txt")
    with pytest.raises(ValueError) as raised:
        FilesSource(f"{tmp_path}/book.txt").shards("val")
    assert message(raised) == (
        "data.source.paths: matches one text file, book.txt, which is one document and cannot be"
        " both trained on and held out; name files to validate on, as"
        " data.source.val_paths=[held_out/*.txt], or cut it into several files"
    )


def test_a_fraction_that_leaves_a_split_of_text_files_empty_says_which_would_not(tmp_path):
    tree(tmp_path, *(f"{i}.txt" for i in range(9)))
    with pytest.raises(ValueError, match=r"holds out none of 9 text files; raise it to") as raised:
        FilesSource(str(tmp_path), validation_fraction=0.0001).shards("val")
    enough = float(message(raised).partition("raise it to ")[2].split()[0])
    assert len(names_of(FilesSource(str(tmp_path), validation_fraction=enough), "val")) == 1
    with pytest.raises(ValueError, match=r"holds out all 9 files; lower it, or name files to val"):
        FilesSource(str(tmp_path), validation_fraction=0.9999).shards("train")


def test_a_file_that_cannot_be_read_is_named_before_training(tmp_path, monkeypatch):
    tree(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError) as raised:
        FilesSource(str(tmp_path)).shards("train")
    assert message(raised) == (
        f"data.source.paths: {tmp_path}/c.jsonl cannot be read (No such file or directory); mend"
        " that, or leave it out of the patterns"
    )
    (tmp_path / "c.jsonl").unlink()
    original = open

    # Tests may run as root, who may read anything.
    def refuse(path, *args, **settings):
        if str(path).endswith("b.jsonl"):
            raise PermissionError(13, "Permission denied", path)
        return original(path, *args, **settings)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ValueError, match=r"b\.jsonl cannot be read \(Permission denied\); mend"):
        FilesSource(str(tmp_path)).fingerprint  # noqa: B018


def test_a_file_that_vanished_is_left_out_as_an_error_in_either_split(tmp_path):
    [path] = written_corpus(tmp_path, ".jsonl", WORDS)
    source = FilesSource(str(path))
    shards = [source.shards(split)[0] for split in ("train", "val")]
    path.unlink()
    for shard in (*shards, *(shard.in_part(i, 2) for shard in shards for i in range(2))):
        assert list(shard.documents()) == [
            (0, LeftOut(str(path), "cannot be read: No such file or directory"))
        ]


def test_a_file_that_breaks_off_or_is_empty_counts_in_one_split(tmp_path):
    [path] = written_corpus(tmp_path, ".jsonl.gz", WORDS)
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    splits = splits_of(FilesSource(str(tmp_path)))
    told = {split: [i for i in items if isinstance(i, LeftOut)] for split, items in splits.items()}
    assert [(item.where.rpartition("/")[2][:5], item.error) for item in told["train"]] == [
        (path.name[:5], True),
        ("empty", False),
    ]
    # Held-out lines may be lost too: an evaluation alone stops there as well.
    assert [(item.error, item.again) for item in told["val"]] == [(True, True)]
    with pytest.raises(ValueError, match=r"corpus\.jsonl\.gz, line .*data\.on_error=skip"):
        OnError("raise")(told["val"][0])
    assert OnError("skip")(told["val"][0]) == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_where_no_file_can_be_read_the_reason_is_given_in_either_split(split, tmp_path):
    written_corpus(tmp_path, ".parquet", WORDS)
    with pytest.raises(ValueError, match=r"has no column 'words' but .*; set data\.source\.text_"):
        read = FilesSource(str(tmp_path), text_column="words")
        OnError("raise")(next(read.shards(split)[0].documents())[1])


def test_the_size_of_the_text_is_known_where_files_tell_it(tmp_path):
    total = sum(map(len, WORDS))
    for format, low, high in ((".txt", 1, 1), (".jsonl", 1, 4), (".parquet", 0.5, 6)):
        folder = tmp_path / format[1:]
        written_corpus(folder, format, WORDS)
        assert low * total <= FilesSource(str(folder)).num_bytes <= high * total
    written_corpus(tmp_path / "packed", ".jsonl.gz", WORDS)
    assert FilesSource(str(tmp_path / "packed")).num_bytes is None


def test_shards_go_to_other_processes(tmp_path):
    written_corpus(tmp_path, ".jsonl", WORDS)
    [shard] = FilesSource(str(tmp_path)).shards("train")
    assert list(pickle.loads(pickle.dumps(shard)).documents()) == list(shard.documents())


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork.*")
@pytest.mark.parametrize("format", [".txt", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_reads_every_text_once_an_epoch_with_workers_too(format, streaming, tmp_path):
    texts = [f"text {i} ".ljust(20, "x") for i in range(60)]
    written_corpus(tmp_path / "corpus", format, texts)
    written_corpus(tmp_path / "val", ".parquet", ["held out"])
    source = FilesSource(f"{tmp_path}/corpus", f"{tmp_path}/val")
    settings = {"source": source, "seq_len": 22, "batch_size": 2, "streaming": streaming}
    read = {}
    for num_workers in (0, 2):
        loader = datamodule(**settings, num_workers=num_workers).train_dataloader()
        rows = [row for batch in islice(loader, 30) for row in batch["tokens"].tolist()]
        read[num_workers] = [bytes(row[1:-1]).decode() for row in rows]
    assert read[2] == read[0]
    # Streamed text files are whole shards of one row or the other.
    if format != ".txt" or not streaming:
        assert sorted(read[0]) == sorted(texts)
