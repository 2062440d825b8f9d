"""Training: the LightningModule, its optimizer and schedule, metrics, callbacks and the metrics file."""

from litmegalodon.training.module import MegalodonModule

__all__ = ["MegalodonModule"]
