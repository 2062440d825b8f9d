"""Runs the project's own commands, as a user would, on small settings."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Two processes on two cores: one thread each, or they wait for one another.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(script: str, *arguments: str) -> list[str]:
    """A command line of src/<script>.py, or of <script>.py where it names its folder."""
    path = script if "/" in script else f"src/{script}"
    return [sys.executable, str(ROOT / f"{path}.py"), *arguments]


def run(
    script: str, *arguments: str, cwd: Path, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run it to its end and return what it printed; fail if it fails."""
    done = subprocess.run(
        command(script, *arguments),
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def kill_after(script: str, *arguments: str, cwd: Path, until, timeout: float = 240) -> None:
    """Start it and SIGKILL it, with every process it started, as soon as until() is true."""
    with open(cwd / "killed.log", "ab") as log:
        process = subprocess.Popen(
            command(script, *arguments),
            cwd=cwd,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout
    while not until():
        assert process.poll() is None, (cwd / "killed.log").read_text()
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> dict[int, str]:
    """train/loss as written, by step."""
    return {int(row["step"]): row["train/loss"] for row in metrics(folder) if row["train/loss"]}


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((folder / "checkpoints").glob("last-*.ckpt"))
