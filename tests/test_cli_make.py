"""The house: make's targets, what setup says when Python does not serve, and CI's rule on skips."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from runs import ROOT

# A make that runs these tests hands its own flags and variables down.
OURS = ("MAKE", "EXP", "ARGS", "CKPT", "PROMPT", "SWEEP", "ID", "PYTHON", "TORCH_INDEX", "LOCK")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-C", str(folder), "--no-print-directory", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_make_alone_lists_every_target_with_what_it_does() -> None:
    done = make()
    assert done.returncode == 0
    listed = re.findall(r"^  ([a-z-]+) +\w.*$", done.stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert listed == phony[1].split()


def test_make_train_hands_experiment_and_settings_to_the_script() -> None:
    done = make("-n", "train", "EXP=debug", "ARGS=seed=2 trainer.max_steps=3")
    assert done.stdout.splitlines()[-1] == (
        ".venv/bin/python src/train.py experiment=debug seed=2 trainer.max_steps=3"
    )
    assert make("-n", "train").stdout.splitlines()[-1].split() == [
        ".venv/bin/python",
        "src/train.py",
    ]


def test_make_eval_takes_the_newest_checkpoint_unless_one_is_named() -> None:
    assert make("-n", "eval").stdout.splitlines()[-1].split()[2:] == ["ckpt_path=last"]
    assert make("-n", "eval", "CKPT=a/b").stdout.splitlines()[-1].split()[2:] == ["ckpt_path=a/b"]


@pytest.mark.parametrize("prompt", ["", "def f(x):", 'it\'s "5 $x" $(y) `z` #, \\'])
def test_make_generate_hands_on_the_prompt_as_it_is(prompt: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fake_python(tmp_path / ".venv" / "bin" / "python", 'for a in "$@"; do echo "<$a>"; done')
    (tmp_path / ".venv" / ".installed").touch()
    done = make("-s", "generate", f"PROMPT={prompt}", "ARGS=seed=2", folder=tmp_path)
    assert done.stdout.splitlines() == [
        "<src/generate.py>",
        "<ckpt_path=last>",
        f"<prompt={prompt}>",
        "<seed=2>",
    ], done.stderr


def test_make_data_hands_experiment_and_settings_to_the_script() -> None:
    done = make("-n", "data", "EXP=debug", "ARGS=data=synthetic show.rows=1")
    assert done.stdout.splitlines()[-1] == (
        ".venv/bin/python scripts/show_data.py experiment=debug data=synthetic show.rows=1"
    )


def test_make_plan_hands_experiment_and_settings_to_the_script() -> None:
    done = make("-n", "plan", "EXP=7b", "ARGS=trainer.num_nodes=32 trainer.devices=8")
    assert done.stdout.splitlines()[-1] == (
        ".venv/bin/python src/plan.py experiment=7b trainer.num_nodes=32 trainer.devices=8"
    )


def fake_python(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_setup_asks_for_a_python_that_is_new_enough(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    old = fake_python(tmp_path / "old", "exit 1")
    done = make("setup", f"PYTHON={old}", folder=tmp_path)
    assert done.returncode != 0
    assert f"error: PYTHON={old}: Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_setup_asks_for_the_venv_module(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    bare = fake_python(tmp_path / "bare", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make("setup", f"PYTHON={bare}", folder=tmp_path)
    assert done.returncode != 0
    assert f"error: PYTHON={bare}: has no venv module; install it" in done.stderr


def skips(reason: str, folder: Path, ci: str) -> subprocess.CompletedProcess[str]:
    """A session of this project's conftest with one test that passes and one that is skipped."""
    tests = folder / "tests"
    tests.mkdir(exist_ok=True)
    for name in ("conftest.py", "allowed_skips.txt"):
        shutil.copy(ROOT / "tests" / name, tests)
    (tests / "test_it.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        f"@pytest.mark.skip(reason={reason!r})\ndef test_skipped(): pass\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tests), "--rootdir", str(folder)],
        env=ENVIRONMENT | {"CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_unlisted_skip_fails_in_ci_and_is_named(tmp_path: Path) -> None:
    done = skips("no time", tmp_path, ci="true")
    assert done.returncode == 1
    assert "skips that tests/allowed_skips.txt does not list: ['no time']" in done.stdout


def test_a_listed_skip_passes_in_ci_and_any_skip_elsewhere(tmp_path: Path) -> None:
    assert skips("needs a CUDA GPU", tmp_path, ci="true").returncode == 0
    assert skips("no time", tmp_path, ci="").returncode == 0


def test_make_sweep_and_agent_call_weights_and_biases() -> None:
    assert make("-n", "sweep", "SWEEP=seeds").stdout.splitlines()[-1].split() == [
        ".venv/bin/wandb",
        "sweep",
        "configs/sweep/seeds.yaml",
    ]
    *_, line = make("-n", "agent", "ID=me/litmegalodon/abcd1234").stdout.splitlines()
    assert line.split() == [".venv/bin/wandb", "agent", "me/litmegalodon/abcd1234"]


def test_an_agent_without_a_sweep_is_told_what_it_needs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    done = make("agent", folder=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("error: ID: give the sweep's, as make agent ID=")


@pytest.mark.slow
def test_make_board_serves_the_runs_and_says_where(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "train" / "runs" / "a" / "tensorboard")) as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    line = make("-n", "board", f"ARGS=--port 0 --logdir {tmp_path}").stdout.splitlines()[-1]
    program, *arguments = line.split()
    assert program == ".venv/bin/python"
    assert arguments[:4] == ["-m", "tensorboard.main", "--logdir", "logs"]
    board = subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        urls = (re.search(r"http://\S+", line) for line in board.stderr)
        url = next(found[0] for found in urls if found and "localhost" in found[0])
        # It reads the files in the background.
        for _ in range(100):
            runs = json.load(urllib.request.urlopen(f"{url}data/runs", timeout=30))
            if runs:
                break
            time.sleep(0.2)
        assert runs == ["train/runs/a/tensorboard"]
    finally:
        board.terminate()
        board.wait()
