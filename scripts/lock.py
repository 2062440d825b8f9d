"""Pin what a run needs, with hashes, into requirements.lock: python scripts/lock.py

The versions are those of this environment, in which the tests ran; uv finds the hashes of all
platforms. torch is left out, with NVIDIA's libraries, which it brings: its builds for CPUs and for
CUDA have one version and different files.
"""

import importlib.metadata as installed
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
# The oldest that all pins suit: what builds the documentation needs this patch of 3.11.
PYTHON = "3.11.5"
LEFT_OUT = re.compile(r"(torch|nvidia-[\w-]+|cuda-[\w-]+)==")
HEADER = """\
# Made by `make lock`, not by hand: versions and hashes of what a run and its tests need.
# torch is not here: its builds for CPUs and for CUDA have one version and different files.
# To install exactly this, on Python 3.11.5 or newer: make setup LOCK=1
"""


def constraints() -> str:
    """The versions of this environment, but for the project's own and torch's."""
    found = {d.metadata["Name"]: d.version for d in installed.distributions()}
    ours = {"litmegalodon", "torch"}
    # A local version, as 1.0+cpu, is on no index.
    return "".join(
        f"{name}=={version}\n"
        for name, version in sorted(found.items())
        if name not in ours and "+" not in version
    )


def without_torch(text: str) -> str:
    """A lock file's text without the blocks of torch and of what it brings for GPUs."""
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return "".join(block for block in blocks if not LEFT_OUT.match(block))


def main() -> int:
    """Write the file; where that fails the old one stays."""
    uv = shutil.which("uv") or shutil.which(str(Path(sys.executable).parent / "uv"))
    if uv is None:
        print("error: uv is not installed; install it where you like: pipx install uv")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        versions, made = Path(folder) / "versions.txt", Path(folder) / "lock.txt"
        versions.write_text(constraints())
        options = (
            f"--extra test --universal --python-version {PYTHON} --generate-hashes"
            f" --no-header --no-annotate --no-emit-index-url --constraint {versions}"
            f" --output-file {made} --quiet"
        )
        done = subprocess.run(
            [uv, "pip", "compile", "pyproject.toml", *options.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            print(f"error: uv could not resolve, {LOCK.name} stays as it is: {said}")
            return 1
        LOCK.write_text(HEADER + without_torch(made.read_text()))
    print(f"{LOCK.name}: {len(re.findall('^[^ #].*==', LOCK.read_text(), re.M))} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
