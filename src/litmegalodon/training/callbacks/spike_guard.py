"""What a run does about a loss or a gradient that is not finite, and about losses that jump.

A step whose loss or gradient norm is not finite changes nothing: weights, moments and step counts
of the optimizer stay, the data move on, the schedule too. After `patience` such steps in a row the
run goes back to its newest checkpoint, which is older than all of them, and reads on behind them.
The batches are written down. All processes decide alike without asking each other: the loss and
the norm are those of all of them already.

Going back depends on the checkpoint and the data alone: a run that is killed after it and resumed
from that checkpoint meets the same steps again and goes the same way.
"""

import json
import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from litmegalodon.data.slots import Batch
from litmegalodon.training.callbacks.checkpoint import newest_of_run

# A median of fewer losses says little.
FEWEST_LOSSES = 20
# A spread below this is that of a loss that stands still: 1% of the loss.
LEAST_SPREAD = 0.01
# The standard deviation of a normal distribution over its median absolute deviation.
DEVIATIONS = 1.4826


class GoBack(RuntimeError):
    """Raised out of `trainer.fit` on all processes: fit again from `checkpoint`, the data standing
    behind sample `cursor` (and at `places`, where the data are slots).
    """

    def __init__(self, checkpoint: str, cursor: int, places: torch.Tensor | None) -> None:
        super().__init__(
            f"go back to {checkpoint} and read on behind sample {cursor}; src/train.py does it"
        )
        self.checkpoint, self.cursor, self.places = checkpoint, cursor, places


@dataclass
class Spikes:
    """Finds losses that jump above the recent ones: a robust z-score of the loss's logarithm.

    score: how many deviations above the median of the last `window` losses count as a spike.
    """

    score: float
    window: int
    recent: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=self.window)

    def add(self, loss: float) -> float | None:
        """The z-score of a finite loss that is a spike, None for any other; remembers it."""
        # A loss of 0 has no logarithm.
        log = math.log(max(loss, 1e-12))
        z = None
        if len(self.recent) >= FEWEST_LOSSES:
            middle = statistics.median(self.recent)
            spread = DEVIATIONS * statistics.median(abs(x - middle) for x in self.recent)
            z = (log - middle) / max(spread, LEAST_SPREAD)
        self.recent.append(log)
        return z if z is not None and z >= self.score else None


class SpikeGuard(Callback):
    """Skip steps that are not finite, go back after `patience` of them in a row, name spikes.

    Logged from the first one on: train/skipped_steps and train/loss_spikes, counts over the run.

    Args:
        dirpath: folder for the batches of skipped steps, a file each: step, cursor, rank, and of
            each row its tokens and its text.
        patience: steps in a row that are skipped before the run goes back.
        max_returns: how often it goes back to the same checkpoint before it gives up.
        spike_score: deviations above the recent losses, on the logarithm, that make a spike.
        window: number of recent losses.
        max_dumps: files that a process writes at most.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        dirpath: str,
        patience: int = 5,
        max_returns: int = 3,
        spike_score: float = 6.0,
        window: int = 100,
        max_dumps: int = 20,
    ) -> None:
        least = {"patience": 1, "max_returns": 0, "spike_score": 0, "max_dumps": 0}
        least["window"] = FEWEST_LOSSES
        for name, low in least.items():
            value, number = locals()[name], float if name == "spike_score" else int
            if isinstance(value, bool) or not isinstance(value, int | number) or value < low:
                kind = "number" if number is float else "whole number"
                raise ValueError(
                    f"callbacks.spike_guard.{name}={value}: must be a {kind}, at least {low}"
                )
        self.dirpath = Path(dirpath)
        self.patience, self.max_returns, self.max_dumps = patience, max_returns, max_dumps
        self.skipped = self.spiked = self.in_a_row = 0
        self._spikes = Spikes(spike_score, window)
        self._batches: list[Batch] = []
        self._dumps = 0
        self._returned_to: str | None = None
        self._returns = 0

    @property
    def may_save(self) -> bool:
        """Whether a checkpoint of now could be gone back to: not amid steps that are skipped."""
        return self.in_a_row == 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take a place in the module's step."""
        self.dirpath = Path(trainer.strategy.broadcast(str(self.dirpath)))
        pl_module.guard = self

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin behind whatever was skipped."""
        self.in_a_row, self._batches = 0, []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the micro-batches of a step until it is made."""
        self._batches.append(batch)

    def admits(self, loss: float, norm: float, own_loss: float) -> bool:
        """Whether a step is made, from the loss and the gradient norm of all processes.

        own_loss: of this process' rows, which tells whose batch to write down.
        """
        self._own_is_finite = math.isfinite(own_loss) and not math.isfinite(loss)
        self._measured = {"loss": loss, "grad_norm": norm}
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.skipped += not finite
        self._spike = self._spikes.add(loss) if finite else None
        self.spiked += self._spike is not None
        return finite

    def counts(self) -> dict[str, float]:
        """What is logged with each step: the counts that are not 0."""
        counts = {"train/skipped_steps": self.skipped, "train/loss_spikes": self.spiked}
        return {name: float(count) for name, count in counts.items() if count}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """After an optimizer step: count, tell, write down, go back."""
        if trainer.fit_loop._should_accumulate():
            return
        batches, self._batches = self._batches, []
        if self.in_a_row:
            self._tell_skipped(trainer, batches)
        elif self._spike is not None:
            rank_zero_info(
                f"step {trainer.global_step}: loss {self._measured['loss']:.4f} is a spike,"
                f" {self._spike:.1f} deviations above the last {len(self._spikes.recent) - 1}"
            )
        if self.in_a_row >= self.patience:
            self._go_back(trainer, batch)

    def state_dict(self) -> dict[str, Any]:
        """Counts and recent losses, so that a resumed run counts and names the same."""
        recent = list(self._spikes.recent)
        return {"skipped": self.skipped, "spiked": self.spiked, "recent": recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counts; going back does not undo what was counted since."""
        self.skipped = max(self.skipped, state_dict["skipped"])
        self.spiked = max(self.spiked, state_dict["spiked"])
        self._spikes.recent.clear()
        self._spikes.recent.extend(state_dict["recent"])

    def _tell_skipped(self, trainer: Trainer, batches: list[Batch]) -> None:
        where = ""
        if not self._own_is_finite and self._dumps < self.max_dumps:
            self._dumps += 1
            where = f"; its batch is in {self._dump(trainer, batches)}"
        measured = ", ".join(f"{name} {value:g}" for name, value in self._measured.items())
        rank_zero_info(
            f"step {trainer.global_step} is not finite ({measured}) and was skipped,"
            f" {self.in_a_row} in a row, {self.skipped} in all{where}"
        )

    def _dump(self, trainer: Trainer, batches: list[Batch]) -> Path:
        path = self.dirpath / f"step={trainer.global_step:06d}-rank={trainer.global_rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer = getattr(trainer.datamodule, "tokenizer", None)
        head = {"step": trainer.global_step, "rank": trainer.global_rank}
        # JSON has no NaN.
        head |= {name: repr(value) for name, value in self._measured.items()}
        found = [
            {"cursor": int(batch["cursor"]), "rows": list(_rows(batch, tokenizer))}
            for batch in batches
        ]
        path.write_text(json.dumps(head | {"micro_batches": found}) + "\n", encoding="utf-8")
        return path

    def _go_back(self, trainer: Trainer, batch: Batch) -> None:
        # Which one is the newest must not depend on how fast it is written.
        getattr(trainer.strategy, "settle_saving", lambda: None)()
        checkpoint = trainer.strategy.broadcast(newest_of_run(trainer))
        said = (
            f"the loss or the gradient was not finite in {self.in_a_row} steps in a row, up to step"
            f" {trainer.global_step}"
        )
        advice = (
            "lower model.optimizer.lr or trainer.gradient_clip_val, or look at the batches in"
            f" {self.dirpath}"
        )
        if checkpoint is None:
            raise ValueError(f"{said}, and there is no checkpoint yet to go back to; {advice}")
        self._returns = self._returns + 1 if checkpoint == self._returned_to else 1
        self._returned_to = checkpoint
        if self._returns > self.max_returns:
            raise ValueError(
                f"{said}, after {self.max_returns} returns to the same checkpoint; {advice}; to go"
                f" on from there: ckpt_path={checkpoint}"
            )
        cursor = int(batch["cursor"])
        rank_zero_info(
            f"{said}: back to {checkpoint}, the data go on behind sample {cursor}; the batches are"
            f" in {self.dirpath}"
        )
        raise GoBack(checkpoint, cursor, batch.get("places"))


def _rows(batch: Batch, tokenizer: Any) -> Iterator[dict[str, Any]]:
    for tokens in batch["tokens"].tolist():
        row: dict[str, Any] = {"tokens": tokens}
        if tokenizer is not None:
            try:
                row["text"] = tokenizer.decode(tokens)
            except ValueError as error:
                row["text_error"] = str(error)
        yield row
