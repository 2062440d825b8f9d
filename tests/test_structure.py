"""The code is laid out as docs/architecture.md says."""

import subprocess

from importlinter import configuration
from importlinter.application.use_cases import lint_imports

from runs import ROOT


def test_dependencies_point_down_only(capsys):
    configuration.configure()
    kept = lint_imports(str(ROOT / "pyproject.toml"), cache_dir=None)
    assert kept, capsys.readouterr().out


def test_no_file_is_longer_than_400_lines():
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.splitlines()]
    assert len(files) > 300
    lengths = {f: len(f.read_text().splitlines()) for f in files if f.exists()}
    assert {str(f): lines for f, lines in lengths.items() if lines > 400} == {}
