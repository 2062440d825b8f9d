"""Runs as their folders tell of them: settings, curves, figures at the end. Imports no torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import yaml

from litmegalodon.utils.printing import short_path
from litmegalodon.utils.results import read_rows

METRICS = "metrics.csv"
# Where a run's files went, and what is said of it.
NOT_COMPARED = ("paths.", "tags", "ckpt_path", "extras.")
# The share of a run's steps over which its training loss is averaged.
LAST = 0.02


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: where its files are.
        rows: of metrics.csv, with `seconds` of training, validation not counted.
        settings: flat, by dotted name, as composed.
        overrides: what was given on the command line, by name.
    """

    folder: Path
    rows: list[dict[str, float]]
    settings: dict[str, Any]
    overrides: dict[str, str]

    def curve(self, metric: str) -> dict[int, tuple[float, float, float]]:
        """Tokens, seconds and value at every step at which a metric was measured and finite."""
        points = {}
        for row in self.rows:
            if math.isfinite(row.get(metric, math.nan)) and "tokens" in row:
                points[int(row["step"])] = (row["tokens"], row["seconds"], row[metric])
        return points

    def figures(self) -> dict[str, float]:
        """What it came to."""
        last: dict[str, float] = {}
        for row in self.rows:
            last |= row
        figures: dict[str, float] = {}
        figures |= {n: last[n] for n in ("step", "tokens", "seconds") if n in last}
        speeds = [row["tokens_per_second"] for row in self.rows if "tokens_per_second" in row]
        if speeds:
            figures["tokens/s, median"] = median(speeds)
        losses = [row["train/loss"] for row in self.rows if "train/loss" in row]
        if losses:
            figures[f"train/loss, last {LAST:.0%}"] = mean(
                losses[-max(1, int(LAST * len(losses))) :]
            )
        for name in ("val/loss", "val/bpb", "val/accuracy", "test/bpb"):
            if name in last:
                figures[name] = last[name]
        measured = [row["val/bpb"] for row in self.rows if "val/bpb" in row]
        if measured:
            figures["val/bpb, best"] = min(measured)
        return figures


@dataclass(frozen=True)
class Group:
    """Runs that are one in the comparison: alone, or repeated with several seeds."""

    name: str
    runs: list[Run]

    def curve(self, metric: str) -> list[tuple[float, float, float, float]]:
        """Tokens, seconds, mean and standard deviation at the steps that all runs measured."""
        curves = [run.curve(metric) for run in self.runs]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        points = []
        for step in steps:
            tokens, seconds, values = zip(*(curve[step] for curve in curves), strict=True)
            points.append((mean(tokens), mean(seconds), mean(values), _spread(values)))
        return points

    def figures(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of what the runs came to; NaN where one has no value."""
        all_of = [run.figures() for run in self.runs]
        names = dict.fromkeys(name for figures in all_of for name in figures)
        values = {name: [figures.get(name, math.nan) for figures in all_of] for name in names}
        return {name: (mean(found), _spread(found)) for name, found in values.items()}


def find(names: Sequence[str]) -> list[Run]:
    """The runs in folders; a folder of several runs, as a sweep's, stands for all of them.

    Raises:
        ValueError: a folder that holds none.
    """
    folders: list[Path] = []
    for name in names:
        folder = Path(name)
        if not folder.is_dir():
            raise ValueError(f"RUN={name}: there is no such folder; runs are under logs/train/runs")
        inside = sorted((path.parent for path in folder.glob(f"*/{METRICS}")), key=_by_number)
        if (folder / METRICS).is_file():
            folders.append(folder)
        elif inside:
            folders += inside
        else:
            raise ValueError(
                f"RUN={name}: holds no {METRICS}, nor do the folders in it; give the folder of a"
                " run or of a sweep"
            )
    return [read(folder) for folder in dict.fromkeys(folder.resolve() for folder in folders)]


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        ValueError: its metrics or settings cannot be read.
    """
    try:
        rows = read_rows(folder / METRICS)
        settings = yaml.safe_load(_text(folder / ".hydra" / "config.yaml")) or {}
        given = yaml.safe_load(_text(folder / ".hydra" / "overrides.yaml")) or []
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"RUN={short_path(folder)}: cannot be read: {error}") from None
    if not rows or "step" not in rows[0]:
        raise ValueError(f"RUN={short_path(folder)}: its {METRICS} has no steps yet")
    seconds, tokens = 0.0, 0.0
    for row in rows:
        if row.get("tokens_per_second"):
            seconds += (row.get("tokens", tokens) - tokens) / row["tokens_per_second"]
            tokens = row.get("tokens", tokens)
        row["seconds"] = seconds
    overrides = dict(text.lstrip("+").partition("=")[::2] for text in given)
    overrides = {n: v for n, v in overrides.items() if not n.startswith(NOT_COMPARED)}
    return Run(folder, rows, dict(_flat(settings)), overrides)


def differences(runs: Sequence[Run]) -> list[str]:
    """The names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name
        for name in names
        if not name.startswith(NOT_COMPARED)
        and any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)
    ]


def grouped(runs: Sequence[Run], repeated: Iterable[str] = ()) -> list[Group]:
    """Runs that differ in nothing but the settings `repeated` as one group; each alone without."""
    repeated = set(repeated)
    names = _labels(runs, repeated)
    if not repeated:
        return [Group(name, [run]) for name, run in zip(names, runs, strict=True)]
    differing = [name for name in differences(runs) if name not in repeated]
    groups: dict[str, Group] = {}
    for name, run in zip(names, runs, strict=True):
        key = repr([run.settings.get(setting) for setting in differing])
        groups.setdefault(key, Group(name, [])).runs.append(run)
    return list(groups.values())


def _labels(runs: Sequence[Run], left_out: set[str]) -> list[str]:
    """What tells each run from the others: settings on the command line, or its folder."""
    names = dict.fromkeys(name for run in runs for name in run.overrides if name not in left_out)
    telling = [n for n in names if len({run.overrides.get(n) for run in runs}) > 1]

    def label(run: Run) -> str:
        chosen = [n for n in telling if n in run.overrides]
        return " ".join(f"{n.rpartition('.')[2]}={_short(run.overrides[n])}" for n in chosen)

    labels = [label(run) for run in runs]
    if left_out:
        return [text or run.folder.parent.name for text, run in zip(labels, runs, strict=True)]
    if len(set(labels)) < len(labels) or not all(labels):
        return [" ".join(part for part in (run.folder.name, label(run)) if part) for run in runs]
    return labels


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _by_number(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdigit() else 0, folder.name)


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
