"""What several runs found again, by distance: tables of `evaluation.Recall` joined over seeds."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from litmegalodon.sweeps.compared import Group
from litmegalodon.utils.printing import short_path

TABLE = "recall.csv"


@dataclass(frozen=True)
class Found:
    """A group's accuracy at one length and distance: mean and standard deviation over its runs."""

    group: str
    runs: int
    task: str
    length: int
    distance: int
    accuracy: float
    spread: float
    token_accuracy: float
    chance: float


def recalled(groups: Sequence[Group]) -> list[Found]:
    """Every group's rows, in the order of the tables.

    Raises:
        ValueError: a run without its table, or with other questions than the rest of its group.
    """
    found = []
    for group in groups:
        tables = [_table(run.folder) for run in group.runs]
        if any(table.keys() != tables[0].keys() for table in tables):
            raise ValueError(f"RUN={group.name}: its runs were asked at different distances")
        for (task, length, distance), row in tables[0].items():
            rows = [table[task, length, distance] for table in tables]
            right = [float(row["accuracy"]) for row in rows]
            found.append(
                Found(
                    group.name,
                    len(rows),
                    task,
                    int(length),
                    int(distance),
                    mean(right),
                    stdev(right) if len(right) > 1 else 0.0,
                    mean(float(row["token_accuracy"]) for row in rows),
                    float(row["chance"]),
                )
            )
    return found


def write_csv(path: Path, rows: Sequence[Found]) -> None:
    """All rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Found)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def draw(path: Path, rows: Sequence[Found], chunk: int) -> None:
    """Accuracy against distance, a panel a task, a curve a group and length; guessing dotted.

    The dashed line stands where a distance is a chunk.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    figure = Figure(figsize=(1 + 4.6 * len(tasks), 4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        curves: dict[tuple[str, int], list[Found]] = {}
        for row in rows:
            if row.task == task:
                curves.setdefault((row.group, row.length), []).append(row)
        lengths = {length for _, length in curves}
        for (group, length), points in curves.items():
            label = group if len(lengths) == 1 else f"{group}, {length} bytes"
            at, right = [p.distance for p in points], [p.accuracy for p in points]
            line = axes.errorbar(
                at, right, [p.spread for p in points], marker="o", ms=4, label=label
            )
            axes.plot(at, [p.token_accuracy for p in points], ":", color=line[0].get_color())
        points = next(iter(curves.values()))
        axes.plot(
            [p.distance for p in points], [p.chance for p in points], color="0.6", label="guess"
        )
        axes.axvline(chunk, color="crimson", linestyle="--", linewidth=1.2, label="a chunk")
        axes.set_xscale("log", base=2)
        axes.set_title(task)
        axes.set_xlabel("distance to what is asked for, bytes")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("right answers (dotted: right bytes)")
    panels[0].legend(frameon=False)
    figure.savefig(path)


def _table(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    path = folder / TABLE
    if not path.is_file():
        raise ValueError(
            f"RUN={short_path(folder)}: has no {TABLE}; experiment=recall writes one at its end"
        )
    with path.open(newline="") as file:
        return {(r["task"], r["length"], r["distance"]): r for r in csv.DictReader(file)}
