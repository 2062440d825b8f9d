"""What several runs found again, by distance: tables of `evaluation.Recall` joined over seeds."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from litmegalodon.sweeps.compared import Group
from litmegalodon.utils.printing import short_path

TABLE = "recall.csv"
# Of lengths.
MARKERS = "o^sD"


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
    """Accuracy against distance, a panel a task, a curve a group and length; guessing in grey.

    The dashed line stands where a distance is a chunk.
    """
    tasks, groups = (list(dict.fromkeys(getattr(r, n) for r in rows)) for n in ("task", "group"))
    lengths = sorted({row.length for row in rows})
    figure = Figure(figsize=(2.6 + 3.9 * len(tasks), 4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True, sharex=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for (i, group), (j, length) in product(enumerate(groups), enumerate(lengths)):
            points = [r for r in rows if (r.task, r.group, r.length) == (task, group, length)]
            at, spread = [p.distance for p in points], [p.spread for p in points]
            style = {"color": f"C{i}", "marker": MARKERS[j % len(MARKERS)], "ms": 5, "lw": 1.1}
            # Where curves lie on each other all are seen.
            style |= {"alpha": 0.8, "mfc": f"C{i}" if i == 0 else "white"}
            label = f"{group}, {length} bytes"
            axes.errorbar(at, [p.accuracy for p in points], spread, label=label, **style)
            axes.plot(at, [p.token_accuracy for p in points], ":", color=f"C{i}", lw=0.9)
            if i == 0:
                axes.plot(at, [p.chance for p in points], color="0.6", lw=0.9)
        axes.axvline(chunk, color="crimson", linestyle="--", linewidth=1.2, label="a chunk")
        axes.set_title(task)
        axes.set_xlabel("distance, bytes")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25)
    distances = sorted({row.distance for row in rows})
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks(distances, [str(d) for d in distances])
    panels[0].set_ylabel("right answers (dotted: right bytes, grey: guessing)", fontsize=9)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path)


def _table(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    path = folder / TABLE
    if not path.is_file():
        raise ValueError(
            f"RUN={short_path(folder)}: has no {TABLE}; experiment=recall writes one at its end"
        )
    with path.open(newline="") as file:
        return {(r["task"], r["length"], r["distance"]): r for r in csv.DictReader(file)}
