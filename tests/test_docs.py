"""The documentation builds without a warning, and what it points to exists."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
EQUATIONS = (ROOT / "docs" / "equations.md").read_text()


@pytest.mark.parametrize("place", sorted(set(re.findall(r"`((?:src|configs)/[^`]+)`", EQUATIONS))))
def test_an_equation_stands_where_the_page_says(place):
    path, _, symbol = place.partition("::")
    text = (ROOT / path).read_text()
    if symbol:
        kinds = ast.FunctionDef | ast.ClassDef
        assert symbol in {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)}


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in menu, page


def test_the_files_for_the_public_host_are_well_formed():
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]:
        assert yaml.safe_load(path.read_text()), path


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    # strict: a warning, a link that leads nowhere among them, is an error
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert (tmp_path / "api" / "ops" / "index.html").is_file()
