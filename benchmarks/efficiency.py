"""Speed and memory of a training step over length, beside a Llama of the same size.

The paper, on GPUs at 7B: 6% slower than Llama at 4K tokens, 32% faster at 32K. Writes the table
and the picture of docs/results.md.
"""

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure as Picture

from measure import RESULTS, Figure, compared, rounds
from memory import DoesNotFit, peak_of
from subjects import CONFIG, Llama, Step, count, megalodon, training_step

LONGEST = 65536
# Lengths are the longest one halved so many times: from 256 tokens on.
HALVED = 8
DOCS = Path(__file__).parents[1] / "docs" / "results"
MIB = 2**20
# Seconds that the rounds of one length may take together, and that one step of the Llama may.
ROUNDS, STEP = 40.0, 120.0
MODES = {"Megalodon": "plain", "Llama": "llama"}


@dataclass
class Point:
    """A model at a length: the median step of some rounds, and the most memory of one.

    `peak_bytes` is of a fresh process, `step_bytes` by how much it lies above the model with its
    optimizer's state.
    """

    model: str
    length: int
    rounds: int
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    step_bytes: int


def efficiency(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """Steps of both models at every length, while the Llama's fits time and memory."""
    ours = megalodon()
    models = {"Megalodon": ours, "Llama": Llama(CONFIG, count(ours))}
    longest = lengths["longest"]
    points: list[Point] = []
    spent: dict[str, float] = {}
    for n in (longest >> i for i in range(HALVED, -1, -1)):
        # Twice the tokens: attention to all of them takes up to four times as long.
        grows = {"Megalodon": 2, "Llama": 4}
        expected = {name: spent[name] * grows[name] for name in models if name in spent}
        if expected.get("Llama", 0.0) > STEP:
            estimate = expected.pop("Llama")
            print(f"Llama from {n:,} tokens on: left out, a step would take {estimate:.0f} s")
            del models["Llama"]
        memory = {name: peak for name in models if (peak := _peak(name, n))}
        for name in models.keys() - memory.keys():
            print(f"{name} from {n:,} tokens on: left out, a step does not fit into memory")
            del models[name]
            expected.pop(name, None)
        if "Megalodon" not in models:
            break
        steps: dict[str, Step] = {name: training_step(m, n) for name, m in models.items()}
        together = sum(expected.values())
        times = max(1, min(pairs, int(ROUNDS / together))) if together else pairs
        taken = rounds(steps, times)
        for name, seconds in taken.items():
            spent[name] = statistics.median(seconds)
            points.append(Point(name, n, times, spent[name], n / spent[name], *memory[name]))
        if len(taken) == 2:
            yield compared(f"step against Llama, L = {n:,}", taken["Megalodon"], taken["Llama"])
        else:
            yield Figure(f"step alone, L = {n:,}", spent["Megalodon"], "s")
        for name, (_, growth) in memory.items():
            yield Figure(f"memory of a step, {name}, L = {n:,}", growth / MIB, "MiB")
    crossings = {}
    for what, label in (("seconds", "take as long"), ("step_bytes", "take as much memory")):
        crossings[what] = crossing(points, what)
        if crossings[what] is not None:
            yield Figure(f"length at which both {label}", crossings[what], "tokens")
    is_whole = longest == LONGEST
    table = DOCS / "efficiency.csv" if is_whole else RESULTS / "cpu-part.efficiency.csv"
    write(table, points)
    draw(table.with_suffix(".png"), points, crossings["seconds"])
    print(f"written: {table} and {table.with_suffix('.png').name}")


def _peak(name: str, length: int) -> tuple[int, int] | None:
    try:
        return peak_of(length, MODES[name], steps=1)
    except DoesNotFit:
        return None


def crossing(points: Sequence[Point], what: str) -> float | None:
    """The length from which on Megalodon takes less of something than the Llama, for good.

    Between two measured ones it is a straight line's on logarithmic scales. None where the order
    is the same at all lengths, or at the last one the Llama's is less.
    """
    values = {(p.model, p.length): getattr(p, what) for p in points}
    both = sorted(n for name, n in values if name == "Llama")
    ratios = [(n, values["Megalodon", n] / max(1e-9, values["Llama", n])) for n in both]
    more = [i for i, (_, ratio) in enumerate(ratios) if ratio > 1]
    if not more or more[-1] == len(ratios) - 1:
        return None
    (a, above), (b, below) = ratios[more[-1]], ratios[more[-1] + 1]
    share = math.log(above) / math.log(above / max(below, 1e-9))
    return a * (b / a) ** share


def write(path: Path, points: Sequence[Point]) -> None:
    """A line a model and length."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, Point.__dataclass_fields__, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, points))


def draw(path: Path, points: Sequence[Point], crossed: float | None) -> None:
    """Tokens a second and memory of a step over length; a line where the speeds cross."""
    picture = Picture(figsize=(9, 3.8), layout="constrained")
    panels = zip(
        picture.subplots(1, 2),
        ("tokens_per_second", "step_bytes"),
        ("tokens trained on a second", "memory of a step, MiB"),
        (1, MIB),
        strict=True,
    )
    for axes, what, label, unit in panels:
        for colour, name in enumerate(MODES):
            curve = [(p.length, getattr(p, what) / unit) for p in points if p.model == name]
            curve = [(n, value) for n, value in curve if value > 0]
            axes.plot(*zip(*curve, strict=True), "o-", ms=3, color=f"C{colour}", label=name)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="tokens of a row", ylabel=label)
        shown = sorted({p.length for p in points})
        axes.set_xticks(shown, [f"{n // 1024}K" if n >= 1024 else str(n) for n in shown])
        axes.yaxis.set_major_formatter("{x:,.4g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
        if crossed is not None and what == "tokens_per_second":
            style = {"color": "crimson", "linestyle": "--", "linewidth": 1.2}
            axes.axvline(crossed, label=f"as fast at {crossed:,.0f} tokens", **style)
        axes.legend()
    picture.suptitle(f"{torch.get_num_threads()} threads, float32", x=0.01, ha="left", size=9)
    picture.savefig(path, dpi=130)
