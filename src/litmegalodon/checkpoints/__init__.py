"""Checkpoints on disk: which one a setting means, what its folder holds, whether it is whole.

Importing this package does not import torch; `files` does.
"""

from litmegalodon.checkpoints.finding import (
    DOOMED,
    FILES,
    META,
    PARTIAL,
    find,
    is_complete,
    is_export,
    newest,
    older,
    run_config,
    written,
)

__all__ = [
    "DOOMED",
    "FILES",
    "META",
    "PARTIAL",
    "find",
    "is_complete",
    "is_export",
    "newest",
    "older",
    "run_config",
    "written",
]
