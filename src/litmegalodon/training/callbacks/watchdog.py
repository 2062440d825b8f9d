"""A process that is silent ends the run with its name, in place of a wait without end."""

import os
import signal
import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _get_default_store

from litmegalodon.parallel.heartbeat import Heartbeat
from litmegalodon.utils.errors import Stopped

# Exit code of a run that the watchdog ends.
HUNG = 76


class Watchdog(Callback):
    """Ends a run of several processes, on all of them, where one is stopped, dead or stuck.

    A process that gives no sign of life for `silence_seconds` is named with the step that it was
    in, at most a quarter of that later. `trainer.strategy.timeout_minutes` is for processes that
    live: a collective fails after that long, and a tenth before the watchdog names who is behind.

    Args:
        silence_seconds: how long a process may be silent; it speaks while it computes, reads and
            saves, so a minute is much.

    Raises:
        ValueError: it is too short to tell silence from a busy machine.
    """

    def __init__(self, silence_seconds: float = 120.0) -> None:
        number = isinstance(silence_seconds, int | float) and not isinstance(silence_seconds, bool)
        if not (number and 2 <= silence_seconds < float("inf")):
            raise ValueError(
                f"callbacks.watchdog.silence_seconds={silence_seconds}: must be a number, at"
                " least 2; callbacks.watchdog=null does without"
            )
        self.silence_seconds = float(silence_seconds)
        self._trainer: Trainer | None = None
        self._heart: Heartbeat | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch, where there is more than one process."""
        if trainer.world_size == 1:
            return
        self._trainer = trainer
        limit = getattr(trainer.strategy, "_timeout", None) or timedelta(minutes=30)
        self._heart = Heartbeat(
            _get_default_store().clone(),
            trainer.global_rank,
            trainer.world_size,
            self.silence_seconds,
            0.9 * limit.total_seconds(),
            self._give_up,
        )
        self._heart.first()
        trainer.strategy.barrier("heartbeat")
        self._heart.start()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """The batch is there."""
        self._note(trainer, "computing")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The batch is done."""
        self._note(trainer, "between batches")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """The batch is there."""
        self._note(trainer, "validating")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Training goes on."""
        self._note(trainer, "between batches")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop to watch; who waits for a process that has failed will miss its signs, but not
        before the checkpoint is written that is on its way.
        """
        if self._heart is not None:
            getattr(trainer.strategy, "give_up_saving", lambda: None)()
        self._stop(in_order=isinstance(exception, Stopped))

    def on_fit_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop in order."""
        self._stop(in_order=True)

    def _note(self, trainer: Trainer, doing: str) -> None:
        if self._heart is not None:
            self._heart.note(doing, trainer.global_step + 1)

    def _stop(self, in_order: bool) -> None:
        if self._heart is not None:
            self._heart.stop(in_order)
            self._heart = None

    def _give_up(self, reason: str) -> None:
        """End this process and those that it has started; the main thread waits for another one."""
        trainer = self._trainer
        if trainer.global_rank < 2 or trainer.local_rank == 0:
            # One line a machine, and one where the first process is the silent one.
            os.write(2, f"\nerror: {reason}; exit code {HUNG}\n".encode())
        sys.stdout.flush()
        launcher = trainer.strategy.launcher
        started = getattr(launcher, "procs", [])
        if started:
            # A stopped one would stay; and the launcher ends this process when another one ends.
            launcher.kill(signal.SIGKILL)
        elif trainer.local_rank > 0:
            # The process that has started this one goes first.
            time.sleep(1.0)
        os._exit(HUNG)
