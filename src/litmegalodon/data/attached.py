"""The data module that a trainer reads, with its type: Lightning does not declare it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from litmegalodon.data.datamodule import TextDataModule


def data_of(trainer: Trainer) -> TextDataModule | None:
    """What a trainer reads, None where it was given no data module."""
    return getattr(trainer, "datamodule", None)
