"""The documentation builds without a warning, and what it points to exists."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
EQUATIONS = (ROOT / "docs" / "equations.md").read_text()
LIBRARY = ROOT / "src" / "litmegalodon"
PUBLIC = [
    *(p for p in sorted(LIBRARY.glob("*/__init__.py")) if "\n__all__ =" in p.read_text()),
    LIBRARY / "interop" / "hf" / "__init__.py",
    LIBRARY / "training" / "callbacks" / "__init__.py",
]


@pytest.mark.parametrize("place", sorted(set(re.findall(r"`((?:src|configs)/[^`]+)`", EQUATIONS))))
def test_an_equation_stands_where_the_page_says(place):
    path, _, symbol = place.partition("::")
    text = (ROOT / path).read_text()
    if symbol:
        kinds = ast.FunctionDef | ast.ClassDef
        assert symbol in {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)}


def test_every_file_that_the_evidence_names_exists():
    page = (ROOT / "docs" / "evidence.md").read_text()
    tests = set(re.findall(r"`(test_\w+)`", page)) - {"test_x"}
    files = set(re.findall(r"`((?:benchmarks|docs)/[^`]+)`", page))
    assert len(tests) > 80 and len(files) > 4
    for name in [*(f"tests/{test}.py" for test in tests), *files]:
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("init", PUBLIC, ids=lambda init: init.parent.name)
def test_every_public_name_is_in_the_reference(init):
    package = ".".join(init.parent.relative_to(ROOT / "src").parts)
    (names,) = re.findall(r"^__all__ = (\[.*?\])", init.read_text(), re.DOTALL | re.MULTILINE)
    shown = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for path in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            shown.setdefault(path.rpartition(".")[2], []).append(path)
    # Constants, as names of files, speak for themselves.
    for name in (n for n in ast.literal_eval(names) if not n.isupper()):
        assert any(path.startswith(f"{package}.") for path in shown.get(name, ())), name


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in menu, page


def test_the_files_for_the_public_host_are_well_formed():
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]:
        assert yaml.safe_load(path.read_text()), path


@pytest.mark.slow
def test_the_change_of_the_model_that_a_page_shows_works(tmp_path):
    page = (ROOT / "docs" / "customise.md").read_text()
    for folder in ("src", "configs", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    change = "\n".join(re.findall(r"```diff\n(.*?)```", page, re.DOTALL))
    subprocess.run(["git", "apply", "-"], input=change.encode(), cwd=tmp_path, check=True)
    command = ["-m", "pytest", "-q", "tests/test_model_switches.py", "-k", "tanh"]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "....." in done.stdout, done.stdout


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    # strict: a warning, a link that leads nowhere among them, is an error
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert (tmp_path / "api" / "ops" / "index.html").is_file()
