"""A comparison of runs as a table, a CSV file and a picture."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from litmegalodon.sweeps.compared import Group, differences

# More groups than this are rows, up to this many are columns.
COLUMNS = 5
# The first part of a run falls from log(vocabulary) within a few pixels: the scale is for the rest.
SETTLED = 0.2
# Rows that a point of the training loss is averaged over, as a part of all.
SMOOTHING = 0.04


def table(groups: Sequence[Group], exact: bool = False) -> list[list[str]]:
    """Rows of cells, the first one and the first cells being names.

    Settings that differ come first, then the figures at the end: mean and standard deviation where
    a group holds several runs.
    """
    runs = [run for group in groups for run in group.runs]
    many = any(len(group.runs) > 1 for group in groups)
    rows = [["", *(group.name for group in groups)]]
    if many:
        rows.append(["runs", *(str(len(group.runs)) for group in groups)])
    for name in differences(runs):
        values = [{_plain(run.settings.get(name, "-")) for run in group.runs} for group in groups]
        rows.append([name, *(" ".join(sorted(found, key=_order)) for found in values)])
    figures = [group.figures() for group in groups]
    for name in dict.fromkeys(name for found in figures for name in found):
        cells = [found.get(name, (math.nan, 0.0)) for found in figures]
        if exact:
            rows.append([name, *(repr(value) for value, _ in cells)])
            if many:
                rows.append([f"{name}, std", *(repr(spread) for _, spread in cells)])
        else:
            sizes = [len(group.runs) for group in groups]
            shown = [_shown(*cell, size) for cell, size in zip(cells, sizes, strict=True)]
            rows.append([name, *shown])
    return rows


def aligned(rows: list[list[str]]) -> str:
    """The table as text: settings and figures as rows, or runs as rows where there are many."""
    if len(rows[0]) > COLUMNS + 1:
        rows = [list(column) for column in zip(*rows, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def write_csv(path: Path, rows: list[list[str]]) -> None:
    """The table with a row a group."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(zip(*rows, strict=True))


def draw(path: Path, groups: Sequence[Group], metric: str) -> None:
    """`metric` and the training loss, over tokens and over seconds of training.

    A band is the standard deviation over the runs of a group.
    """
    figure = Figure(figsize=(11, 7.4), dpi=130, layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    many = colormaps["turbo"].resampled(max(2, len(groups)))
    colours = [f"C{i}" if len(groups) <= 10 else many(i) for i in range(len(groups))]
    for row, (name, points) in enumerate({metric: "o", "train/loss": ""}.items()):
        for column in (0, 1):
            axes = panels[row][column]
            levels = [
                level
                for number, group in enumerate(groups)
                for level in _draw_curve(axes, group, name, column, colours[number], points)
            ]
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlim(left=0)
            if levels and column == 0:
                margin = 0.05 * (max(levels) - min(levels)) + 1e-3
                axes.set_ylim(min(levels) - margin, max(levels) + margin)
        panels[row][0].set_ylabel(name if points else f"{name}, running mean")
    for axes, label in zip(panels[1], ("tokens", "seconds of training"), strict=True):
        axes.set_xlabel(label)
    panels[1][0].xaxis.set_major_formatter(lambda tokens, _: _count(tokens))
    lines, names = panels[0][0].get_legend_handles_labels()
    columns = max(1, min(4, 110 // max(len(name) + 6 for name in names)))
    figure.legend(lines, names, loc="outside upper left", ncols=columns, frameon=False)
    figure.savefig(path)


def _draw_curve(
    axes: Axes, group: Group, metric: str, column: int, colour: object, points: str
) -> list[float]:
    """Draw a group's curve over tokens (column 0) or seconds; the levels that should be seen."""
    curve = group.curve(metric)
    name = group.name if len(group.runs) == 1 else f"{group.name} ({len(group.runs)} runs)"
    x, mean, spread = ([point[i] for point in curve] for i in (column, 2, 3))
    if not points:
        mean, spread = _running_mean(mean), _running_mean(spread)
    style: dict[str, Any] = {"marker": points, "ms": 3.5} if points else {}
    axes.plot(x, mean, color=colour, linewidth=1.3, label=name, **style)
    if any(spread):
        low = [m - s for m, s in zip(mean, spread, strict=True)]
        high = [m + s for m, s in zip(mean, spread, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    # Of few points all are to be seen.
    settled = [m for at, m in zip(x, mean, strict=True) if at >= SETTLED * x[-1]]
    return settled if len(mean) > 3 else mean


def _running_mean(values: list[float]) -> list[float]:
    reach = round(SMOOTHING * len(values) / 2)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(i - reach, 0), min(i + reach + 1, len(values))) for i in range(len(values))]
    return [(sums[end] - sums[first]) / (end - first) for first, end in ends]


def _shown(value: float, spread: float, runs: int) -> str:
    if math.isnan(value):
        return "-"
    form = ",.0f" if value.is_integer() or abs(value) >= 1000 else ".4f"
    return f"{value:{form}} ±{spread:{form}}" if runs > 1 and spread else f"{value:{form}}"


def _plain(value: object) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def _count(tokens: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}"
