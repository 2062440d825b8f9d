"""What a trained model can do beyond one validation number."""

from litmegalodon.evaluation.by_position import LossByPosition

__all__ = ["LossByPosition"]
