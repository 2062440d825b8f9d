"""Batches whose loss is not finite, as a callback: the command that trains is the user's own."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from litmegalodon.data.slots import Batch


class Poison(Callback):
    """Makes the loss of some batches NaN on one process of the run.

    A batch is known by its place in the data, so a run meets the same ones however often it is
    ended and started again, and goes round them as an undisturbed run does.

    Args:
        batches: their numbers, from 1.
    """

    def __init__(self, batches: list[int]) -> None:
        self.batches = frozenset(batches)
        self._poisoned = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look whether this one is meant, and this process."""
        number = int(batch["cursor"]) // trainer.datamodule.batch_size
        mine = trainer.global_rank == number % trainer.world_size
        self._poisoned = mine and number in self.batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand between the network and its loss; once, also where the guard goes back."""
        loss = pl_module.model.loss
        if getattr(loss, "poisoned", False):
            return

        def poisoned(*args: Any, **kwargs: Any) -> Any:
            nll, valid, state = loss(*args, **kwargs)
            # Validation is left alone.
            bad = self._poisoned and torch.is_grad_enabled()
            return (nll * torch.nan if bad else nll), valid, state

        poisoned.poisoned = True
        pl_module.model.loss = poisoned
