"""Data sets of the Hugging Face Hub, read here from local files of the same layouts."""

import pickle
import subprocess
import sys

import pytest
from hydra.utils import instantiate

from config_helpers import composed
from data_helpers import as_jsonl, as_parquet, compressed, splits_of
from litmegalodon.data import Document, HubSource, LeftOut
from litmegalodon.data.difference import difference, files_of
from litmegalodon.data.documents import is_held_out
from runs import ROOT

READERS = {"json": ".jsonl", "parquet": ".parquet"}


@pytest.fixture(autouse=True)
def without_network(monkeypatch, tmp_path_factory):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def written(folder, reader, sizes, columns=("text", "id")):
    """A file per number of records; the patterns that name them."""
    for number, size in enumerate(sizes):
        values = {name: [f"{name} {number}.{i}" for i in range(size)] for name in columns}
        if reader == "json":
            rows = zip(*values.values(), strict=True)
            data = as_jsonl(dict(zip(values, row, strict=True)) for row in rows)
        else:
            data = as_parquet(values)
        (folder / f"{number}{READERS[reader]}").write_bytes(data)
    return f"{folder}/*{READERS[reader]}"


def texts_of(source):
    return {split: [d.text.decode() for d in ds] for split, ds in splits_of(source).items()}


def message(call, *arguments):
    with pytest.raises(ValueError) as raised:
        call(*arguments)
    return str(raised.value)


@pytest.mark.parametrize("reader", READERS)
def test_every_record_is_in_one_split_and_shards_are_files(reader, tmp_path):
    files = written(tmp_path, reader, [70, 3, 130])
    source = HubSource(reader, data_files=files, validation_fraction=0.2)
    splits = texts_of(source)
    everything = [f"text {n}.{i}" for n, size in enumerate([70, 3, 130]) for i in range(size)]
    assert sorted(splits["train"] + splits["val"]) == sorted(everything)
    assert 20 < len(splits["val"]) < 65
    assert [shard.name for shard in source.shards("train")] == [
        f"train/{i:05}-of-00003" for i in range(3)
    ]
    for split, documents in splits_of(source).items():
        assert {is_held_out(d.name, 0.2) for d in documents} == {split == "val"}


@pytest.mark.parametrize("reader", READERS)
def test_every_shard_goes_on_at_any_number(reader, tmp_path):
    files = written(tmp_path, reader, [70, 0, 5] if reader == "json" else [70, 5])
    source = HubSource(reader, data_files=files, validation_fraction=0.3)
    for split in ("train", "val"):
        for shard in source.shards(split):
            whole = list(shard.documents())
            for first in (*range(8), 63, 64, 65, 69, 70, 71):
                assert list(shard.documents(first)) == [item for item in whole if item[0] >= first]


def test_no_more_documents_are_held_out_than_asked_and_all_others_are_trained_on(tmp_path):
    files = written(tmp_path, "json", [40] * 20)
    source = HubSource("json", data_files=files, validation_fraction=0.4, max_val_documents=20)
    splits = texts_of(source)
    assert len(splits["val"]) == 20
    assert len(set(splits["train"]) | set(splits["val"])) == 800
    assert len(splits["train"]) == 780
    # Of thousands of shards a few are opened, from all over the data set.
    assert [shard.index for shard in source.shards("val")] == [0, 2, 5, 7, 10, 12, 15, 17]


def test_a_split_for_validation_gives_its_first_documents(tmp_path):
    train = written(tmp_path, "json", [30])
    (tmp_path / "val").mkdir()
    files = {"train": train, "validation": written(tmp_path / "val", "json", [10, 10])}
    source = HubSource("json", data_files=files, val_split="validation", max_val_documents=5)
    splits = texts_of(source)
    assert len(splits["train"]) == 30
    assert splits["val"] == ["text 0.0", "text 0.1", "text 1.0", "text 1.1", "text 1.2"]
    names = [d.name for documents in splits_of(source).values() for d in documents]
    assert len(set(names)) == 35


def test_prompt_and_completion_are_read_apart(tmp_path):
    files = written(tmp_path, "json", [3], columns=("question", "answer"))
    source = HubSource(
        "json", data_files=files, prompt_column="question", completion_column="answer"
    )
    assert splits_of(source)["train"][1] == Document(
        "train/00000-of-00001:2", b"answer 0.1", prompt=b"question 0.1"
    )


def test_all_of_a_shard_is_read_in_a_worker_of_a_loader(tmp_path):
    import torch.utils.data

    class Texts(torch.utils.data.IterableDataset):
        def __init__(self, shard):
            self.shard = shard

        def __iter__(self):
            for _, document in self.shard.documents():
                yield document.text.decode()

    files = written(tmp_path, "json", [5])
    [shard] = HubSource("json", data_files=files, validation_fraction=1e-9).shards("train")
    loader = torch.utils.data.DataLoader(Texts(shard), batch_size=None, num_workers=2)
    assert sorted(loader) == sorted(2 * [f"text 0.{i}" for i in range(5)])


def test_shards_go_to_other_processes(tmp_path):
    files = written(tmp_path, "parquet", [5, 6])
    shard = HubSource("parquet", data_files=files).shards("train")[1]
    assert list(pickle.loads(pickle.dumps(shard)).documents()) == list(shard.documents())


def test_constructing_a_source_imports_neither_torch_nor_datasets():
    code = (
        "import sys; from litmegalodon.data import HubSource; HubSource('allenai/c4', 'en');"
        "assert not {'torch', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", check=True, timeout=60)


@pytest.mark.parametrize(
    ("lines", "number", "reason"),
    [
        ([b'{"text": "a"}', b'{"text": "b'], 0, "record 1: cannot be read, nor what follows: JSON"),
        ([b'{"words": "a"}'], 0, "cannot be read: has no column 'text' but 'words'; set data.sour"),
        ([b'{"text": 3}'], 0, "cannot be read: has int64 in column 'text', not text; set data.so"),
        ([b'{"text": "a"}', b'{"text": "\xe9"}'], 1, "record 2: column 'text' is no UTF-8: its by"),
        ([b'{"text": "a"}', b'{"text": null}'], 1, "record 2: column 'text' is null"),
        ([b'{"text": "a"}', b'{"text": ""}'], 1, "record 2: column 'text' is empty"),
    ],
    ids=["json", "missing", "number", "utf8", "null", "empty"],
)
def test_what_cannot_be_read_is_left_out_and_named(lines, number, reason, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    source = HubSource("json", data_files=f"{tmp_path}/a.jsonl", validation_fraction=1e-9)
    [shard] = source.shards("train")
    *_, (at, bad) = shard.documents()
    assert isinstance(bad, LeftOut) and at == number
    assert f"{bad.where}: {bad.reason}".startswith("json train, shard 1 of 1")
    assert reason in f"{bad.where}: {bad.reason}"
    assert bad.error is ("empty" not in reason)


@pytest.mark.parametrize("reader", READERS)
def test_parts_of_a_shard_are_all_of_it_and_each_tells_where_it_breaks_off(reader, tmp_path):
    files = written(tmp_path, reader, [70])
    [shard] = HubSource(reader, data_files=files, validation_fraction=0.1).shards("train")
    parts = [list(shard.in_part(i, 3).documents()) for i in range(3)]
    given = sorted((item for part in parts for item in part), key=lambda item: item[0])
    assert given == list(shard.documents())
    (tmp_path / f"0{READERS[reader]}").unlink()
    for i in range(3):
        [(_, bad)] = shard.in_part(i, 3).documents()
        assert bad.error and "cannot be read, nor what follows: " in bad.reason


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_vanishes_is_left_out_as_an_error(reader, tmp_path):
    files = written(tmp_path, reader, [3, 3])
    shards = HubSource(reader, data_files=files, validation_fraction=1e-9).shards("train")
    (tmp_path / f"1{READERS[reader]}").unlink()
    assert len(list(shards[0].documents())) == 3
    [(_, bad)] = shards[1].documents()
    assert bad.error and "cannot be read, nor what follows: " in bad.reason


def test_a_data_set_that_is_not_to_be_had_is_named_with_what_to_do(tmp_path):
    said = message(HubSource("nobody/nothing").shards, "train")
    assert said.startswith(
        "data.source.path=nobody/nothing: the data set cannot be opened (Couldn't reach"
        " 'nobody/nothing' on the Hub"
    )
    assert said.endswith(
        "); check the name and the network, set HF_HUB_OFFLINE=1 where a cached copy should do, or"
        " read files of this machine: data=files data.source.paths=[...]"
    )
    assert "\n" not in said and said.count("cannot be opened") == 1


def test_no_data_set_s_own_code_is_run(tmp_path):
    script = tmp_path / "corpus" / "corpus.py"
    script.parent.mkdir()
    script.write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    for path in (script, script.parent):
        said = message(HubSource(str(path)).shards, "train")
        assert said.startswith(f"data.source.path={path}: the data set cannot be opened (")
    assert "scripts are never run, look for a copy of it in Parquet" in message(
        HubSource(str(script)).shards, "train"
    )
    assert not (tmp_path / "was_run").exists()


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    files = written(tmp_path, "json", [3])
    source = HubSource("json", data_files=files, split="trian")
    assert message(source.shards, "train") == (
        "data.source.split=trian: Bad split: trian. Available splits: ['train']"
    )
    source = HubSource("json", data_files=files, val_split="val")
    assert message(source.shards, "val").startswith("data.source.val_split=val: Bad split: val. ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": None}, "path=null: must name a data set, as data.source.path=allenai/c4"),
        ({"split": None}, "split=None: must name a split, as train"),
        ({"val_split": "train"}, "val_split=train: is the split that is trained on; name another"),
        (
            {"val_split": "val", "validation_fraction": 0.1},
            "validation_fraction=0.1: has no effect with data.source.val_split, which says what",
        ),
        ({"data_files": [1]}, "data_files=[1]: must be a pattern of files or several, or such by"),
        ({"max_val_documents": 0}, "max_val_documents=0: must be a whole number, at least 1"),
        ({"max_val_documents": None}, "max_val_documents=None: must be a whole number, at least 1"),
        ({"validation_fraction": 1}, "validation_fraction=1: must be a number above 0 and below 1"),
        ({"prompt_column": "q"}, "prompt_column=q: goes together with data.source.completion_col"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, said):
    with pytest.raises(ValueError) as raised:
        HubSource(**{"path": "json", **settings})
    assert str(raised.value).startswith(f"data.source.{said}")


def test_the_fingerprint_changes_with_files_and_settings_and_not_with_their_place(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    files = written(here, "json", [5, 6]), written(there, "json", [5, 6])
    one, two = (HubSource("json", data_files=pattern).fingerprint for pattern in files)
    assert one == two and len(one) == 16
    others = [
        HubSource("json", data_files=files[0], validation_fraction=0.5),
        HubSource("json", data_files=files[0], max_val_documents=3),
        HubSource("json", data_files=files[0], text_column="id"),
        HubSource("json", data_files=f"{here}/0.jsonl"),
    ]
    written(there, "json", [5, 7])
    others.append(HubSource("json", data_files=files[1]))
    found = {one, *(other.fingerprint for other in others)}
    # A change that keeps the size.
    path = there / "1.jsonl"
    path.write_bytes(path.read_bytes().replace(b"text 1.3", b"TEXT 1.3"))
    found.add(HubSource("json", data_files=files[1]).fingerprint)
    assert len(found) == 7


def test_a_refused_data_set_is_named_by_its_first_file_or_by_its_commit(tmp_path):
    files = written(tmp_path, "json", [5, 6])
    before = files_of(HubSource("json", data_files=files))
    written(tmp_path, "json", [5, 7])
    now = files_of(HubSource("json", data_files=files))
    assert difference(before, now) == " (1.jsonl has changed; 1 of the files differ)"
    source = HubSource("a/b")
    source._identities = [("hf://datasets/a/b@0123456789abcdef/en/1.json", 0, "")]
    before = files_of(source)
    source._identities = [("hf://datasets/a/b@fedcba9876543210/en/1.json", 0, "")]
    assert difference(before, files_of(source)) == (
        " (a/b/en/1.json was of commit 0123456789ab and is of commit fedcba987654;"
        " 1 of the files differ)"
    )


def json_lines(columns, compression):
    rows = zip(*columns.values(), strict=True)
    return compressed(as_jsonl(dict(zip(columns, row, strict=True)) for row in rows), compression)


# The files of each example as they lie on the Hub, and its card where that names configurations:
# (path, columns but for the text's, and what writes it).
WEB = {"id": "i", "dump": "d", "url": "u", "date": "2024-01-01", "language_score": 0.9}
EXAMPLES = {
    "pg19": {
        "data/train-00000-of-00002.parquet": ({"url": "u", "publication_date": 1900}, as_parquet),
        "data/train-00001-of-00002.parquet": ({"url": "u", "publication_date": 1901}, as_parquet),
        "data/validation-00000-of-00001.parquet": ({"url": "u"}, as_parquet),
        "data/test-00000-of-00001.parquet": ({"url": "u"}, as_parquet),
    },
    "slimpajama": {
        f"{split}/chunk{chunk}/example_{i}.jsonl.zst": (
            {"meta": {"redpajama_set_name": "RedPajamaC4"}},
            lambda columns: json_lines(columns, "zstd"),
        )
        for split, chunks in (("train", 2), ("validation", 1), ("test", 1))
        for chunk in range(1, chunks + 1)
        for i in range(2)
    },
    "c4": {
        f"en/c4-{split}.0000{i}-of-00002.json.gz": (
            {"timestamp": "2019-04-25T12:57:54Z", "url": "u"},
            lambda columns: json_lines(columns, "gzip"),
        )
        for split in ("train", "validation")
        for i in range(2)
    },
    "fineweb": {
        f"{folder}/00{i}_00000.parquet": (WEB, as_parquet)
        for folder in ("data/CC-MAIN-2013-20", "sample/10BT")
        for i in range(2)
    },
    "the-stack": {
        f"data/{language}/train-0000{i}-of-00002.parquet": ({"lang": language}, as_parquet)
        for language in ("python", "c")
        for i in range(2)
    },
}
# Where the column is not text, or there is one split: what is in the paths of that.
TEXT = {"the-stack": "content"}
ONE_SPLIT = {"fineweb": "sample/10BT", "the-stack": "data/python"}
CARDS = {
    "c4": """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
---
""",
    "fineweb": """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
""",
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_reads_files_laid_out_as_on_the_hub(example, tmp_path):
    folder = tmp_path / example
    number, expected = 20, {"train": set(), "validation": set()}
    for path, (columns, write) in EXAMPLES[example].items():
        texts = [f"{path} {i}" for i in range(number)]
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        others = {name: [value] * number for name, value in columns.items()}
        file.write_bytes(write({**others, TEXT.get(example, "text"): texts}))
        for split in expected:
            if ONE_SPLIT.get(example, split) in path:
                expected[split] |= set(texts)
    if example in CARDS:
        (folder / "README.md").write_text(CARDS[example])

    fraction = ["data.source.validation_fraction=0.2"] if example in ONE_SPLIT else []
    cfg = composed(f"data={example}", *fraction, folder=tmp_path)
    assert "/" in cfg.data.source.path
    cfg.data.source.path = str(folder)
    source = instantiate(cfg.data.source)
    splits = texts_of(source)
    if example not in ONE_SPLIT:
        assert set(splits["train"]) == expected["train"]
        assert set(splits["val"]) == expected["validation"]
    else:
        assert len(splits["val"]) >= 2
        assert set(splits["train"] + splits["val"]) == expected["train"]
        assert len(splits["train"] + splits["val"]) == len(expected["train"])
    assert len(source.fingerprint) == 16
