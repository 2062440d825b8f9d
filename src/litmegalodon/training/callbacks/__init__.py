"""What a run shows and keeps: progress, checkpoints, and the report at its end."""

from litmegalodon.training.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from litmegalodon.training.callbacks.interruptions import Interruptions
from litmegalodon.training.callbacks.progress import TokenProgressBar
from litmegalodon.training.callbacks.report import RunReport
from litmegalodon.training.callbacks.watchdog import Watchdog

__all__ = [
    "BestCheckpoint",
    "Interruptions",
    "LastCheckpoint",
    "RunReport",
    "TokenProgressBar",
    "Watchdog",
]
