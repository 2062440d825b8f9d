"""Complex exponential moving average: a linear recurrence with N complex states a channel."""

from litmegalodon.ops.cema.api import cema

__all__ = ["cema"]
