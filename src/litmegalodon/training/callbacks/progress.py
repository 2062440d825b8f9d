"""Progress of a run in optimizer steps: a bar on a terminal, sparse plain lines in a log."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

# The share of a run and the seconds after which a log gets its next line.
LINES_PER_RUN = 20
SECONDS_PER_LINE = 30.0
# Seconds between two looks at the metrics: reading one waits for the accelerator.
SECONDS_PER_LOOK = 0.5


def format_count(number: float) -> str:
    """Shorten a count to three digits: 4096 -> "4.1k", 2100000 -> "2.1M"."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5 or unit == "T":
            break
        number /= 1000
    return f"{number:.0f}{unit}" if unit == "" or abs(number) >= 99.95 else f"{number:.1f}{unit}"


def format_duration(seconds: float) -> str:
    """Write a duration with its two largest units: 190 -> "3m10s"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02d}h"
    if hours:
        return f"{h}h{m:02d}m"
    return f"{m}m{s:02d}s" if minutes else f"{s}s"


class TokenProgressBar(TQDMProgressBar):
    """Count optimizer steps towards `trainer.max_steps`.

    Beside the count: loss, bits per byte of the last validation, tokens per second, tokens.

    Where standard output is not a terminal (a log file, a batch system), it prints a line after the
    first step, every 5% of the run or 30 seconds, and after each validation. `plain` forces lines
    (True) or bars (False).
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self, plain: bool | None = None) -> None:
        super().__init__()
        self._plain = not sys.stdout.isatty() if plain is None else plain
        self._step = 0
        # Batches of the validation or evaluation that goes on.
        self._read = 0
        self._first: tuple[int, float] | None = None
        self._last_line = self._last_look = -math.inf

    @property
    def is_disabled(self) -> bool:
        """Whether bars are hidden; lines are printed instead if `plain`."""
        return self._plain or super().is_disabled

    @property
    def validation_description(self) -> str:
        """The word before a validation's bar."""
        return "validating"

    @property
    def test_description(self) -> str:
        """The word before an evaluation's bar."""
        return "evaluating"

    def init_train_tqdm(self) -> Tqdm:
        """Make the bar over the whole run."""
        return Tqdm(
            desc="training",
            total=self.trainer.max_steps if self.trainer.max_steps > 0 else None,
            initial=self.trainer.global_step,
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            # The average over the run, validation included, is what the remaining time follows.
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting at the step the run starts from."""
        super().on_train_start(trainer, pl_module)
        self._step, self._first = trainer.global_step, None

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Keep the bar: the stream of batches is endless, an epoch says nothing."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the bar open until training ends."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Advance by the optimizer steps taken, not by batches."""
        taken, self._step = trainer.global_step - self._step, trainer.global_step
        if not taken or not self.is_enabled:
            return
        now = time.monotonic()
        if self._plain:
            if self._line_is_due(now):
                self._print_line(self._training_items(now))
                self._last_line = now
            self._first = self._first or (self._step, now)
            return
        self.train_progress_bar.update(taken)
        if now - self._last_look >= SECONDS_PER_LOOK or self._step == trainer.max_steps:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
            self._last_look = now

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show a bar over the batches of this validation, under its own word alone."""
        if self.has_dataloader_changed(dataloader_idx):
            self.val_progress_bar.reset(self.total_val_batches_current_dataloader)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a validation."""
        super().on_validation_start(trainer, pl_module)
        self._last_line, self._read = time.monotonic(), 0

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance the bar; in a log, a line where a validation takes long."""
        super().on_validation_batch_end(*args, **kwargs)
        self._tell_how_far("validated", self.total_val_batches_current_dataloader)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a reading of an evaluation's texts."""
        super().on_test_start(trainer, pl_module)
        self._last_line, self._read = time.monotonic(), 0

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance the bar; in a log, a line where an evaluation takes long."""
        super().on_test_batch_end(*args, **kwargs)
        self._tell_how_far("batches read", self.total_test_batches_current_dataloader)

    def _tell_how_far(self, what: str, total: int | float) -> None:
        now = time.monotonic()
        self._read += 1
        if self._plain and self.is_enabled and now - self._last_line >= SECONDS_PER_LINE:
            self._print_line({what: f"{self._read}/{total}"})
            self._last_line = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation's result."""
        super().on_validation_end(trainer, pl_module)
        if self._plain and self.is_enabled and not trainer.sanity_checking:
            names = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            items = {
                n.replace("/", " "): f"{trainer.callback_metrics[n].item():.4f}" for n in names
            }
            self._print_line(items)
            self._last_line = time.monotonic()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar: loss, last validation's bits per byte, tokens per second."""
        return {name: text for name, text in self._measured().items() if text}

    def _measured(self) -> dict[str, str]:
        def shown(name: str, form: Any) -> str:
            metrics = self.trainer.callback_metrics
            return form(metrics[name].item()) if name in metrics else ""

        return {
            "loss": shown("train/loss", "{:.4f}".format),
            "val bpb": shown("val/bpb", "{:.4f}".format),
            "tokens/s": shown("tokens_per_second", format_count),
            "tokens": shown("tokens", format_count),
        }

    def _training_items(self, now: float) -> dict[str, str]:
        items = self._measured()
        remaining = self.trainer.max_steps - self._step
        if self._first is not None and remaining > 0:
            # Counted from the end of the first step, which is slower than all others.
            step, then = self._first
            items["eta"] = format_duration((now - then) / (self._step - step) * remaining)
        return items

    def _line_is_due(self, now: float) -> bool:
        total = self.trainer.max_steps
        share = total > 0 and self._step % math.ceil(total / LINES_PER_RUN) == 0
        return (
            share
            or self._first is None
            or self._step == total
            or now - self._last_line >= SECONDS_PER_LINE
        )

    def _print_line(self, items: dict[str, str]) -> None:
        total = f"/{self.trainer.max_steps}" if self.trainer.max_steps > 0 else ""
        # Evaluation alone has no steps.
        step = [f"step {self.trainer.global_step}{total}"] if self.trainer.state.fn == "fit" else []
        shown = [f"{name} {text}" for name, text in items.items() if text]
        # Flushed: a log is read while the run goes on.
        print("  ".join([*step, *shown]), flush=True)
