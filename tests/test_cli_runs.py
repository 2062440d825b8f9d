"""Whole runs of the entry points, as a user starts them."""

import csv
import json
import re
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from runs import ENVIRONMENT, command, last_checkpoint, metrics, run

# The experiment debug, shorter still.
SHORT = (
    "experiment=debug",
    "extras.print_config=false",
    "trainer.limit_val_batches=2",
    "callbacks.report.sample_tokens=20",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run and what it printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run(
        "train", *SHORT, "extras.print_config=true", f"hydra.run.dir={folder}", cwd=folder.parent
    )
    assert "Warning" not in done.stdout + done.stderr
    return folder, done.stdout


def printed_paths(text: str) -> list[str]:
    return re.findall(r"^run folder: (.*)$", text, re.MULTILINE)


def test_a_run_leaves_everything_in_its_folder_and_says_where(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert printed_paths(printed) == ["run", "run"]
    for name in ("metrics.csv", "loss.png", "sample.txt", "config_tree.log", ".hydra/config.yaml"):
        assert (folder / name).stat().st_size > 0, name
    kinds = {path.name.partition("-")[0] for path in (folder / "checkpoints").iterdir()}
    assert kinds == {"last", "best"}
    header = next(csv.reader((folder / "metrics.csv").open()))
    wanted = "step tokens train/loss train/grad_norm train/lr tokens_per_second val/loss val/bpb"
    assert set(wanted.split()) <= set(header)
    assert "chunk_size: 16" in printed
    # Of all held-out bytes the report says so; these batches are a few.
    assert re.search(r"bytes, validated on 2 of \d+ batches", printed)
    assert "chunk_size: 16" in (folder / "config_tree.log").read_text()


def test_settings_and_parameter_counts_are_logged(trained: tuple[Path, str]) -> None:
    hparams = (trained[0] / "hparams.yaml").read_text()
    for name in ("chunk_size", "total", "trainable", "non_embedding"):
        assert re.search(rf"\b{name}: \d+", hparams), name


def test_an_evaluation_gives_the_metrics_of_the_training_run(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    last = last_checkpoint(folder)
    # Nothing but the checkpoint is named, by a path with `=` in it.
    done = run("eval", f"ckpt_path={last}", "hydra.run.dir=evaluation", cwd=folder.parent)
    row = [row for row in metrics(folder) if row["val/bpb"]][-1]
    for name in ("val/loss", "val/bpb", "val/ppl"):
        shown = re.search(rf"^{name} +(\S+)$", done.stdout, re.MULTILINE)
        assert shown is not None, done.stdout
        assert shown[1] == f"{float(row[name]):.6g}"
    # What the figures are read beside.
    assert re.search(r"^gzip bpb +\d\.\d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^xz bpb +\d\.\d+$", done.stdout, re.MULTILINE)
    fingerprint = re.search(r"fingerprint (\w{16})$", done.stdout, re.MULTILINE)
    assert re.search(rf"^fingerprint +{fingerprint[1]}$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_best_checkpoint_is_tested_where_asked_for(tmp_path: Path) -> None:
    same = ("test=true", "trainer.limit_test_batches=2", "hydra.run.dir=run")
    done = run("train", *SHORT, *same, cwd=tmp_path)
    best = min(float(row["val/bpb"]) for row in metrics(tmp_path / "run") if row["val/bpb"])
    tested = re.search(r"test/bpb\D+([\d.]+)", done.stdout)
    assert tested is not None, done.stdout
    assert float(tested[1]) == pytest.approx(best, abs=1e-4)


@pytest.mark.slow
def test_a_sweep_gives_each_run_its_folder(tmp_path: Path) -> None:
    fast = ("trainer.max_steps=2", "callbacks.report=null")
    run("train", "-m", "seed=1,2", *SHORT, *fast, "hydra.sweep.dir=sweep", cwd=tmp_path)
    first, second = (metrics(tmp_path / "sweep" / name) for name in ("0", "1"))
    assert len(first) == len(second) == 2
    assert first[0]["train/loss"] != second[0]["train/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "fdr", "fast-dev-run", "limit", "overfit", "profiler"])
def test_every_debug_mode_runs(mode: str, tmp_path: Path) -> None:
    place = (f"debug={mode}", "hydra.run.dir=run")
    if mode in ("default", "overfit"):
        place = (*place, "trainer.max_steps=4")
    run("train", *SHORT, *place, cwd=tmp_path)
    traces = list((tmp_path / "run").glob("*.pt.trace.json"))
    assert bool(traces) == (mode == "profiler")
    for trace in traces:
        assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.slow
def test_overfitting_sees_the_same_batches(tmp_path: Path) -> None:
    place = (
        "debug=overfit",
        "hydra.run.dir=run",
        "trainer.max_steps=40",
        "trainer.overfit_batches=1",
    )
    run("train", *SHORT, *place, "callbacks.report=null", cwd=tmp_path)
    losses = [float(row["train/loss"]) for row in metrics(tmp_path / "run") if row["train/loss"]]
    assert losses[-1] < 0.6 * losses[0]
    assert all(later < earlier + 0.5 for earlier, later in pairwise(losses))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ("data.source.root=empty", "data.seq_len=64"),
        # Longer than all the text, and no longer than this machine can hold.
        ("data.seq_len=32768", "data.source.root=small"),
    ],
)
def test_data_that_do_not_suit_end_in_one_line_before_training(
    setting: str, other: str, tmp_path: Path
) -> None:
    for name in ("empty", "small"):
        (tmp_path / name).mkdir()
    for number in range(100):
        (tmp_path / "small" / f"part{number}.py").write_text(f"x = {number}\n" * 20)
    arguments = (setting, other, "extras.print_config=false", "hydra.run.dir=run")
    done = subprocess.run(
        command("train", *arguments), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {re.escape(setting)}: .*\n", done.stderr)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_debug_keeps_the_traceback_of_a_mistake(tmp_path: Path) -> None:
    arguments = ("debug=default", "seed=-1", "hydra.run.dir=run")
    done = subprocess.run(
        command("train", *arguments), cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ValueError: seed=-1: must be a whole number, at least 0" in done.stderr


@pytest.mark.slow
def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(tmp_path: Path) -> None:
    arguments = (*SHORT, "trainer.max_steps=100000", "hydra.run.dir=run", "callbacks.report=null")
    process = subprocess.Popen(
        command("train", *arguments),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(metrics(tmp_path / "run")) < 12:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    said = re.search(
        r"^interrupted by Ctrl-C after step (\d+); to go on: ckpt_path=(.*)", errors, re.M
    )
    # The step that it was in is saved.
    assert said[2].endswith(f"last-step={int(said[1]):06d}.ckpt") and Path(said[2]).is_dir()
    assert "Traceback" not in errors
