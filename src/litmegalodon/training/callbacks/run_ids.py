"""Which run of a hosted service a checkpoint belongs to, so that a resumed run continues it."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

KEY = "wandb_run_id"


class RunIds(Callback):
    """Keep the id of the Weights & Biases run in every checkpoint."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write it down."""
        ids = [logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if ids and ids[0]:
            checkpoint[KEY] = ids[0]


def run_id(meta: Mapping[str, Any]) -> str | None:
    """The id of the run that wrote a checkpoint."""
    return meta.get(KEY)
