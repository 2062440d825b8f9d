"""Recall at set distances: what counts as right, which cells there are, how ranks share them."""

import csv
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from inference_helpers import TOKENIZER, byte_model, reader
from litmegalodon.data.synthetic import question
from litmegalodon.evaluation import Recall
from litmegalodon.evaluation.question_batches import cells_of, default_lengths
from litmegalodon.models import Megalodon

CELLS = {"tasks": ["recall", "copy"], "lengths": [64], "distances": [16, 32, 60]}


def trainer(rank: int = 0, world: int = 1) -> SimpleNamespace:
    return SimpleNamespace(global_rank=rank, world_size=world)


class Knowing(torch.nn.Module):
    """A model that knows every second question's answer by heart, and counts its calls.

    Its state is the text read so far.
    """

    def __init__(self, exam: Recall) -> None:
        super().__init__()
        self.calls, self.known = 0, []
        for cell in exam.cells:
            for i in range(0, exam.samples, 2):
                parts = question(cell.task, cell.length, cell.distance, exam.seed, i)
                self.known.append(b"".join(parts))

    def forward(self, tokens, state=None, last_only=False):
        self.calls += 1
        before = state or [[] for _ in tokens]
        state = [[*text, *row] for text, row in zip(before, tokens.tolist(), strict=True)]
        logits = torch.stack([self._likely(text, tokens.shape[1]) for text in state])
        return (logits[:, -1:] if last_only else logits), state

    def _likely(self, text, count):
        text = bytes(t for t in text if t < 256)
        found = [k for k in self.known if k.startswith(text[:40])]
        guess = [
            found[0][i] if found and i < len(found[0]) else 0
            for i in range(len(text) - count + 1, len(text) + 1)
        ]
        return one_hot(torch.tensor(guess), 264).float()


def examined(exam: Recall, model: torch.nn.Module, rank: int = 0, world: int = 1) -> Recall:
    for batch in exam.loader(TOKENIZER, trainer(rank, world)):
        exam.read(model, batch)
    return exam


@pytest.mark.parametrize("piece", [7, 4096])
def test_every_cell_counts_its_right_answers(piece, tmp_path):
    exam = Recall(str(tmp_path / "new"), samples=5, batch_size=2, piece=piece, **CELLS)
    metrics = examined(exam, Knowing(exam)).results(is_main=True)
    rows = list(csv.DictReader((tmp_path / "new" / "recall.csv").open()))
    assert [(r["task"], r["length"], r["distance"]) for r in rows] == [
        ("recall", "64", "16"),
        ("recall", "64", "32"),
        ("copy", "64", "60"),
    ]
    for row in rows:
        assert int(row["asked"]) == 5
        assert float(row["accuracy"]) == pytest.approx(3 / 5)
        assert float(row["standard_error"]) == pytest.approx((0.6 * 0.4 / 5) ** 0.5)
        assert float(row["token_accuracy"]) == pytest.approx(3 / 5)
    # 64 bytes hold four pairs beside the question; four letters of 64.
    assert float(rows[0]["chance"]) == pytest.approx(1 / 4)
    assert float(rows[2]["chance"]) == pytest.approx(64.0**-4)
    assert metrics["recall/recall"] == pytest.approx(0.6)
    assert (tmp_path / "new" / "recall.png").stat().st_size > 0


def test_one_cell_is_a_table_too(tmp_path):
    exam = Recall(str(tmp_path), tasks=["recall"], lengths=[64], distances=[32], samples=2)
    metrics = examined(exam, Knowing(exam)).results(is_main=True)
    assert metrics == {"recall/recall": 0.5}
    assert len((tmp_path / "recall.csv").read_text().splitlines()) == 2


def test_an_answer_is_right_where_greedy_decoding_writes_it(tmp_path):
    model: Megalodon = byte_model(torch.float32)
    exam = Recall(str(tmp_path), samples=6, batch_size=4, piece=16, **CELLS)
    asked, right, _ = examined(exam, model).answers.compute()
    for i, cell in enumerate(exam.cells):
        hits = 0
        for index in range(6):
            prompt, answer = question(cell.task, cell.length, cell.distance, 0, index)
            texts = reader(model, prompt).generate(len(answer), temperature=0)
            hits += "".join(texts).encode() == answer
        assert (int(asked[i]), float(right[i])) == (6, hits / 6)


def test_ranks_make_the_same_calls_and_ask_every_question_once(tmp_path):
    settings = CELLS | {"samples": 5, "batch_size": 1, "piece": 16}
    whole = Recall(str(tmp_path), **settings)
    examined(whole, Knowing(whole))
    calls, asked, right = [], 0, 0
    for rank in range(3):
        exam = Recall(str(tmp_path), **settings)
        model = Knowing(exam)
        examined(exam, model, rank, 3)
        calls.append(model.calls)
        asked, right = asked + exam.answers.asked, right + exam.answers.right
    assert len(set(calls)) == 1
    assert torch.equal(asked, whole.answers.asked)
    assert torch.equal(right, whole.answers.right)


def test_every_task_has_questions_at_the_lengths_and_distances_by_default():
    for chunk_size in (16, 256):
        exam = Recall("unused", tasks=["recall", "passkey", "copy"], chunk_size=chunk_size)
        for name in exam.tasks:
            lengths = {cell.length for cell in exam.cells if cell.task == name}
            assert lengths == set(default_lengths(chunk_size))
        assert [c.distance for c in exam.cells if c.task == "copy"][:2] == [65, 129]
        for cell in exam.cells:
            question(cell.task, cell.length, cell.distance)


def test_distances_go_from_within_a_chunk_to_many_chunks():
    assert default_lengths(256) == [128, 256, 512, 1024, 2048, 4096]
    assert default_lengths(4096) == [2048, 4096, 8192, 16384, 32768, 65536]
    assert default_lengths(16) == [128, 256]
    found = cells_of(["recall", "passkey"], default_lengths(256), None)
    distances = {
        task: [c.distance for c in found if c.task == task] for task in ("recall", "passkey")
    }
    assert (min(distances["recall"]), max(distances["recall"])) == (16, 2048)
    assert (min(distances["passkey"]), max(distances["passkey"])) == (64, 2048)
    for cell in found:
        question(cell.task, cell.length, cell.distance)


def test_settings_out_of_range_are_named():
    for settings, message in (
        ({"tasks": ["random"]}, r"evaluation\.tasks=\[random\]: must be of copy, recall, passkey"),
        ({"tasks": []}, r"evaluation\.tasks=\[\]: give one"),
        ({"samples": 0}, r"evaluation\.samples=0: must be a whole number, at least 1"),
        ({"lengths": [64, 1.5]}, r"evaluation\.lengths=1\.5: must be a whole number"),
        ({"lengths": [64], "distances": [64]}, r"evaluation\.distances=\[64\]: none fits recall"),
        (
            {"tasks": ["recall"], "lengths": [64], "distances": [16, 500]},
            r"evaluation\.distances=\[16, 500\]: with \[500\] no question can be made",
        ),
        (
            {"tasks": ["recall"], "lengths": [10, 64]},
            r"evaluation\.lengths=\[10, 64\]: with \[10\] no question",
        ),
        (
            {"lengths": [64]},
            r"evaluation\.distances=null: none fits passkey .* at least 85, a dist",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Recall("unused", **settings)
