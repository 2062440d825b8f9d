"""The CPU benchmark runs, compares what it says it compares, and keeps what it found."""

import csv
import json
import os
import subprocess
import sys

import pytest

from hard import hard_cema_parameters
from runs import ENVIRONMENT, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import torch

import efficiency
import measure
import memory
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


def test_efficiency_measures_every_length_until_the_llama_does_not_fit(
    tmp_path, monkeypatch, capsys
):
    def peak_of(length, mode, steps):
        if (mode, length) == ("llama", 256):
            raise memory.DoesNotFit
        return 2**30 + length, 1000 * length**2 if mode == "llama" else 8000 * length

    monkeypatch.setattr(efficiency, "peak_of", peak_of)
    monkeypatch.setattr(efficiency, "RESULTS", tmp_path)
    figures = list(efficiency.efficiency(1, {"longest": 256}))
    assert "Llama from 256 tokens on: left out, a step does not fit into memory" in (
        capsys.readouterr().out
    )
    with (tmp_path / "cpu-part.efficiency.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lengths = [2**i for i in range(9)]
    for model, measured in (("Megalodon", lengths), ("Llama", lengths[:-1])):
        of_it = [row for row in rows if row["model"] == model]
        assert [int(row["length"]) for row in of_it] == measured
        assert all(
            float(row["tokens_per_second"]) * float(row["seconds"])
            == pytest.approx(int(row["length"]))
            for row in of_it
        )
    assert (tmp_path / "cpu-part.efficiency.png").stat().st_size > 10_000
    names = {figure.name: figure for figure in figures}
    assert names["length at which both take as much memory"].value == pytest.approx(8)
    assert {"step against Llama, L = 128", "step alone, L = 256"} <= names.keys()


def test_a_crossing_is_where_the_order_changes_for_good():
    def points(ratios):
        for n, ratio in ratios.items():
            for model, seconds in (("Megalodon", ratio), ("Llama", 1.0)):
                yield efficiency.Point(model, n, 1, seconds, n / seconds, 0, 0)

    for ratios, expected in (
        ({256: 4.0, 1024: 0.25, 4096: 0.1}, 512),
        ({256: 0.5, 1024: 2.0, 4096: 0.5}, 2048),
        ({256: 0.5, 1024: 0.25}, None),
        ({256: 2.0, 1024: 4.0}, None),
    ):
        found = efficiency.crossing(list(points(ratios)), "seconds")
        assert found == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("code", "stderr", "error"),
    [
        (-9, "", memory.DoesNotFit),
        (1, "RuntimeError: [...] DefaultCPUAllocator: can't allocate memory", memory.DoesNotFit),
        (1, "NameError: x", RuntimeError),
    ],
)
def test_a_bug_is_not_taken_for_want_of_memory(code, stderr, error, monkeypatch):
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(error):
        memory.peak_of(64)


@pytest.mark.slow
def test_the_llamas_step_is_measured_in_a_process_of_its_own():
    peak, growth = memory.peak_of(2048, "llama", steps=1)
    # Embedded tokens alone, in 4 layers, twice each.
    assert 2048 * 256 * 4 * 8 < growth < peak


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
