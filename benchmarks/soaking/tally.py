"""What a soak counts: faults injected, survived and lost, over one run and over all of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILLS = ("kill one rank", "kill all ranks", "Ctrl-C twice")


@dataclass
class Tally:
    """Counts by the kind of fault, and what was seen that should not be.

    Attributes:
        faults: injected, survived and lost of each kind.
        curves: curves that were compared with an undisturbed run's, and steps in them.
        starts: times that the processes were started.
        left: processes, temporary files and unfinished folders that stayed behind.
        odd: what was lost, or ended another way than it should, in words.
    """

    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    curves: int = 0
    steps: int = 0
    starts: int = 0
    left: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def count(self, kind: str, survived: bool, times: int = 1) -> None:
        """A fault was injected."""
        row = self.faults.setdefault(kind, {"injected": 0, "survived": 0, "lost": 0})
        row["injected"] += times
        row["survived" if survived else "lost"] += times

    @property
    def lost(self) -> int:
        """Faults that a run did not survive."""
        return sum(row["lost"] for row in self.faults.values())

    @property
    def kills(self) -> int:
        """Times that processes were killed in place of being asked."""
        return sum(self.faults[kind]["injected"] for kind in KILLS if kind in self.faults)

    def table(self) -> str:
        """Lines to print."""
        lines = [f"{'fault':34} {'injected':>8} {'survived':>8} {'lost':>8}"]
        for kind, row in sorted(self.faults.items()):
            lines.append(f"{kind:34} " + " ".join(f"{count:8}" for count in row.values()))
        lines.append(
            f"{self.curves} curves of {self.steps:,} steps in all compared, {self.starts} starts,"
            f" {self.kills} kills; left behind: {len(self.left)}"
        )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """To keep."""
        faults = dict(sorted(self.faults.items()))
        counts = {"curves": self.curves, "steps": self.steps, "starts": self.starts}
        return {"faults": faults, "kills": self.kills} | counts | {"left": self.left}


def keep(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Add a run to the file of all runs, and return what the file then holds."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs.append(run)
    total = Tally()
    for one in runs:
        for kind, row in one["faults"].items():
            total.count(kind, True, row["survived"])
            total.count(kind, False, row["lost"])
        total.curves += one["curves"]
        total.steps += one["steps"]
        total.starts += one["starts"]
        total.left += one["left"]
    kept = {"all": total.as_json(), "runs": runs}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return kept
