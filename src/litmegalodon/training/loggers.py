"""Figures, distributions, pictures and texts for whichever loggers a run has."""

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor


def log_scalars(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Give every logger metrics of this step only.

    `LightningModule.log` would repeat them at each later step.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=_step(trainer))


def log_distributions(trainer: Trainer, values: Mapping[str, Tensor]) -> None:
    """Give TensorBoard and Weights & Biases histograms of values; the others take none."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, value in values.items():
                logger.experiment.add_histogram(name, value, _step(trainer))
        elif isinstance(logger, WandbLogger):
            # Takes seconds to import, and is there already.
            from wandb import Histogram

            made = {name: Histogram(value.tolist()) for name, value in values.items()}
            logger.log_metrics(made, step=_step(trainer))


def log_picture(trainer: Trainer, name: str, path: Path) -> None:
    """Give TensorBoard and Weights & Biases a picture that is a file; the others take none."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            pixels = torch.from_numpy(imread(path)[..., :3].copy())
            logger.experiment.add_image(name, pixels, _step(trainer), dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=_step(trainer))


def takes_text(trainer: Trainer) -> bool:
    """Whether one of the loggers shows texts."""
    return any(isinstance(logger, TensorBoardLogger | WandbLogger) for logger in trainer.loggers)


def log_text(trainer: Trainer, name: str, text: str) -> None:
    """Give TensorBoard and Weights & Biases a text as it is; the others take none."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # It reads Markdown: a block of code keeps lines and spaces.
            shown = "\n".join(f"    {line}" for line in text.split("\n"))
            logger.experiment.add_text(name, shown, _step(trainer))
        elif isinstance(logger, WandbLogger):
            logger.log_text(name, columns=["step", "text"], data=[[trainer.global_step, text]])


def _step(trainer: Trainer) -> int:
    # The count that Lightning gives its own metrics.
    return trainer.fit_loop.epoch_loop._batches_that_stepped
