"""Timing in pairs, in one process: on a shared machine only ratios taken side by side mean much."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass
class Figure:
    """A measured figure beside what is asked of it; `must` and `aim` are bounds, None for none.

    `spread` is the lowest and highest of the pairs' ratios, `seconds` the medians behind the ratio.
    """

    name: str
    value: float
    unit: str = "x"
    must: float | None = None
    aim: float | None = None
    higher_is_better: bool = False
    spread: tuple[float, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def verdict(self) -> str:
        """aim, must or missed; nothing where nothing is asked."""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None:
                reached = self.value >= bound if self.higher_is_better else self.value <= bound
                if reached:
                    return name
        return "" if self.must is None else "missed"


def seconds_of(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def paired(
    name: str,
    subject: Callable[[], object],
    other: Callable[[], object],
    pairs: int,
    per: tuple[float, float] = (1.0, 1.0),
    **asked,
) -> Figure:
    """The median of subject / other over alternating pairs, after one call of each unmeasured.

    Args:
        per: divides the seconds of both, as tokens where lengths differ.
        asked: further fields of Figure.
    """
    times = rounds({"subject": subject, "other": other}, pairs)
    return compared(name, times["subject"], times["other"], per, **asked)


def rounds(
    runs: Mapping[Hashable, Callable[[], object]], times: int
) -> dict[Hashable, list[float]]:
    """Seconds of several calls taken in turn, after one of each unmeasured."""
    for run in runs.values():
        run()
    taken: dict[Hashable, list[float]] = {name: [] for name in runs}
    for _ in range(times):
        for name, run in runs.items():
            taken[name].append(seconds_of(run))
    return taken


def compared(
    name: str,
    subject: Sequence[float],
    other: Sequence[float],
    per: tuple[float, float] = (1.0, 1.0),
    **asked,
) -> Figure:
    """The median of subject / other, or of its inverse where higher is better, over rounds."""
    ratios = [(a / per[0]) / (b / per[1]) for a, b in zip(subject, other, strict=True)]
    if asked.get("higher_is_better"):
        ratios = [1 / ratio for ratio in ratios]
    seconds = {"subject": statistics.median(subject), "other": statistics.median(other)}
    spread = (min(ratios), max(ratios))
    return Figure(name, statistics.median(ratios), spread=spread, seconds=seconds, **asked)


def row(figure: Figure) -> str:
    """A line of the table."""
    spread = "" if figure.spread is None else "{:.3g} to {:.3g}".format(*figure.spread)
    must, aim = (f"{bound:g}" if bound is not None else "" for bound in (figure.must, figure.aim))
    seconds = "  ".join(f"{value:.4g} s" for value in figure.seconds.values())
    value = f"{figure.value:.3g} {figure.unit}"
    return (
        f"{figure.name:62} {value:>10}  {spread:16} {must:>6} {aim:>6} {figure.verdict():7}"
        f" {seconds}"
    ).rstrip()


def heading() -> str:
    """The table's first line."""
    return (
        f"{'figure':62} {'value':>10}  {'spread':16} {'must':>6} {'aim':>6} {'reached':7} seconds"
    )


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            x.partition(":")[2].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        cpu = names[0] if names else cpu
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def save(name: str, settings: dict[str, object], figures: list[Figure]) -> Path:
    """Write results/<name>.json."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    rows = [asdict(figure) | {"reached": figure.verdict()} for figure in figures]
    text = json.dumps({"machine": machine(), "settings": settings, "figures": rows}, indent=1)
    path.write_text(text + "\n")
    return path
