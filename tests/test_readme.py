"""What the README shows works: its commands compose and pass the checks, its Python runs."""

import re
import shlex
from pathlib import Path

import pytest

from config_helpers import composed
from litmegalodon.planning.settings import check_plan
from litmegalodon.utils.settings import check_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TRAIN = re.findall(r"^    python src/train\.py(.*?)(?:  +#.*)?$", README, re.MULTILINE)
MAKE = re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)


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
