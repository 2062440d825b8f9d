"""What a run measured in the end, beside its metrics: the mark of a run that is finished."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

RESULTS = "results.json"


def write_results(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write the last value of every metric into a run's folder, whole or not at all."""
    partial = folder / (RESULTS + ".partial")
    partial.write_text(json.dumps(dict(metrics), indent=1) + "\n")
    partial.replace(folder / RESULTS)


def read_results(folder: Path) -> dict[str, float]:
    """The last value of every metric of a finished run."""
    return json.loads((folder / RESULTS).read_text())


def last_values(metrics: Path) -> dict[str, float]:
    """The last value of every column of a metrics file; {} without one."""
    if not metrics.exists():
        return {}
    values: dict[str, float] = {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            values |= {name: float(cell) for name, cell in row.items() if name and cell}
    return values
