"""Training: the LightningModule, its optimizer, schedule, metrics and callbacks."""

from litmegalodon.training.module import MegalodonModule

__all__ = ["MegalodonModule"]
