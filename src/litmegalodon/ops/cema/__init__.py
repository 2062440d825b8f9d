"""Complex exponential moving average: a linear recurrence with N complex states a channel."""

from litmegalodon.ops.cema.api import cema, cema_end
from litmegalodon.ops.cema.merge import cema_merge

__all__ = ["cema", "cema_end", "cema_merge"]
