"""Training: the LightningModule, its optimizer, schedule, metrics and callbacks."""

from litmegalodon.training.answers import AnswersModule
from litmegalodon.training.module import MegalodonModule

__all__ = ["AnswersModule", "MegalodonModule"]
