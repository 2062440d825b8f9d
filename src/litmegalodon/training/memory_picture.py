"""What memory lengths a network has learnt, as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from torch import Tensor

from litmegalodon.training.insight import Memory

BINS = 48


def draw(path: Path, layers: Sequence[Memory], at_start: Sequence[Tensor], step: int) -> None:
    """A row a layer: how many channels forget half within how many tokens, and how they oscillate.

    Grey are the half-lives before the first step.
    """
    oscillating = all(layer.frequency is not None for layer in layers)
    columns = 1 + oscillating
    figure = Figure(figsize=(5.2 * columns, 1.6 + 0.8 * len(layers)), dpi=130, layout="constrained")
    panels = figure.subplots(len(layers), columns, squeeze=False, sharex="col")
    lives = [np.log10(np.clip(layer.half_life.numpy(), 1e-2, 1e9)) for layer in layers]
    begun = [np.log10(np.clip(values.numpy(), 1e-2, 1e9)) for values in at_start]
    both = np.concatenate([*lives, *begun])
    edges = np.linspace(both.min() - 0.05, both.max() + 0.05, BINS)
    for number, layer in enumerate(layers):
        axes = panels[number][0]
        if number < len(begun):
            axes.hist(10 ** begun[number], 10**edges, color="0.82", label="before the first step")
        style = {"histtype": "stepfilled", "alpha": 0.55, "color": "tab:blue"}
        axes.hist(10 ** lives[number], 10**edges, label=f"after step {step:,}", **style)
        middle = float(10 ** np.median(lives[number]))
        axes.axvline(middle, color="tab:blue", linewidth=1)
        axes.set_xscale("log")
        text = f"median {middle:.3g}, longest {10 ** lives[number].max():.3g}"
        axes.text(0.99, 0.9, text, transform=axes.transAxes, ha="right", va="top", fontsize=7)
        axes.set_ylabel(f"layer {number}", rotation=0, ha="right", va="center")
        if oscillating:
            turns = np.clip(layer.frequency.numpy(), 1e-9, 1)
            bins = np.geomspace(max(turns.min(), 1e-6) / 1.1, 1.05 * turns.max(), BINS)
            panels[number][1].hist(turns, bins, color="tab:orange", alpha=0.6)
            panels[number][1].set_xscale("log")
    for axes in panels.flat:
        axes.set_yticks([])
        # Plain numbers: powers would be set in fonts that not every installation finds.
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.5)))
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0][0].set_title("tokens until half is forgotten", fontsize=10)
    shown = panels[0][0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower left", ncols=2, frameon=False, fontsize=8)
    if oscillating:
        panels[0][1].set_title("turns a token", fontsize=10)
    figure.savefig(path)
