"""What a run shows, keeps and guards: progress, checkpoints, bad steps, the report."""

from litmegalodon.training.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from litmegalodon.training.callbacks.interruptions import Interruptions
from litmegalodon.training.callbacks.monitor import Monitor
from litmegalodon.training.callbacks.progress import TokenProgressBar
from litmegalodon.training.callbacks.report import RunReport
from litmegalodon.training.callbacks.spike_guard import GoBack, SpikeGuard
from litmegalodon.training.callbacks.watchdog import Watchdog

__all__ = [
    "BestCheckpoint",
    "GoBack",
    "Interruptions",
    "LastCheckpoint",
    "Monitor",
    "RunReport",
    "SpikeGuard",
    "TokenProgressBar",
    "Watchdog",
]
