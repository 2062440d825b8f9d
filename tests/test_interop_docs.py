"""What docs/interop.md shows works."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from config_helpers import composed
from inference_helpers import byte_model, write_checkpoint
from litmegalodon.interop.exporting import export
from litmegalodon.runs.settings import check_values

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "interop.md").read_text()
COMMANDS = re.findall(
    r"^    python scripts/((?:im|ex)port_checkpoint)\.py (.*?)(?:  +#.*)?$", PAGE, re.MULTILINE
)


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_its_commands_compose_and_pass_the_checks(script, arguments, tmp_path):
    check_values(composed(*shlex.split(arguments), folder=tmp_path, name=script))
    assert (ROOT / "scripts" / f"{script}.py").is_file()


def test_it_shows_both_commands():
    assert {script for script, _ in COMMANDS} == {"import_checkpoint", "export_checkpoint"}


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = write_checkpoint(byte_model(torch.float32), tmp_path / "run")
    export(checkpoint, tmp_path / "export", "hf")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    card = (tmp_path / "export" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "export")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        exec(code.replace("max_new_tokens=100", "max_new_tokens=2"), {})
