"""A run that is asked to stop: it saves after the step that it is in, and leaves with a code."""

import os
import signal
import threading
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from litmegalodon.training.callbacks.checkpoint import LastCheckpoint
from litmegalodon.training.callbacks.spike_guard import GoBack
from litmegalodon.utils.command_line import is_main_process
from litmegalodon.utils.errors import INTERRUPTED, Stopped
from litmegalodon.utils.printing import say

# What a process may be asked, the most urgent last. Zero is nothing.
TIME_IS_UP, CTRL_C, LEAVE = 1, 2, 3
LEAVING = (signal.SIGTERM, signal.SIGUSR1)


class Interruptions(Callback):
    """Answers signals at the next complete optimizer step, on all processes at the same one.

    SIGTERM and SIGUSR1 save a checkpoint and end the run with `exit_code`, which says: start me
    again. Ctrl-C does so with 130; pressed twice it ends the process at once. `trainer.max_time`
    ends training as its last step would, with a validation and a checkpoint.

    A process says what it was asked in the sums that a step reduces anyway, so no message is sent
    for it until there is something to agree on. One that is asked before training has begun leaves
    at once.

    Args:
        exit_code: of a run that SIGTERM or SIGUSR1 ended.

    Raises:
        ValueError: the exit code means something else.
    """

    def __init__(self, exit_code: int = 75) -> None:
        whole = isinstance(exit_code, int) and not isinstance(exit_code, bool)
        if not (whole and 2 < exit_code < 126):
            raise ValueError(
                f"callbacks.interruptions.exit_code={exit_code}: must be from 3 to 125; 0 means"
                " success, 1 and 2 errors, more than that the shell's own"
            )
        self.exit_code = exit_code
        self._name = ""
        self._training = False
        self._leaving: Stopped | None = None
        self._process = -1
        self._module: LightningModule | None = None
        self._replaced: dict[int, Any] = {}
        self._timers: list[Timer] = []
        # Seconds trained before the guard went back, which the checkpoint does not count.
        self._trained = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the signals, and Lightning's own ways with them away."""
        if stage != "fit":
            return
        self._module, self._process = pl_module, os.getpid()
        # Its handler of SIGTERM broadcasts, from wherever the process is: the others, elsewhere,
        # take the message for one of theirs. On SLURM it saves amid a step.
        trainer._signal_connector.register_signal_handlers = lambda: None
        # And before every batch all processes ask the first one whether it was hit.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._timers = [c for c in trainer.callbacks if isinstance(c, Timer)]
        for timer in self._timers:
            # It would stop between the micro-batches of a step.
            timer._interval = None
        self._listen(LEAVING)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer after steps from now on."""
        self._training = True
        for timer in self._timers:
            timer._offset = max(timer._offset, self._trained)
        self._listen((signal.SIGINT,))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave if a step has ended with that, else look at the time."""
        self._leave()
        # A timer without a limit has nothing left to tell.
        if any((timer.time_remaining() or 1) <= 0 for timer in self._timers):
            pl_module.asked_to_stop = max(pl_module.asked_to_stop, TIME_IS_UP)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave if a step has ended with that: a validation may take longer than there is time."""
        self._leave()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save, where a step is complete in which any process was asked to stop."""
        if not pl_module.any_asked_to_stop or trainer.fit_loop._should_accumulate():
            return
        if trainer.should_stop:
            # It was the last step anyway, which is validated and saved.
            return
        asked = torch.tensor(pl_module.asked_to_stop, device=pl_module.device)
        asked = int(trainer.strategy.reduce(asked, reduce_op="max"))
        if asked == TIME_IS_UP:
            say(f"trainer.max_time has passed: training ends after step {trainer.global_step}")
            trainer.should_stop = True
            return
        for callback in trainer.callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save_to_leave(trainer, pl_module)
        code = INTERRUPTED if asked == CTRL_C else self.exit_code
        name = self._name or "another process's signal"
        # Lightning ends the whole run with SIGKILL as soon as a process that it has started fails.
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(environment, LightningEnvironment) and trainer.local_rank > 0:
            code = 0
        # What the step has measured is logged after this.
        self._leaving = Stopped(f"interrupted by {name}", code)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to wait for: Ctrl-C is as usual."""
        self._restore(signal.SIGINT)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back, unless the run leaves or goes on from a checkpoint."""
        if isinstance(exception, GoBack):
            self._trained = max([0.0, *(timer.time_elapsed() for timer in self._timers)])
        elif not isinstance(exception, Stopped):
            self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number in list(self._replaced):
            self._restore(number)
        self._training = False

    def _leave(self) -> None:
        if self._leaving is not None:
            raise self._leaving

    def _listen(self, numbers: tuple[signal.Signals, ...]) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            # What runs in the background may have to ignore Ctrl-C.
            before = signal.getsignal(number)
            if before != signal.SIG_IGN and number not in self._replaced:
                self._replaced[number] = before
                signal.signal(number, self._asked)

    def _restore(self, number: int) -> None:
        if number in self._replaced and threading.current_thread() is threading.main_thread():
            signal.signal(number, self._replaced.pop(number))

    def _asked(self, number: int, _: Any) -> None:
        """What Python calls between two instructions of whatever it was doing."""
        if os.getpid() != self._process:
            # A worker of the data loader, which serves the process until that leaves. What ends it
            # in the end is a SIGTERM of that process, after one that may have come to all.
            if number == signal.SIGTERM and self._name:
                os._exit(128 + number)
            self._name = "SIGTERM" if number == signal.SIGTERM else self._name
            return
        if self._leaving is not None:
            return
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if not self._training:
            self._leaving = Stopped(f"interrupted by {name}", self.exit_code)
            raise self._leaving
        again = ""
        if number == signal.SIGINT:
            # The system's own: it ends a process that waits for another one, too.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            again = "; once more leaves at once"
        if not self._name and is_main_process():
            # Not print, which may be what was interrupted.
            os.write(2, f"\n{name}: leaving after this step{again}\n".encode())
        self._name = self._name or name
        level = CTRL_C if number == signal.SIGINT else LEAVE
        self._module.asked_to_stop = max(self._module.asked_to_stop, level)
