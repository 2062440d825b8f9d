"""A sweep as a picture: the metric against each setting that was varied."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
# Seeds repeat a run: points of one mean.
REPEATED = "seed"


def draw(path: Path, rows: Rows, varied: list[str], metric: str) -> None:
    """A panel for each varied number, a colour for each choice among names.

    Where nothing else was varied, a line joins the means over seeds.
    """
    asked = [name for name in varied if name != REPEATED] or varied
    numbers = [name for name in asked if all(_is_number(row.get(name)) for row in rows)]
    names = [name for name in asked if name not in numbers]
    # The axes: numbers; else the names that were chosen among.
    shown = numbers or names
    colours = names if numbers else []
    figure = Figure(figsize=(1.2 + 4.4 * len(shown), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(", ".join(str(row.get(name, "-")) for name in colours), []).append(row)
    for axes, setting in zip(panels, shown, strict=True):
        for number, (name, members) in enumerate(groups.items()):
            _draw_group(axes, members, setting, metric, name, f"C{number % 10}", len(shown) == 1)
        _scale(axes, rows, setting)
        axes.set_xlabel(setting)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(metric)
    _limit(panels[0], [row[metric] for row in rows])
    if colours:
        panels[-1].legend(frameon=False, title=", ".join(colours))
    best = min(rows, key=lambda row: row[metric])
    chosen = ", ".join(f"{name}={best.get(name, '-')}" for name in varied)
    lowest = f"lowest {metric} of {len(rows)} runs: {best[metric]:.4f}"
    figure.suptitle(f"{lowest}\n{chosen}", x=0.02, ha="left", size=9)
    figure.savefig(path)


def _draw_group(
    axes: Axes, rows: Rows, setting: str, metric: str, name: str, colour: str, joined: bool
) -> None:
    points: dict[Any, list[float]] = {}
    for row in rows:
        value = float(row[setting]) if _is_number(row.get(setting)) else str(row.get(setting, "-"))
        points.setdefault(value, []).append(row[metric])
    for value, measured in points.items():
        axes.plot([value] * len(measured), measured, "o", ms=4, color=colour, alpha=0.55)
    ordered = sorted(points, key=lambda value: (isinstance(value, str), value))
    means = [float(np.mean(points[value])) for value in ordered]
    # A line between values that have no order would say what is not so.
    if joined and all(isinstance(value, float) for value in ordered):
        axes.plot(ordered, means, "-", color=colour, linewidth=1.4, label=name)
    else:
        axes.plot([], [], "o", color=colour, label=name)


def _scale(axes: Axes, rows: Rows, setting: str) -> None:
    """Logarithmic where the values span a factor of eight; ticks at the values if they are few."""
    values = {float(row[setting]) for row in rows if _is_number(row.get(setting))}
    if not values or not all(_is_number(row.get(setting)) for row in rows):
        return
    if min(values) > 0 and max(values) >= 8 * min(values):
        axes.set_xscale("log")
    if len(values) <= 8:
        axes.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
        axes.minorticks_off()


def _limit(axes: Axes, values: list[float]) -> None:
    """Cut off what is far above the rest: a run that diverged would flatten all others."""
    low, middle = min(values), float(np.median(values))
    high = min(max(values), middle + 3 * (middle - low) + 1e-9)
    margin = 0.06 * (high - low) + 1e-3
    axes.set_ylim(low - margin, high + margin)
    cut = sum(value > high for value in values)
    if cut:
        axes.text(0.01, 0.99, f"{cut} above", transform=axes.transAxes, va="top", fontsize=8)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
