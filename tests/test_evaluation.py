"""Loss by position: what is read, how it is cut, and that ranks make the same calls."""

import csv
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from data_helpers import datamodule
from hard import hard_config, hard_model
from litmegalodon.evaluation import LossByPosition
from litmegalodon.models import Megalodon

C = 8


@pytest.fixture(scope="module")
def model() -> Megalodon:
    return hard_model(hard_config(vocab_size=264, chunk_size=C)).eval()


class Counting(torch.nn.Module):
    """A model that counts its calls."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.config, self.calls, self.longest = model, model.config, 0, 0

    def forward(self, tokens, state=None, last_only=False):
        self.calls += 1
        self.longest = max(self.longest, tokens.shape[1])
        return self.inner(tokens, state, last_only=last_only)


def documents(lengths, rank=0, world=1, **settings):
    text = bytes(range(32, 127)) * 9
    val = [text[i : i + n] for i, n in enumerate(lengths)]
    module = datamodule(val=val, rank=rank, world=world, val_batch_size=world)
    return list(LossByPosition("unused", **settings).loader(module))


def losses(model, tokens):
    """The loss of every token but the first, each after all that stand before it."""
    logits, _ = model(tokens)
    return cross_entropy(logits[0, :-1].double(), tokens[0, 1:], reduction="none")


def by_bucket(values):
    """Sums of values at positions 1, 2, ... by powers of two."""
    sums = torch.zeros(41, dtype=torch.float64)
    for position, value in enumerate(values.tolist(), 1):
        sums[position.bit_length() - 1] += value
    return sums


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_a_document_is_read_whole_whatever_the_pieces(model, piece, tmp_path):
    exam = LossByPosition(str(tmp_path), contexts=[], piece=piece)
    batches = documents([75, 10])
    with torch.no_grad():
        for batch in batches:
            exam.read(model, batch)
        expected = sum(by_bucket(losses(model, batch["tokens"])) for batch in batches)
    torch.testing.assert_close(exam.whole.nll, expected, rtol=1e-9, atol=1e-9)
    assert exam.whole.tokens.sum() == 75 + 10 + 2


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_a_context_is_the_last_chunks_and_the_tokens_own(model, chunks, tmp_path):
    exam = LossByPosition(str(tmp_path), contexts=[chunks])
    (batch,) = documents([61])
    tokens = batch["tokens"]
    with torch.no_grad():
        exam.read(model, batch)
        expected = []
        for position in range(1, tokens.shape[1]):
            own = (position - 1) // C
            first = max(0, own - chunks + 1) * C
            expected.append(losses(model, tokens[:, first : position + 1])[-1])
    found = exam.cut[str(chunks)].nll
    torch.testing.assert_close(found, by_bucket(torch.stack(expected)), rtol=1e-9, atol=1e-9)


def test_no_call_is_longer_than_a_piece_however_long_the_context(model):
    (batch,) = documents([90])
    counting, exams = Counting(model), []
    for read_by, piece in ((counting, 2), (model, 100)):
        exams.append(LossByPosition("unused", contexts=[8], piece=piece))
        exams[-1].read(read_by, batch)
    assert counting.longest == 2 * C
    cut, expected = (exam.cut["8"].nll for exam in exams)
    torch.testing.assert_close(cut, expected, rtol=1e-5, atol=1e-5)


def test_statistics_of_the_last_six_chunks_take_the_place_of_all(model, tmp_path):
    exam = LossByPosition(str(tmp_path), contexts=[], reestimate=True)
    (batch,) = documents([C * 12 - 5])
    tokens = batch["tokens"]
    nll, state = [], None
    with torch.no_grad():
        exam.read(model, batch)
        for start in range(0, tokens.shape[1], 2 * C):
            end = start + 2 * C
            logits, state = model(tokens[:, start:end], state)
            targets = tokens[0, start + 1 : end + 1]
            nll.append(cross_entropy(logits[0, : len(targets)], targets, reduction="none"))
            if 8 * C <= end <= tokens.shape[1]:
                _, last = model(tokens[:, end - 6 * C : end])
                named, fresh = state.tensors(), last.tensors()
                norms = ("count", "mean", "var")
                named |= {n: v for n, v in fresh.items() if n.rpartition(".")[2] in norms}
                state = type(state).from_tensors(named)
    expected = by_bucket(torch.cat(nll).double())
    torch.testing.assert_close(exam.whole.nll, expected, rtol=1e-9, atol=1e-9)
    plain = LossByPosition(str(tmp_path), contexts=[])
    plain.read(model, batch)
    assert not torch.allclose(plain.whole.nll, exam.whole.nll, rtol=1e-4)


def test_ranks_make_the_same_calls_and_read_every_document_once(model, tmp_path):
    lengths = [70, 10, 33, 1, 24]
    calls, read = [], torch.zeros(41, dtype=torch.int64)
    for rank in range(3):
        counting = Counting(model)
        exam = LossByPosition(str(tmp_path), contexts=[1, 2], piece=2)
        for batch in documents(lengths, rank, 3):
            exam.read(counting, batch)
        calls.append(counting.calls)
        read += exam.whole.tokens
        assert torch.equal(exam.whole.tokens, exam.cut["1"].tokens)
    assert len(set(calls)) == 1
    assert read.sum() == sum(lengths) + len(lengths)


def test_a_prompt_is_read_and_not_measured(model, tmp_path):
    module = datamodule(val=[(b"question", b"answer")])
    exam = LossByPosition(str(tmp_path))
    for batch in exam.loader(module):
        exam.read(model, batch)
    assert exam.whole.tokens.sum() == len(b"answer") + 1


def test_the_table_says_what_the_buckets_hold(model, tmp_path):
    exam = LossByPosition(str(tmp_path / "new"), contexts=[1], max_tokens=20)
    for batch in documents([75, 10], max_tokens=20):
        exam.read(model, batch)
    metrics = exam.results(is_main=True)
    rows = list(csv.DictReader((tmp_path / "new" / "context.csv").open()))
    whole = [row for row in rows if row["context"] == "whole"]
    assert [(row["from"], row["to"], row["tokens"]) for row in whole] == [
        ("1", "1", "2"),
        ("2", "3", "4"),
        ("4", "7", "8"),
        ("8", "15", "12"),
        ("16", "31", "4"),
    ]
    assert float(whole[3]["perplexity"]) == pytest.approx(math.exp(float(whole[3]["loss"])))
    total = sum(int(row["tokens"]) * float(row["loss"]) for row in whole)
    assert metrics["context/whole"] == pytest.approx(total / 30)
    assert set(metrics) == {"context/whole", "context/1_chunk"}
    assert (tmp_path / "new" / "context.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("setting", "value"), [("contexts", [0]), ("piece", 0), ("max_tokens", 1), ("piece", True)]
)
def test_a_setting_out_of_range_is_named(setting, value):
    with pytest.raises(ValueError, match=rf"evaluation\.{setting}=.*must be a whole number"):
        LossByPosition("unused", **{setting: value})
