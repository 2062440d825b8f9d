"""What the README shows works: its commands compose and pass the checks, its Python runs."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from config_helpers import composed
from inference_helpers import byte_model, write_checkpoint
from litmegalodon.evaluation.settings import check_evaluation
from litmegalodon.planning.settings import check_plan
from litmegalodon.runs.request import check_request
from litmegalodon.runs.settings import check_settings
from litmegalodon.utils.command_line import take_texts
from test_cli_settings import make_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TRAIN = re.findall(
    r"^    python src/train\.py(.*?)(?:  +#.*)?$",
    README + (ROOT / "docs" / "trust.md").read_text(),
    re.MULTILINE,
)
GENERATE = re.findall(
    r"^    python src/generate\.py(.*?)(?:  +#.*)?$",
    README + (ROOT / "docs" / "generate.md").read_text(),
    re.MULTILINE,
)
EVAL = re.findall(
    r"^    python src/eval\.py(.*?)(?:  +#.*)?$",
    README + (ROOT / "docs" / "evaluation.md").read_text(),
    re.MULTILINE,
)
MAKE = re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)
MAKE = re.findall(
    r"^    make ([a-z-]+)", README + (ROOT / "docs" / "trust.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("arguments", TRAIN)
def test_its_training_commands_are_valid(arguments, tmp_path):
    given = [a for a in shlex.split(arguments) if a not in ("-m", "--help")]
    # A checkpoint is of an earlier run; tests of resuming have one.
    settings = [a for a in given if not a.startswith(("ckpt_path=", "init_from=", "seed=1,"))]
    check_settings(composed(*settings, folder=tmp_path))


def test_its_plans_are_valid(tmp_path):
    plans = re.findall(r"^    python src/plan\.py (.*?)(?:  +#.*)?$", README, re.MULTILINE)
    for arguments in plans:
        check_plan(composed(*shlex.split(arguments), folder=tmp_path, name="plan"))
    assert plans


@pytest.mark.parametrize("arguments", EVAL)
def test_its_evaluations_are_valid(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "train" / "runs" / "a" / "checkpoints" / "last-step=000900.ckpt")
    for name in ("my_tasks/my_task.yaml", "x.jsonl", "y.txt", "prompts.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    cfg = composed(*shlex.split(arguments), folder=tmp_path, name="eval")
    check_evaluation(cfg, shlex.split(arguments))
    check_settings(cfg)
    if cfg.get("evaluation"):
        instantiate(cfg.evaluation)


@pytest.mark.parametrize("arguments", GENERATE)
def test_its_generation_commands_are_valid(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", *shlex.split(arguments)])
    make_checkpoint(tmp_path / "train" / "runs" / "a" / "checkpoints" / "last-step=000900.ckpt")
    for name in ("book.txt", "book.safetensors"):
        (tmp_path / name).touch()
    texts = take_texts("prompt", "stop")
    asked = check_request(composed(*sys.argv[1:], folder=tmp_path, name="generate"), texts)
    assert asked.prompts != (b"",) or asked.document


def test_the_python_of_generation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(byte_model(torch.float32), tmp_path / "logs" / "train" / "runs" / "a")
    (tmp_path / "book.txt").write_text("It was a dark and stormy night.\n")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/generate.md").read_text(), re.DOTALL)
    exec(code, {})


def test_its_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"train", "test"} <= set(MAKE) <= set(targets)


def test_its_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace = {}
    exec(code, namespace)
    assert namespace["more"].shape == (1, 10, 264)
    assert namespace["state"].position.tolist() == [1010]


def test_the_files_and_pictures_it_names_exist():
    names = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    names += re.findall(r"^\| `([^`]+)`", README, re.MULTILINE)
    assert len(names) > 8
    for name in names:
        assert (ROOT / name).exists(), name


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
