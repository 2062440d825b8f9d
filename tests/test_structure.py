"""The code is laid out as docs/architecture.md says."""

from importlinter import configuration
from importlinter.application.use_cases import lint_imports

from runs import ROOT


def test_dependencies_point_down_only(capsys):
    configuration.configure()
    kept = lint_imports(str(ROOT / "pyproject.toml"), cache_dir=None)
    assert kept, capsys.readouterr().out
