"""Pictures of evaluations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

# The scale of losses is made from this position on.
SETTLED = 32
# The curve that others are compared with.
WHOLE = "all that came before"
CHUNK = {"color": "crimson", "linestyle": "--", "linewidth": 1.4, "label": "a chunk"}


def draw_losses(
    path: Path,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    unit: str = "loss, nats a token",
    title: str = "context",
) -> None:
    """Draw loss against position, a curve of (first position of a bucket, loss) by its name.

    The scale is of what comes from position SETTLED on: on one with the first tokens' losses all
    curves would lie on each other. Those may stand outside the picture.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        if not curve:
            continue
        style = {"linewidth": 2.2, "color": "black"} if name == WHOLE else {"linewidth": 1.3}
        # A bucket's loss at the middle of its positions, on a scale of powers of two.
        positions = [first * 1.5 for first, _ in curve]
        axes.plot(positions, [loss for _, loss in curve], marker="o", ms=3, label=name, **style)
    settled = [loss for curve in curves.values() for first, loss in curve if first >= SETTLED]
    if settled:
        margin = max(0.05, 0.15 * (max(settled) - min(settled)))
        axes.set_ylim(min(settled) - margin, max(settled) + margin)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of the text before")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend(title=title)
    figure.savefig(path, dpi=150)


def draw_recall(
    path: Path, accuracy: Mapping[tuple[str, int, int], float], samples: int, chunk_bytes: float
) -> None:
    """Draw a heat map a task, accuracy by (task, length, distance), lengths and distances in bytes.

    Cells whose distance does not fit the length are empty. A line stands before the distances of
    more than `chunk_bytes`, the bytes of a chunk, which attention alone does not reach.
    """
    tasks = list(dict.fromkeys(task for task, _, _ in accuracy))
    lengths = sorted({length for _, length, _ in accuracy})
    distances = sorted({distance for _, _, distance in accuracy})
    size = (2.2 + 0.62 * len(distances) * len(tasks), 1.7 + 0.46 * len(lengths))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        table = [[accuracy.get((task, n, d), math.nan) for d in distances] for n in lengths]
        image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    colour = "black" if value > 0.6 else "white"
                    text = f"{value:.2f}"
                    axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(task)
        within = sum(distance <= chunk_bytes for distance in distances)
        if 0 < within < len(distances):
            axes.axvline(within - 0.5, **CHUNK)
        axes.set_xticks(range(len(distances)), [_short(d) for d in distances], fontsize=8)
        axes.set_xlabel("distance to what is asked for, bytes")
    panels[0].set_yticks(range(len(lengths)), [_short(n) for n in lengths], fontsize=8)
    panels[0].set_ylabel("length of the text, bytes")
    if panels[0].lines:
        panels[0].legend(loc="lower right", fontsize=8)
    figure.colorbar(image, ax=list(panels), label=f"right, share of {samples}", pad=0.01)
    figure.savefig(path, dpi=150)


def _short(number: int) -> str:
    """Powers of two from 1,024 on as 1K, 2K, ..., 1M."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if number % unit == 0:
            return f"{number // unit}{name}"
    return str(number)
