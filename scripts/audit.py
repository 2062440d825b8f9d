"""Are the installed packages sound, those of the lock file, and free of known holes?

    python scripts/audit.py

Asks pip whether they suit each other, compares them with requirements.lock, and asks pip-audit,
which needs the network, for published vulnerabilities; torch, which stands outside the lock file,
is not among them. Exit code 1 where something is wrong or could not be asked.
"""

import importlib.metadata as installed
import json
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
    """What pip-audit finds in a lock file: 0 and words if nothing, 1 if something, 2 if it could
    not ask about every package.
    """
    tool = shutil.which("pip-audit") or shutil.which(str(Path(sys.executable).parent / "pip-audit"))
    if tool is None:
        return 2, "pip-audit is not installed; install it where you like: pipx install pip-audit"
    command = [tool, "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    # It exits with 0 where it had to skip packages, even all of them; only JSON tells them apart.
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return 2, f"pip-audit could not ask, is there a network? ({said[:200]})"
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, "
        + (f"mended in {', '.join(hole['fix_versions'])}" if hole["fix_versions"] else "not mended")
        for package in packages
        for hole in package.get("vulns", [])
    ]
    skipped = [package for package in packages if "skip_reason" in package]
    asked = f"asked about {len(packages) - len(skipped)} of {len(packages)} packages"
    said = [*holes, f"pip-audit {asked}; known vulnerabilities in them: {len(holes)}"]
    if skipped:
        names = ", ".join(package["name"] for package in skipped[:5])
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        said.append(f"pip-audit left out {names}{more}: {skipped[0]['skip_reason'][:200]}")
    return 1 if holes else 2 if skipped else 0, "\n".join(said)


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
