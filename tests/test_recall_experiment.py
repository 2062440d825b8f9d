"""The experiment on recall: texts fill rows, a Llama is examined whole, tables are joined."""

import csv
import runpy
import sys

import pytest
import torch
from lightning.pytorch import Callback

from config_helpers import composed
from inference_helpers import TOKENIZER
from litmegalodon.data.store import IGNORED
from litmegalodon.evaluation import Recall
from litmegalodon.runs.instantiate import make_list
from litmegalodon.runs.settings import check_settings
from runs import ROOT
from test_compare_runs import make_run
from test_recall import Knowing, examined
from train import train


def small_run(tmp_path, model):
    sizes = ["model_dim=16", "ffn_hidden_dim=16", "num_layers=1"]
    sizes += ["z_dim=8", "value_dim=16"] if model == "small" else []
    sources = [f"data.source.sources.{name}.documents=8" for name in SOURCES]
    cfg = composed(
        "experiment=recall",
        f"model={model}",
        *(f"model.config.{size}" for size in sizes),
        *sources,
        *("model.scheduler.total_steps=2", "model.scheduler.warmup_steps=1", "logger=csv"),
        *("callbacks.monitor=null", "callbacks.recall.examiner.samples=2"),
        "trainer.limit_val_batches=1",
        folder=tmp_path,
    )
    check_settings(cfg)
    return cfg


SOURCES = ("recall_32", "recall_64", "recall_128", "passkey_128", "copy_32", "copy_64")


@pytest.mark.parametrize("model", ["small", pytest.param("small_llama", marks=pytest.mark.slow)])
def test_the_experiment_trains_on_whole_questions_and_examines_at_its_end(model, tmp_path):
    pytest.importorskip("transformers")
    cfg = small_run(tmp_path, model)
    metrics = train(cfg)
    assert metrics["val/loss"] < 8
    with (tmp_path / "run" / "recall.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["length"] == "126"]
    distances = [int(row["distance"]) for row in rows if row["task"] == "recall"]
    assert distances == [12, 16, 24, 32, 48, 64, 96]
    assert [int(r["distance"]) for r in rows if r["task"] == "passkey"] == [64, 96]
    assert {row["asked"] for row in rows} == {"2"}


def test_no_text_of_the_experiment_is_cut_by_a_row(tmp_path):
    from hydra.utils import instantiate

    module = instantiate(small_run(tmp_path, "small").data)
    for batch in module.val_dataloader():
        assert batch["resets"][:, 0].all()
        # Only answers and ends are predicted, and a row ends with an end.
        ends = batch["tokens"] == TOKENIZER.eos_id
        assert ends[:, -1].all()
        assert (batch["targets"][:, -2] == TOKENIZER.eos_id).all()
        assert (batch["targets"][ends] == IGNORED).all()


def test_a_wrong_setting_of_the_examination_is_named_as_it_is_typed(tmp_path):
    cfg = small_run(tmp_path, "small")
    cfg.callbacks = {"recall": cfg.callbacks.recall}
    cfg.callbacks.recall.examiner.samples = 0
    name = r"^callbacks\.recall\.examiner\.samples=0: must be a whole number"
    with pytest.raises(ValueError, match=name):
        make_list(cfg.callbacks, "callbacks", Callback)


def test_a_model_without_a_memory_is_given_whole_questions(tmp_path):
    cells = {"tasks": ["recall"], "lengths": [64], "distances": [16], "samples": 5}
    exam = Recall(str(tmp_path), batch_size=2, piece=7, **cells)

    class Whole(Knowing):
        streams = False

        def forward(self, tokens, state=None, last_only=False):
            assert state is None and not last_only
            return super().forward(tokens)

    model = Whole(exam)
    _, right, _ = examined(exam, model).answers.compute()
    assert float(torch.atleast_1d(right)[0]) == pytest.approx(3 / 5)
    assert model.calls == 3


def test_tables_are_joined_over_seeds_and_a_missing_one_is_named(tmp_path, monkeypatch, capsys):
    def compare(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare_recall.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "scripts" / "compare_recall.py"), run_name="__main__")

    for seed, right in ((1, 0.5), (2, 0.7)):
        folder = make_run(tmp_path / "s" / str(seed), 0.01, seed, 2.0)
        lines = ["task,length,distance,asked,accuracy,standard_error,chance,token_accuracy"]
        lines += [f"recall,126,{d},10,{right},0.1,0.1,0.9" for d in (16, 64)]
        (folder / "recall.csv").write_text("\n".join(lines))
    out = tmp_path / "out.png"
    compare(tmp_path / "s", "--out", out)
    with out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["runs"], r["distance"]) for r in rows] == [("2", "16"), ("2", "64")]
    assert float(rows[0]["accuracy"]) == pytest.approx(0.6)
    assert float(rows[0]["spread"]) == pytest.approx(0.2 / 2**0.5)
    assert out.stat().st_size > 10_000
    (tmp_path / "s" / "2" / "recall.csv").unlink()
    with pytest.raises(SystemExit):
        compare(tmp_path / "s", "--out", out)
    assert "has no recall.csv" in capsys.readouterr().err
