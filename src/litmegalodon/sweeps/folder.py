"""The folder of a sweep: which run is in which folder, which are finished, which being trained.

A run is known by its settings, in any order: a command that is typed again, or with more values,
finds the runs that are there. Several processes may work on one folder: the lock of a run is held
by the process that trains it and is free as soon as that has ended, however it did.
"""

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from litmegalodon.utils.results import RESULTS, last_values, read_results, write_results

INDEX, LOCK = "runs.json", ".lock"


class SweepFolder:
    """A sweep's runs by their settings, in `runs.json`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.path.mkdir(parents=True, exist_ok=True)

    def runs(self) -> dict[str, list[str]]:
        """The settings of each run, by the name of its folder."""
        index = self.path / INDEX
        return json.loads(index.read_text()) if index.exists() else {}

    def find(self, overrides: Sequence[str]) -> Path | None:
        """The folder of the run with these settings."""
        wanted = sorted(overrides)
        for name, settings in self.runs().items():
            if sorted(settings) == wanted:
                return self.path / name
        return None

    def place(self, overrides: Sequence[str], name: Callable[[int], str]) -> Path:
        """The folder of the run with these settings; a new one is name(number)."""
        with (self.path / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (found := self.find(overrides)) is not None:
                return found
            runs = self.runs()
            number = len(runs)
            # Folders of another's making are left alone.
            while name(number) in runs or (self.path / name(number)).exists():
                number += 1
            runs[name(number)] = list(overrides)
            partial = self.path / (INDEX + ".partial")
            partial.write_text(json.dumps(runs, indent=1) + "\n")
            partial.replace(self.path / INDEX)
            folder = self.path / name(number)
            folder.mkdir(parents=True)
            return folder


@contextmanager
def held(folder: Path) -> Iterator[IO[str] | None]:
    """The lock of a run's folder, to be inherited by who trains it; None where another holds it."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield lock


def is_busy(folder: Path) -> bool:
    """Whether a process is training in a run's folder."""
    with held(folder) as lock:
        return lock is None


def results(folder: Path, max_steps: int) -> dict[str, float] | None:
    """What a finished run measured; None of a run that is not finished.

    A run that was killed between its last checkpoint and its end is finished too.
    """
    if (folder / RESULTS).exists():
        return read_results(folder)
    steps = (int(path.stem.partition("=")[2]) for path in folder.glob("checkpoints/last-step=*"))
    measured = last_values(folder / "metrics.csv")
    if max(steps, default=-1) < max_steps or not any(name.startswith("val/") for name in measured):
        return None
    write_results(folder, measured)
    return measured


def as_number(value: float | str | None) -> float:
    """A metric as a float, NaN where there is none."""
    return math.nan if value is None else float(value)
