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


def read_rows(metrics: Path) -> list[dict[str, float]]:
    """The rows of a metrics file without what was not measured; [] without one.

    `litmegalodon.training.csv_logger` writes it; reading here needs no torch.
    """
    if not metrics.exists():
        return []
    # A kill in the middle of a write leaves a last line without its end.
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    return [{n: float(cell) for n, cell in row.items() if cell} for row in csv.DictReader(lines)]


def last_values(metrics: Path) -> dict[str, float]:
    """The last value of every column of a metrics file; {} without one."""
    values: dict[str, float] = {}
    for row in read_rows(metrics):
        values |= row
    return values
