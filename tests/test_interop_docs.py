"""The Python of docs/interop.md works; tests/test_commands.py looks at its commands."""

import re
from pathlib import Path

import torch

from inference_helpers import byte_model, write_checkpoint
from litmegalodon.interop.exporting import export

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "interop.md").read_text()


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
