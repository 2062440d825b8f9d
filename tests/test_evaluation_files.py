"""Perplexity of files and continuations of prompts: exact, shared by ranks, bad files refused."""

import csv
import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from inference_helpers import BOS, EOS, TOKENIZER, byte_model, reader, text_of
from litmegalodon.evaluation import Files
from litmegalodon.models import Megalodon

TEXTS = [text_of(n, seed=n).decode() + " x" for n in (3, 90, 12, 41, 7)]


@pytest.fixture(scope="module")
def model() -> Megalodon:
    return byte_model(torch.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "b.txt").write_text("One text.\nOf two lines.\n")
    return tmp_path


def trainer(rank: int = 0, world: int = 1) -> SimpleNamespace:
    return SimpleNamespace(global_rank=rank, world_size=world)


class Counting(torch.nn.Module):
    """A model that counts its calls."""

    def __init__(self, model: Megalodon) -> None:
        super().__init__()
        self.inner, self.calls = model, 0

    def loss(self, *arguments):
        self.calls += 1
        return self.inner.loss(*arguments)


def examined(model, folder: Path, rank: int = 0, world: int = 1, **settings) -> Files:
    exam = Files(str(folder / "out"), **settings)
    for batch in exam.loader(TOKENIZER, trainer(rank, world)):
        exam.read(model, batch)
    return exam


@torch.no_grad()
def nats_of(model: Megalodon, text: str) -> float:
    tokens = torch.tensor([[BOS, *text.encode(), EOS]])
    logits, _ = model(tokens)
    return float(cross_entropy(logits[0, :-1].double(), tokens[0, 1:], reduction="sum"))


@pytest.mark.parametrize(("batch_size", "piece"), [(1, 4096), (2, 16), (8, 30)])
def test_the_table_is_of_every_token_of_every_document(model, folder, batch_size, piece):
    paths = ["a.jsonl.gz", "b.txt"]
    exam = examined(model, folder, paths=paths, batch_size=batch_size, piece=piece)
    metrics = exam.results(is_main=True)
    rows = list(csv.DictReader((folder / "out" / "files.csv").open()))
    assert [row["file"] for row in rows] == [*paths, "total"]
    other = [(folder / "b.txt").read_text()]
    for row, texts in zip(rows, [TEXTS, other, TEXTS + other], strict=True):
        nats = sum(nats_of(model, text) for text in texts)
        size, words = sum(map(len, texts)), sum(len(text.split()) for text in texts)
        counts = [int(row[name]) for name in ("documents", "tokens", "bytes", "words")]
        assert counts == [len(texts), size + len(texts), size, words]
        for name, expected in (
            ("loss", nats / counts[1]),
            ("perplexity", math.exp(nats / counts[1])),
            ("bits_per_byte", nats / math.log(2) / size),
            ("word_perplexity", math.exp(nats / words)),
        ):
            assert float(row[name]) == pytest.approx(expected, rel=1e-5)
    assert metrics["files/perplexity"] == pytest.approx(float(rows[-1]["perplexity"]))


def test_one_file_is_its_own_total(model, folder):
    examined(model, folder, paths=["b.txt"]).results(is_main=True)
    one, total = csv.reader((folder / "out" / "files.csv").read_text().splitlines()[1:])
    assert (one[0], total[0]) == ("b.txt", "total")
    assert one[1:] == total[1:]


def test_ranks_make_the_same_calls_and_read_every_document_once(model, folder):
    settings = {"paths": ["a.jsonl.gz", "b.txt"], "batch_size": 1, "piece": 16}
    whole = examined(model, folder, **settings).loss
    calls, nll, tokens = [], 0, 0
    for rank in range(3):
        counting = Counting(model)
        exam = examined(counting, folder, rank, 3, **settings)
        calls.append(counting.calls)
        nll, tokens = nll + exam.loss.nll, tokens + exam.loss.tokens
    assert len(set(calls)) == 1
    assert torch.equal(tokens, whole.tokens)
    torch.testing.assert_close(nll, whole.nll, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_every_prompt_is_continued_in_its_order(model, folder, name):
    prompts = ["def f(x):", "a", "some words more"]
    lines = prompts if name.endswith("txt") else [json.dumps({"prompt": p}) for p in prompts]
    # A line without a prompt is passed over.
    (folder / name).write_text("\n".join([lines[0], "", *lines[1:]]) + "\n")
    settings = {"max_new_tokens": 20, "temperature": 0}
    exam = examined(model, folder, prompts=name, batch_size=2, **settings)
    assert [p.name for p in (folder / "out").iterdir()] == ["generations.jsonl.partial"]
    assert exam.results(is_main=True) == {}
    assert [p.name for p in (folder / "out").iterdir()] == ["generations.jsonl"]
    written = (folder / "out" / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    for prompt, line in zip(prompts, map(json.loads, written), strict=True):
        text = "".join(reader(model, prompt).generate(20, temperature=0))
        assert line == {"prompt": prompt, "generation": text, "ended": "max_new_tokens"}


BAD = {
    "none.jsonl": (None, "there is no such file"),
    "x.csv": (b"text\nhello\n", r"must end with \.txt, \.md, \.jsonl, \.parquet"),
    "empty.jsonl": (b"", "holds no text"),
    "empty.txt": (b"", "holds no text"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken\.jsonl, line 2: is no JSON"),
    "column.jsonl": (
        b'{"text": "a"}\n{"body": "b"}\n',
        r"line 2: has no column 'text' but 'body'; set evaluation\.text_column to",
    ),
    "number.jsonl": (b'{"text": 1}\n', "line 1: column 'text' holds a number, not text"),
    "latin.txt": (b"a\nb\xe9\n", r"latin\.txt, line 2: is no UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_name_and_line(name, folder):
    content, message = BAD[name]
    if content is not None:
        (folder / name).write_bytes(content)
    exam = Files("unused", paths=["b.txt", name])
    with pytest.raises(ValueError, match=rf"^evaluation\.paths={name}: .*{message}"):
        exam.loader(TOKENIZER, trainer())


def test_bad_prompts_are_refused_with_their_line(folder):
    (folder / "p.txt").write_bytes(b"one\ntwo\xff\n")
    (folder / "p.jsonl").write_text('{"text": "a prompt"}\n')
    (folder / "none.txt").write_text("\n \n")
    for name, message in (
        ("p.txt", "line 2 is no UTF-8: its byte 4 is 0xff"),
        ("p.jsonl", r"line 1: .*set evaluation\.prompt_column to"),
        ("none.txt", "holds no prompt"),
    ):
        with pytest.raises(ValueError, match=rf"^evaluation\.prompts={name}: .*{message}"):
            Files("unused", prompts=name).loader(TOKENIZER, trainer())


def test_settings_out_of_range_are_named():
    for settings, message in (
        ({}, r"evaluation\.paths=\[\]: give files"),
        ({"prompts": "x", "batch_size": 0}, r"evaluation\.batch_size=0: must be a whole number"),
        ({"prompts": "x", "temperature": -1}, r"evaluation\.temperature=-1: must be 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Files("unused", **settings)
