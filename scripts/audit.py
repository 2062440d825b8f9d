"""Are the installed packages sound, those of the lock file, and free of known holes?

    python scripts/audit.py

Asks pip whether they suit each other, compares them with requirements.lock, and asks pip-audit,
which needs the network, for published vulnerabilities. Exit code 1 where something is wrong.
"""

import importlib.metadata as installed
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"


def differing(lock: str) -> list[str]:
    """The packages of a lock file's text that are missing here or have another version."""
    found = []
    for line in re.findall(r"^[\w.-]+==[^\\\n]+", lock, re.MULTILINE):
        needed = Requirement(line.strip())
        if needed.marker and not needed.marker.evaluate():
            continue
        try:
            version = installed.version(needed.name)
        except installed.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not needed.specifier.contains(version, prereleases=True):
            found.append(f"{needed.name} is {version}, not {needed.specifier}")
    return found


def vulnerabilities(lock: Path) -> tuple[int, str]:
    """pip-audit's exit code and words on a lock file: 0 none, 1 some, 2 it could not be asked."""
    tool = shutil.which("pip-audit") or shutil.which(str(Path(sys.executable).parent / "pip-audit"))
    if tool is None:
        return 2, "pip-audit is not installed; install it where you like: pipx install pip-audit"
    done = subprocess.run(
        [tool, "--requirement", str(lock), "--require-hashes", "--disable-pip"],
        capture_output=True,
        text=True,
    )
    if done.returncode and not done.stdout.strip():
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return 2, f"pip-audit could not ask, is there a network? ({said[:200]})"
    return done.returncode, done.stdout.strip() or "pip-audit: no known vulnerabilities"


def main() -> int:
    """Print what each of the three finds."""
    pip = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    print(f"pip check: {pip.stdout.strip()}")
    other = differing(LOCK.read_text())
    print("\n".join(other) if other else f"{LOCK.name}: these versions are installed")
    code, said = vulnerabilities(LOCK)
    print(said)
    return 1 if pip.returncode or other or code else 0


if __name__ == "__main__":
    sys.exit(main())
