"""Sweeps go on: finished runs are kept, interrupted ones continue, a crash ends no other run."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from litmegalodon.utils.errors import explain
from runs import ENVIRONMENT, ROOT

ENV = ENVIRONMENT | {
    "PROJECT_ROOT": str(ROOT),
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
}


def command(folder: Path, *arguments: str) -> list[str]:
    script = str(ROOT / "tests" / "sweep_script.py")
    given = ["experiment=debug", f"paths.log_dir={folder}/logs", *arguments]
    return [sys.executable, script, "-m", *given]


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), cwd=folder, env=ENV, capture_output=True, text=True, timeout=60
    )


def starts(folder: Path) -> list[str]:
    """The seeds of all runs that were started, ` again` after those that went on."""
    path = folder / "starts"
    return path.read_text().splitlines() if path.exists() else []


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def wait(until) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_crash_ends_no_other_run_and_only_what_failed_is_tried_again(tmp_path: Path) -> None:
    where = f"hydra.sweep.dir={tmp_path}/s"
    done = sweep(tmp_path, "seed=1,13,2", where)
    assert done.returncode == 2
    assert re.search(r"^error: 1 of 3 runs failed, see errors.txt in s/1; .*", done.stderr, re.M)
    assert starts(tmp_path / "s") == ["1", "13", "2"]
    assert "Fatal Python error: Aborted" not in done.stdout

    # The same command with one more seed: two runs are kept, the new one gets the next folder.
    again = sweep(tmp_path, "seed=1,13,2,3", where)
    assert "2 runs are finished already, in s;" in again.stdout
    assert starts(tmp_path / "s") == ["1", "13", "2", "13", "3"]
    rows = table(tmp_path / "s")
    assert [(row["run"], row["seed"], row["finished"]) for row in rows] == [
        ("0", "1", "1"),
        ("1", "13", "0"),
        ("2", "2", "1"),
        ("3", "3", "1"),
    ]
    assert [bool(row["val/bpb"]) for row in rows] == [True, False, True, True]
    assert (tmp_path / "s" / "sweep.png").stat().st_size > 0


@pytest.mark.slow
def test_a_sweep_killed_in_a_run_goes_on_with_that_run(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    arguments = ("seed=1,2", "data.seq_len=77", "init_from=null", f"hydra.sweep.dir={folder}")
    process = subprocess.Popen(command(tmp_path, *arguments), cwd=tmp_path, env=ENV)
    wait(lambda: (folder / "0" / "checkpoints").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    assert starts(folder) == ["1"]
    assert "waiting" in (folder / "0" / "errors.txt").read_text()

    (folder / "go").touch()
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert starts(folder) == ["1", "1 again", "2"]


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_a_run_outlives_its_parent(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    arguments = ("seed=1,2", "data.seq_len=77", f"hydra.sweep.dir={folder}")
    first, second = (
        subprocess.Popen(command(tmp_path, *arguments), cwd=tmp_path, env=ENV) for _ in range(2)
    )
    wait(lambda: sorted(starts(folder)) == ["1", "2"])
    # No warning: the run that it started goes on, and the other process waits for its result.
    first.kill()
    first.wait()
    (folder / "go").touch()
    assert second.wait(timeout=30) == 0
    assert sorted(starts(folder)) == ["1", "2"]
    assert [row["finished"] for row in table(folder)] == ["1", "1"]


def test_all_settings_are_checked_before_the_first_run(tmp_path: Path) -> None:
    done = sweep(tmp_path, "model.optimizer.lr=1e-3,-1", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: model.optimizer.lr=-1: must be a number above 0 \(in the run .*lr=-1.*\)\n",
        done.stderr,
    )
    assert not starts(tmp_path / "s")


SEARCH = (
    "hparams_search=optuna",
    "hydra.sweeper.params=null",
    "hydra.sweeper.sampler.n_startup_trials=2",
    "model.optimizer.lr=interval(1e-3, 1e-2)",
)


@pytest.mark.slow
def test_a_search_goes_on_and_repeats_no_finished_trial(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "train" / "searches" / "debug"
    done = sweep(tmp_path, *SEARCH, "hydra.sweeper.n_trials=2")
    assert done.returncode == 0, done.stderr
    # The third trial is killed with its parent.
    search = (*SEARCH, "hydra.sweeper.n_trials=4")
    (folder / "wait").touch()
    process = subprocess.Popen(command(tmp_path, *search), cwd=tmp_path, env=ENV)
    wait(lambda: len(starts(folder)) == 3)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    (folder / "wait").unlink()

    done = sweep(tmp_path, *search)
    assert done.returncode == 0, done.stderr
    assert "study debug: 2 of 4 trials are there already" in done.stdout
    assert "trial 3 was interrupted and goes on" in done.stdout
    assert "best 2.0000 of 4 trials" in done.stdout
    rows = table(folder)
    assert len({row["model.optimizer.lr"] for row in rows}) == len(rows) == 4
    assert len(starts(folder)) == 5

    other = sweep(tmp_path, *SEARCH, "data.seq_len=128")
    assert other.returncode == 2
    assert "study_name=debug: was made with other settings: data.seq_len=128 (now)" in other.stderr


@pytest.mark.slow
def test_a_failed_trial_does_not_end_a_search(tmp_path: Path) -> None:
    done = sweep(tmp_path, *SEARCH, "seed=13", "hydra.sweeper.n_trials=2")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "logs" / "train" / "searches" / "debug"
    # It counts, too: the same command does not try for ever.
    assert starts(folder) == ["13", "13"]


def test_a_missing_optuna_is_named() -> None:
    missing = MissingConfigException("...", "hydra/sweeper/optuna", options=["basic"])
    assert explain(missing) == ("hparams_search=optuna: needs pip install 'litmegalodon[optuna]'")
