"""What a run shows and keeps: progress, checkpoints, and the report at its end."""

from litmegalodon.training.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from litmegalodon.training.callbacks.monitor import Monitor
from litmegalodon.training.callbacks.progress import TokenProgressBar
from litmegalodon.training.callbacks.report import RunReport

__all__ = ["BestCheckpoint", "LastCheckpoint", "Monitor", "RunReport", "TokenProgressBar"]
