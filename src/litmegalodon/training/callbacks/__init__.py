"""What a run shows, keeps and guards: progress, checkpoints, bad steps, the report."""

from litmegalodon.training.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from litmegalodon.training.callbacks.progress import TokenProgressBar
from litmegalodon.training.callbacks.report import RunReport
from litmegalodon.training.callbacks.spike_guard import GoBack, SpikeGuard

__all__ = [
    "BestCheckpoint",
    "GoBack",
    "LastCheckpoint",
    "RunReport",
    "SpikeGuard",
    "TokenProgressBar",
]
