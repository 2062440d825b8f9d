"""Which checkpoints a run keeps: the newest ones, to continue from, and the best by validation.

Both are saved only where an optimizer step is complete, so a resumed run repeats and skips nothing.
A checkpoint replaces an older one only once it is complete: at any moment there is a usable
checkpoint.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from litmegalodon.checkpoints import DOOMED, PARTIAL, is_complete, written
from litmegalodon.checkpoints.manifest import wrong_size
from litmegalodon.parallel import ChunkParallelStrategy
from litmegalodon.parallel.checkpoint_storage import remove


class _OwnedCheckpoint(ModelCheckpoint):
    """One kind of checkpoint in one folder, of which the newest `keep` stay."""

    # File names begin with this.
    kind: str

    def __init__(
        self, dirpath: str | os.PathLike[str], filename: str, keep: int = 1, **settings: Any
    ) -> None:
        super().__init__(
            dirpath=os.fspath(dirpath),
            filename=filename,
            save_top_k=1,
            save_last=False,
            save_on_exception=False,
            save_on_train_epoch_end=False,
            # A metric's name holds a slash, which would become a folder.
            auto_insert_metric_name=False,
            # A step saved again after a resume is the same checkpoint, not a `-v1` beside it.
            enable_version_counter=False,
            **settings,
        )
        self.keep = keep
        self._foreign: set[Path] = set()
        # This run's own that it does not go on from, though they are newer than the one it does.
        self._left_behind: set[Path] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the first process's folder, and refuse validation in mid-accumulation.

        Raises:
            ValueError: the folder can't be written to either.
        """
        self.dirpath = trainer.strategy.broadcast(self.dirpath)
        if stage == "fit" and not trainer.fast_dev_run:
            wrong = self._make_folder() if trainer.is_global_zero else None
            if wrong := trainer.strategy.broadcast(wrong):
                raise ValueError(
                    f"callbacks.{self.kind}_checkpoint.dirpath={self.dirpath}: no checkpoint "
                    f"can be written there ({wrong}); set another folder"
                )
        every, accumulate = trainer.val_check_interval, trainer.accumulate_grad_batches
        counted = stage == "fit" and isinstance(every, int) and trainer.limit_val_batches
        if counted and every % accumulate:
            raise ValueError(
                f"trainer.val_check_interval={every}: must be a multiple of "
                f"trainer.accumulate_grad_batches={accumulate}, so that validation follows a "
                f"complete optimizer step; try {max(1, round(every / accumulate)) * accumulate}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where training starts, and whose checkpoints are in the folder.

        What a killed run has left of unfinished ones goes.
        """
        if trainer.is_global_zero:
            for ending in (PARTIAL, DOOMED):
                for left in Path(self.dirpath).glob(f"{self.kind}-step=*{ending}"):
                    shutil.rmtree(left, ignore_errors=True)
        trainer.strategy.barrier()
        # The state trained from is not saved once more, least of all during its next step.
        self._last_global_step_saved = trainer.global_step
        resumed = None
        if trainer.ckpt_path:
            resumed = getattr(trainer.strategy, "loaded", None) or Path(trainer.ckpt_path)
            resumed = resumed.resolve()
        ours = resumed is not None and Path(self.dirpath).resolve() in resumed.parents
        # A run that went back to a checkpoint of its own is still the same run.
        self._foreign = self._foreign if ours else set(self._present())
        if self._foreign:
            rank_zero_info(
                f"{self.dirpath} holds {self.kind} checkpoints of an earlier run, which are kept: "
                f"{len(self._foreign)}"
            )
        self._left_behind = set()
        if ours and is_complete(resumed):
            own = [p for p in self._present() if p not in self._foreign and is_complete(p)]
            self._left_behind = {p for p in own if written(p) > written(resumed)}
        # A killed run may have replaced the best that an older state names. The first process
        # answers for all of them.
        there = bool(self.best_model_path) and is_complete(self.best_model_path)
        if not trainer.strategy.broadcast(there):
            self.best_k_models = {}
            self.best_model_path, self.best_model_score = "", None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was best; the best of a run in another folder is not this one's."""
        if state_dict["dirpath"] == self.dirpath:
            super().load_state_dict(state_dict)

    def _may_save(self, trainer: Trainer) -> bool:
        return (
            trainer.state.fn == TrainerFn.FITTING
            and not trainer.sanity_checking
            and not trainer.fast_dev_run
            and trainer.global_step != self._last_global_step_saved
            # What is saved amid steps that are skipped could not be gone back to: only at the end.
            and (
                trainer.should_stop
                or trainer.global_step == trainer.max_steps
                or _may_save_now(trainer)
            )
        )

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        strategy = trainer.strategy
        later = isinstance(strategy, ChunkParallelStrategy)
        if later:
            strategy.when_saved(filepath, self._retire)
        super()._save_checkpoint(trainer, filepath)
        # Saving ends with a barrier: every process has written its part.
        if not later and trainer.is_global_zero:
            self._retire(Path(filepath))

    def _retire(self, saved: Path) -> None:
        """Delete what a checkpoint replaces, now that it is complete."""
        if not is_complete(saved) or (wrong := wrong_size(saved)):
            wrong = wrong if is_complete(saved) else "a file is missing"
            rank_zero_warn(
                f"{saved} is not complete after saving it ({wrong}); older checkpoints are kept"
            )
            return
        self._foreign.discard(saved)
        self._left_behind.discard(saved)
        ours = [path for path in self._present() if path != saved and path not in self._foreign]
        # A damaged one does not count among those that stay, nor one that the run does not go on
        # from.
        whole = [path for path in ours if is_complete(path) and not wrong_size(path)]
        whole = [path for path in whole if path not in self._left_behind]
        stay = sorted(whole, key=written, reverse=True)[: self.keep - 1]
        for old in ours:
            if old not in stay:
                remove(old)

    def _make_folder(self) -> str | None:
        """Make the folder and try to write to it; what is wrong, in words."""
        try:
            Path(self.dirpath).mkdir(parents=True, exist_ok=True)
            trial = Path(self.dirpath) / f".{self.kind}{PARTIAL}"
            trial.touch()
            trial.unlink()
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _present(self) -> list[Path]:
        # With what a killed process left of one, under a longer name.
        return sorted(Path(self.dirpath).glob(f"{self.kind}-step=*{self.FILE_EXTENSION}*"))

    def _should_remove_checkpoint(self, *_: Any) -> bool:
        # `_save_checkpoint` removes what is old, the checkpoint resumed from included.
        return False


class LastCheckpoint(_OwnedCheckpoint):
    """Keep the newest states as `last-step=000020.ckpt`, `keep` of them.

    One is saved every `every_n_steps` optimizer steps and at the end of training. Where validation
    follows the step, the checkpoint follows the validation: a run killed in between validates again
    when it resumes, instead of losing the result.
    """

    kind = "last"

    def __init__(self, dirpath: str | os.PathLike[str], every_n_steps: int, keep: int = 2) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 1:
                raise ValueError(f"callbacks.last_checkpoint.{name}={value}: must be at least 1")
        super().__init__(dirpath, "last-step={step:06d}", keep, every_n_train_steps=every_n_steps)
        # Tokens trained where the checkpoint was saved instead of the validation that was due.
        self._unvalidated: float | None = None

    @property
    def state_key(self) -> str:
        """One name whatever the interval, which may change on a resume."""
        return "LastCheckpoint"

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and whether the validation of this step is still to be made."""
        return super().state_dict() | {"unvalidated": self._unvalidated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; a checkpoint of before this was noted has none to be made."""
        super().load_state_dict(state_dict)
        self._unvalidated = state_dict.get("unvalidated")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin as all do, and make the validation that the run before has left out."""
        super().on_train_start(trainer, pl_module)
        tokens, self._unvalidated = self._unvalidated, None
        if tokens is None or not trainer.enable_validation:
            return
        for callback in trainer.callbacks:
            if isinstance(callback, BestCheckpoint):
                # This step's state may be the best and is not saved as such.
                callback._last_global_step_saved = 0
        # For the row of a step whose training is not logged.
        trainer.callback_metrics["tokens"] = torch.tensor(tokens, dtype=torch.float64)
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = None

    def save_to_leave(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save for a run that leaves now, with a validation that is due left to the next one."""
        if _validation_follows(trainer):
            self._unvalidated = float(trainer.callback_metrics.get("tokens", 0))
        self.on_train_end(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Move to the end of the callbacks: the newest state names the best, saved before it."""
        super().setup(trainer, pl_module, stage)
        trainer.callbacks = [c for c in trainer.callbacks if c is not self] + [self]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save if a checkpoint is due and no validation follows."""
        if self._due(trainer) and not _validation_follows(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if a checkpoint is due at this step."""
        if self._due(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state if it is not saved yet, and see all checkpoints written."""
        self._save_final(trainer)
        if isinstance(trainer.strategy, ChunkParallelStrategy):
            trainer.strategy.finish_saving()

    def _save_final(self, trainer: Trainer) -> None:
        if not self._may_save(trainer):
            if not _may_save_now(trainer):
                rank_zero_info(
                    f"step {trainer.global_step} is not saved, amid steps that are skipped: the"
                    " run goes on from the checkpoint before them"
                )
            return
        if _amid_accumulation(trainer):
            rank_zero_warn(
                "training ended in the middle of an accumulation: the newest checkpoint is of step "
                f"{self._last_global_step_saved}, not {trainer.global_step}"
            )
            return
        self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def _due(self, trainer: Trainer) -> bool:
        # The final step counts here too: saved from inside the loop, a longer run continues it as
        # if it had never ended.
        due = (
            trainer.global_step % self._every_n_train_steps == 0
            or trainer.global_step == trainer.max_steps
            or trainer.should_stop
        )
        return due and self._may_save(trainer) and not _amid_accumulation(trainer)


class BestCheckpoint(_OwnedCheckpoint):
    """Keep the state with the best validation result, as `best-step=000200-bpb=2.3456.ckpt`."""

    kind = "best"

    def __init__(
        self, dirpath: str | os.PathLike[str], monitor: str = "val/bpb", mode: str = "min"
    ) -> None:
        name = monitor.rpartition("/")[2]
        filename = f"best-step={{step:06d}}-{name}={{{monitor}:.4f}}"
        super().__init__(dirpath, filename, monitor=monitor, mode=mode, every_n_epochs=1)
        # What was best before the last save, for where that save fails in the background.
        self._before: dict[str, Any] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation's result is the best so far."""
        if not self._may_save(trainer):
            return
        if _amid_accumulation(trainer):
            rank_zero_warn(
                f"validation after step {trainer.global_step} came in mid-accumulation: "
                "its result is not considered for the best checkpoint"
            )
            return
        self._forget_failed(trainer)
        before = self._best()
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        if self.best_model_path != before["best_model_path"]:
            self._before = before

    def _forget_failed(self, trainer: Trainer) -> None:
        """Go back to what was best before, if the best could not be saved."""
        path, strategy = self.best_model_path, trainer.strategy
        if self._before is None or not isinstance(strategy, ChunkParallelStrategy):
            return
        there = not path or strategy.is_saving(path) or is_complete(path)
        if not strategy.broadcast(there):
            vars(self).update(self._before)
            self._before = None

    def _best(self) -> dict[str, Any]:
        names = ("best_model_path", "best_model_score", "kth_best_model_path", "kth_value")
        return {name: getattr(self, name) for name in names} | {
            "best_k_models": dict(self.best_k_models)
        }


def newest_of_run(trainer: Trainer) -> str | None:
    """The checkpoint of this run that was finished last, that it was resumed from included."""
    kinds = [c for c in trainer.checkpoint_callbacks if isinstance(c, _OwnedCheckpoint)]
    own = [p for c in kinds for p in c._present() if p not in c._foreign | c._left_behind]
    newest = max((p for p in own if is_complete(p)), key=written, default=None)
    return str(newest) if newest is not None else trainer.ckpt_path


def _may_save_now(trainer: Trainer) -> bool:
    return all(getattr(callback, "may_save", True) for callback in trainer.callbacks)


def _amid_accumulation(trainer: Trainer) -> bool:
    return trainer.fit_loop._should_accumulate()


def _validation_follows(trainer: Trainer) -> bool:
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
