"""Pictures of evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw_losses(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Draw loss against position, both ends of a bucket joined, one curve a context length."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        if not curve:
            continue
        style = {"linewidth": 2.2, "color": "black"} if name == "whole" else {"linewidth": 1.3}
        label = "all that came before" if name == "whole" else f"the last {name}"
        # A bucket's loss at the middle of its positions, on a scale of powers of two.
        positions = [first * 1.5 for first, _ in curve]
        axes.plot(positions, [loss for _, loss in curve], marker="o", ms=3, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of the document before")
    axes.set_ylabel("loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend(title="context")
    figure.savefig(path, dpi=150)
