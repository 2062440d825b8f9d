"""What the README shows works: its Python runs, and what it names is there.

tests/test_commands.py looks at its commands.
"""

import re
from pathlib import Path

import torch

from inference_helpers import byte_model, write_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_generation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(byte_model(torch.float32), tmp_path / "logs" / "train" / "runs" / "a")
    (tmp_path / "book.txt").write_text("It was a dark and stormy night.\n")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/generate.md").read_text(), re.DOTALL)
    exec(code, {})


def test_its_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace = {}
    exec(code, namespace)
    assert namespace["more"].shape == (1, 10, 264)
    assert namespace["state"].position.tolist() == [1010]


def test_it_begins_with_two_commands():
    first, second = re.findall(r"^    (\w.*)$", README, re.MULTILINE)[:2]
    assert (first, second) == ("make train", "make test")


def test_the_files_and_pictures_it_names_exist():
    names = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    names += re.findall(r"^\| `([^`]+)`", README, re.MULTILINE)
    assert len(names) > 30
    for name in names:
        assert (ROOT / name).exists(), name
