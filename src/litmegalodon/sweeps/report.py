"""What the runs of a sweep came to: `sweep.csv` and `sweep.png` in its folder, after every run."""

import csv
import math
from pathlib import Path
from typing import Any

from litmegalodon.sweeps.folder import SweepFolder
from litmegalodon.utils.printing import say, short_path
from litmegalodon.utils.results import RESULTS, read_results

TABLE, PICTURE = "sweep.csv", "sweep.png"


def report(folder: Path, metric: str | None) -> None:
    """Write the table of all runs, and draw `metric` against what was varied."""
    rows = table(folder)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    partial = folder / (TABLE + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(folder / TABLE)
    varied = varied_settings(rows, [setting for setting in columns if setting in settings(folder)])
    measured = [row for row in rows if math.isfinite(_number(row.get(metric or "")))]
    if metric and varied and measured:
        # Takes a second to import.
        from litmegalodon.sweeps.picture import draw

        draw(folder / PICTURE, measured, varied, metric)


def say_where(folder: Path) -> None:
    """Print the files of a report."""
    for name in (TABLE, PICTURE):
        if (folder / name).exists():
            say(f"sweep: {short_path(folder / name)}")


def table(folder: Path) -> list[dict[str, Any]]:
    """A row a run: folder, whether it is finished, its settings, its last metrics."""
    rows = []
    for name, overrides in SweepFolder(folder).runs().items():
        finished = (folder / name / RESULTS).exists()
        row = {"run": name, "finished": int(finished)} | parsed(overrides)
        rows.append(row | (read_results(folder / name) if finished else {}))
    return rows


def settings(folder: Path) -> list[str]:
    """The names of all settings of the runs, in the order of the command line."""
    runs = SweepFolder(folder).runs().values()
    return list(dict.fromkeys(name for overrides in runs for name in parsed(overrides)))


def parsed(overrides: list[str]) -> dict[str, str]:
    """The settings of a run by name."""
    return {name.lstrip("+"): value for name, _, value in (o.partition("=") for o in overrides)}


def varied_settings(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    """The settings that are not the same in all runs."""
    return [name for name in names if len({row.get(name) for row in rows}) > 1]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
