"""The lock file pins everything but torch, with hashes; make audit says what differs."""

import json
import re
import shutil
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runs import ROOT
from test_cli_make import fake_python, make

sys.path.insert(0, str(ROOT / "scripts"))

import audit
import lock

TEXT = (ROOT / "requirements.lock").read_text()
BLOCKS = re.findall(r"^([\w.-]+)==(\S+).*\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)*)", TEXT, re.M)


def test_every_pin_has_hashes_and_nothing_else_is_in_the_file():
    assert len(BLOCKS) > 100
    assert all(hashes for _, _, hashes in BLOCKS)
    rest = [line for line in TEXT.splitlines() if not re.match(r"#|[\w.-]+==|    --hash=", line)]
    assert rest == []
    # No address of an index: whoever installs has their own.
    assert "://" not in TEXT


def test_torch_is_named_by_version_alone_and_elsewhere():
    names = {name for name, _, _ in BLOCKS}
    assert not [name for name in names if re.match("torch$|nvidia-|cuda-", name)]
    assert '"torch==2.13.0",' in (ROOT / "pyproject.toml").read_text()


def test_the_pins_suit_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {canonicalize_name(name): version for name, version, _ in BLOCKS}

    def asked(texts):
        for needed in map(Requirement, texts):
            if needed.name == project["name"]:
                for extra in needed.extras:
                    yield from asked(project["optional-dependencies"][extra])
            elif needed.name != "torch":
                yield needed

    needs = list(asked(project["dependencies"] + project["optional-dependencies"]["test"]))
    assert len(needs) > 25
    for needed in needs:
        version = pins.get(canonicalize_name(needed.name))
        assert version is not None, f"{needed} is not locked: make lock"
        assert needed.specifier.contains(version, prereleases=True), needed


def test_blocks_of_torch_are_left_out():
    kept, torch, nccl = (
        f"{name} \\\n    --hash=x\n" for name in ("a==1", "torch==2", "nvidia-nccl-cu13==3 ; b")
    )
    assert lock.without_torch(kept + torch + nccl + kept) == kept + kept


def test_versions_that_differ_are_named():
    text = "numpy==0.1 \\\n    --hash=x\nno-such-package==2 ; sys_platform == 'linux' \\\n"
    other = audit.differing(text + "gone==1 ; sys_platform == 'win32' \\\n")
    assert [line.partition(", not")[0].split(" is ")[0] for line in other] == [
        "numpy",
        "no-such-package",
    ]
    assert other[1] == "no-such-package is missing, not ==2"


SOUND = {"name": "rich", "version": "15.0.0", "vulns": []}
HOLE = {"id": "PYSEC-1", "fix_versions": ["2"], "aliases": [], "description": "long"}
HURT = {"name": "aiohttp", "version": "1", "vulns": [HOLE]}
UNKNOWN = {"name": "yarl", "skip_reason": "Dependency not found on PyPI: yarl (1)"}


def saying(*packages):
    """What prints a report of pip-audit's."""
    return f"echo '{json.dumps({'dependencies': packages, 'fixes': []})}'"


@pytest.mark.parametrize(
    ("tool", "code", "says"),
    [
        (saying(SOUND), 0, ["pip-audit asked about 1 of 1 packages; known vulnerabilities in"]),
        (saying(SOUND, HURT) + "; exit 1", 1, ["aiohttp 1: PYSEC-1, mended in 2", "them: 1"]),
        # It calls that well, with exit code 0.
        (
            saying(*7 * [UNKNOWN]),
            2,
            ["about 0 of 7", "left out yarl, .* and 2 more: Dependency not"],
        ),
        ("echo Traceback >&2; echo 'ConnectionError: no route' >&2; exit 1", 2, [".*no route"]),
        ("echo killed; exit 1", 2, ["pip-audit could not ask"]),
    ],
    ids=("sound", "a hole", "not asked", "no network", "no report"),
)
def test_vulnerabilities_and_what_was_not_asked_about_are_told_in_a_line_each(
    tool, code, says, tmp_path, monkeypatch
):
    fake_python(tmp_path / "pip-audit", tool)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found, said = audit.vulnerabilities(ROOT / "requirements.lock")
    assert (found, len(said.splitlines())) == (code, len(says))
    for line, wanted in zip(said.splitlines(), says, strict=True):
        assert re.search(wanted, line)


def test_setup_installs_from_it_with_hashes(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    done = make("-n", "setup", "LOCK=1", f"PYTHON={sys.executable}", folder=tmp_path)
    pip = [line.partition("-check ")[2] for line in done.stdout.splitlines() if " pip " in line]
    assert pip[0] == "--require-hashes --no-deps --requirement requirements.lock"
    assert "torch==" in pip[1]
    assert pip[2] == "--no-deps --no-build-isolation --editable ."
