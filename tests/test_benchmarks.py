"""The CPU benchmark runs, compares what it says it compares, and keeps what it found."""

import json
import os
import subprocess
import sys

import pytest

from hard import hard_cema_parameters
from runs import ENVIRONMENT, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import torch

import measure
import subjects
from golden_data import assert_equal
from litmegalodon.ops import cema


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """transformers takes TRITON_INTERPRET away at its import, which later tests need."""
    if "TRITON_INTERPRET" in os.environ:
        monkeypatch.setenv("TRITON_INTERPRET", os.environ["TRITON_INTERPRET"])


def test_the_llama_has_as_many_parameters():
    ours = subjects.count(subjects.megalodon())
    theirs = subjects.count(subjects.Llama(subjects.CONFIG, ours))
    assert theirs == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_models_make_a_step(dtype):
    ours = subjects.megalodon()
    for model in (ours, subjects.Llama(subjects.CONFIG, subjects.count(ours))):
        before = model.output.state_dict()
        before = {name: value.clone() for name, value in before.items()}
        subjects.training_step(model, 64, dtype)()
        assert any(not torch.equal(v, before[k]) for k, v in model.output.state_dict().items())


def test_the_fft_form_computes_the_same():
    parameters = hard_cema_parameters(6, 4, seed=1)
    x = torch.randn(2, 90, 6, dtype=torch.float64)
    assert_equal(subjects.cema_by_fft(x, **parameters), cema(x, **parameters)[0])


def test_a_figures_ratio_and_verdict():
    figure = measure.paired("a name", lambda: None, lambda: None, pairs=3, must=1e9, aim=1e-9)
    assert figure.spread[0] <= figure.value <= figure.spread[1]
    assert figure.verdict() == "must"
    assert measure.Figure("a", 13.0, must=12, aim=25, higher_is_better=True).verdict() == "must"
    assert measure.Figure("a", 11.0, must=12, aim=25, higher_is_better=True).verdict() == "missed"
    assert measure.Figure("a", 11.0).verdict() == ""


@pytest.mark.slow
def test_make_bench_in_small(tmp_path):
    sizes = (
        "--shrink=64",
        "--pairs=1",
        "--threads=1",
        "--only",
        "operators",
        "memory",
        "inference",
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/cpu.py"), *sizes],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads((ROOT / "benchmarks/results/cpu-part.json").read_text())
    names = " ".join(figure["name"] for figure in saved["figures"])
    parts = ("FFT", "reference loop", "checkpointing", "peak of the process", "writing", "reading")
    for part in parts:
        assert part in names
        assert part in done.stdout
    assert (ROOT / "benchmarks/results/cpu-part.png").stat().st_size > 1000
    # No bound is applied to lengths that it is not for.
    assert all(figure["must"] is None for figure in saved["figures"])


@pytest.mark.slow
def test_the_scaling_table_shows_less_of_everything_but_messages_for_each_of_more_processes():
    path = os.pathsep.join([str(ROOT / "src"), ENVIRONMENT.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/scaling.py"), "--shrink", "64", "--steps", "1"],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((ROOT / "benchmarks/results/scaling-part.json").read_text())
    rows = {row["processes"]: row for row in written["figures"]}
    assert rows.keys() == {1, 2, 4}
    assert rows[4]["saved"] < rows[2]["saved"] < rows[1]["saved"]
    model = written["settings"]["model"]
    statistics, states = 8 * model["norm_num_groups"], 8 * model["model_dim"] * model["cema_ndim"]
    message = model["num_layers"] * (statistics + states) + statistics
    assert [rows[p]["sent"] for p in (1, 2, 4)] == [0, 2 * message, 6 * message]
