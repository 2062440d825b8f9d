"""What is left to read when a run ends: a table, the curve of the loss, and text from the model."""

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from litmegalodon.inference import Drawing, Reader
from litmegalodon.training.callbacks.checkpoint import BestCheckpoint
from litmegalodon.training.callbacks.progress import format_count, format_duration
from litmegalodon.training.csv_logger import read_metrics
from litmegalodon.training.loggers import log_text, takes_text
from litmegalodon.utils.printing import harmless

Metrics = list[dict[str, float]]

# The share of the curve's points that its smoothed line averages over.
SMOOTHING = 0.02


class RunReport(Callback):
    """When training ends, print a table and a sample of text, and draw the loss.

    Writes `loss.png` and `sample.txt` to `dirpath`. The curve and the figures come from
    `metrics.csv` in `dirpath`, so a resumed run shows all of it. The sample continues the first
    `prompt_bytes` of a held-out document by up to `sample_tokens` tokens (0: no sample) drawn from
    a generator of its own, seeded with `seed`. Loggers that show texts get it, too, and a shorter
    one of `validation_tokens` tokens at every validation.

    The module needs `model`, as a `Reader` does; its data module `tokenizer`,
    `validation_documents()`, `baselines()` and `summary()` with a `fingerprint` and `val_bytes`.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str],
        prompt_bytes: int = 256,
        sample_tokens: int = 400,
        validation_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = 0.95,
        seed: int = 0,
    ) -> None:
        counts = {
            "prompt_bytes": prompt_bytes,
            "sample_tokens": sample_tokens,
            "validation_tokens": validation_tokens,
        }
        for name, value in counts.items():
            if value < 0:
                raise ValueError(f"callbacks.report.{name}={value}: must be 0 or more")
        self.dirpath = Path(dirpath)
        self.prompt_bytes = prompt_bytes
        self.sample_tokens = sample_tokens
        self.validation_tokens = validation_tokens
        self.drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        Drawing(**self.drawing, prefix="callbacks.report.")
        self.seed = seed
        self._seconds_before = 0.0
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The seconds trained so far, which a resumed run adds to."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seconds of the run that is resumed."""
        self._seconds_before = state_dict["seconds"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A short sample for the loggers that show texts."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        # The end has a longer one.
        ended = trainer.global_step >= trainer.max_steps > 0
        if not (fitting and self.validation_tokens and takes_text(trainer)) or ended:
            return
        # A model that diverged has no text, and says so at the end.
        with suppress(ValueError):
            sample = self._sample(trainer, pl_module, self.validation_tokens)
            log_text(trainer, "sample", self._text(sample))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report; after the final checkpoint is saved, so that nothing here can cost a run."""
        seconds = self._seconds()
        # Every process computes the sample: with sharded parameters a forward pass takes all of
        # them.
        sample, no_sample = None, ""
        try:
            if self.sample_tokens:
                sample = self._sample(trainer, pl_module, self.sample_tokens)
        except ValueError as error:
            # A model that diverged has no text, but a curve worth seeing.
            no_sample = str(error)
        if not trainer.is_global_zero:
            return
        metrics = read_metrics(self.dirpath / "metrics.csv")
        baselines = trainer.datamodule.baselines()
        parameters = sum(p.numel() for p in pl_module.model.parameters())
        # Sharding puts its own name in front of a class's.
        name = type(pl_module.model).__name__.removeprefix("FSDP")
        title = f"{name}, {format_count(parameters)} parameters"
        self.dirpath.mkdir(parents=True, exist_ok=True)
        console = Console(highlight=False)
        console.print(_table(title, _figures(trainer, metrics, seconds, baselines)))
        drawn = draw_loss(metrics, self.dirpath / "loss.png", title, baselines)
        _say(
            "loss curve", self.dirpath / "loss.png" if drawn else "none, no metrics.csv was written"
        )
        for best in (c for c in trainer.callbacks if isinstance(c, BestCheckpoint)):
            _say("best checkpoint", best.best_model_path or "none")
        if no_sample:
            _say("sample", f"none, {no_sample}")
        if sample is not None:
            text = self._text(sample)
            log_text(trainer, "sample", text)
            (self.dirpath / "sample.txt").write_text(text, encoding="utf-8")
            print("\n" + harmless(text))
            _say("sample", self.dirpath / "sample.txt")

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _text(self, sample: tuple[str, bytes, str]) -> str:
        return _sample_text(*sample, self.drawing["temperature"])

    def _sample(
        self, trainer: Trainer, pl_module: LightningModule, tokens: int
    ) -> tuple[str, bytes, str]:
        documents = trainer.datamodule.validation_documents()
        long_enough = (d for d in documents if len(d.text) > self.prompt_bytes)
        document = next(long_enough, documents[0])
        # It may be a view of a mapped file.
        prompt = bytes(document.text[: self.prompt_bytes])
        reader = Reader(pl_module.model, trainer.datamodule.tokenizer)
        with trainer.precision_plugin.forward_context():
            reader.read(prompt)
            texts = reader.generate(
                tokens,
                **self.drawing,
                seed=self.seed,
                # Processes that stopped at different tokens would wait for one another for ever.
                agree=trainer.strategy.broadcast if trainer.world_size > 1 else None,
            )
            continuation = "".join(texts)
        return document.name, prompt, continuation


def draw_loss(
    metrics: Metrics, path: Path, title: str, baselines: dict[str, float] | None = None
) -> bool:
    """Draw training and validation loss against tokens; False if there is none to draw.

    Training loss per step is faint, its running mean full. Bits per byte, on the right, are to
    scale with the held-out text, whose compressors' results (`baselines`, by name) are thin lines.
    """
    train_tokens, train = _curve(metrics, "train/loss")
    val_tokens, val = _curve(metrics, "val/loss")
    if not len(train):
        return False
    figure = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(train_tokens, train, color="tab:blue", alpha=0.2, linewidth=0.8)
    smooth = _running_mean(train)
    axes.plot(train_tokens, smooth, color="tab:blue", linewidth=1.6, label="train, running mean")
    if len(val):
        # The last point lies on the frame: draw all of it.
        points = {"marker": "o", "markersize": 4, "clip_on": False, "zorder": 3}
        axes.plot(val_tokens, val, color="tab:orange", linewidth=1.2, label="validation", **points)

    # The first steps fall from log(vocabulary) within a few pixels: the scale is for the rest.
    settled = train_tokens >= 0.04 * train_tokens[-1]
    shown = [*smooth[settled], *val, *_draw_bits(axes, metrics, baselines or {})]
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) + 1e-3
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, train_tokens[-1])
    axes.xaxis.set_major_formatter(lambda tokens, _: format_count(tokens).replace(".0", ""))
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("loss, nats per token")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path)
    return True


def _draw_bits(axes: Axes, metrics: Metrics, baselines: dict[str, float]) -> list[float]:
    """Add the scale in bits per byte and a line per baseline; their levels in nats per token."""
    # Their ratio is a constant of the held-out text.
    ratios = (row["val/bpb"] / row["val/loss"] for row in metrics if row.get("val/bpb"))
    ratio = next((r for r in ratios if math.isfinite(r)), None)
    if ratio is None:
        return []
    right = axes.secondary_yaxis("right", (lambda y: y * ratio, lambda y: y / ratio))
    right.set_ylabel("bits per byte of held-out text")
    right.spines["right"].set_visible(False)
    for name, bits in baselines.items():
        level = bits / ratio
        axes.axhline(level, color="0.6", linewidth=0.8, linestyle=(0, (4, 4)))
        # On the left, under the steep beginning, the lines are alone.
        place = axes.get_yaxis_transform()
        text = f"{name} {bits:.2f}"
        axes.text(0.005, level, text, transform=place, color="0.4", fontsize=8, va="bottom")
    return [bits / ratio for bits in baselines.values()]


def _figures(
    trainer: Trainer, metrics: Metrics, seconds: float, baselines: dict[str, float]
) -> dict[str, str]:
    """The table's rows, top to bottom; what was never measured is left out."""
    summary = trainer.datamodule.summary()
    tokens = [r["tokens"] for r in metrics if "tokens" in r]
    speeds = [r["tokens_per_second"] for r in metrics if "tokens_per_second" in r]
    train = _curve(metrics, "train/loss")[1]
    validations = [r for r in metrics if "val/loss" in r]
    rows = {"optimizer steps": f"{trainer.global_step:,}"}
    if tokens:
        rows["tokens"] = f"{tokens[-1]:,.0f}"
    rows["time with validation"] = format_duration(seconds)
    if speeds:
        rows["tokens per second, median"] = f"{np.median(speeds):,.0f}"
    if len(train):
        last = max(1, round(SMOOTHING * len(train)))
        rows[f"training loss, last {SMOOTHING:.0%}"] = f"{train[-last:].mean():.4f}"
    if validations:
        best = min(validations, key=_score)
        for name, row in {"last": validations[-1], "best": best}.items():
            rows[f"{name} validation, step {row['step']:.0f}"] = _validation(row)
    for name, bits in baselines.items():
        label = "gzip -9" if name == "gzip" else name
        rows[f"{label} on the same text"] = f"{bits:.4f} bits/byte"
    rows["held-out text"] = f"{summary['val_bytes']:,} bytes{_part_of(trainer)}"
    rows["corpus fingerprint"] = str(summary["fingerprint"])
    return rows


def _part_of(trainer: Trainer) -> str:
    """How much of the held-out text the validations read, where it is not all of it."""
    used, there = sum(trainer.num_val_batches), len(trainer.val_dataloaders or ())
    return f", validated on {used} of {there} batches" if used < there else ""


def _score(row: dict[str, float]) -> float:
    score = row.get("val/bpb", row["val/loss"])
    return math.inf if math.isnan(score) else score


def _validation(row: dict[str, float]) -> str:
    shown = {
        "val/bpb": "{:.4f} bits/byte",
        "val/loss": "loss {:.4f}",
        "val/ppl": "perplexity {:.4g}",
    }
    return ", ".join(text.format(row[name]) for name, text in shown.items() if name in row)


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _say(name: str, text: Any) -> None:
    # Plain lines: in a table a long path would be broken and could not be copied.
    print(f"{name}: {text}", flush=True)


def _sample_text(name: str, prompt: bytes, continuation: str, temperature: float) -> str:
    return (
        f"--- prompt: the first {len(prompt)} bytes of {name} (held out)\n"
        f"{prompt.decode(errors='replace')}\n"
        f"--- continued by the model at temperature {temperature}\n"
        f"{continuation}\n"
        "--- end\n"
    )


def _curve(metrics: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and finite values of the rows that measured `name`, both [points]."""
    rows = [r for r in metrics if math.isfinite(r.get(name, math.nan)) and "tokens" in r]
    return np.array([r["tokens"] for r in rows]), np.array([r[name] for r in rows])


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the points around each, [points] -> [points]; at the ends over those there are."""
    points, reach = np.arange(len(values)), round(SMOOTHING * len(values) / 2)
    first, end = np.maximum(points - reach, 0), np.minimum(points + reach + 1, len(values))
    sums = np.concatenate([[0.0], values.cumsum()])
    return (sums[end] - sums[first]) / (end - first)
