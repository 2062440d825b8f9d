"""Text from a trained model: reading at constant memory, writing on, keeping what was read.

Importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from litmegalodon.inference.drawing import Drawing, check_stops

if TYPE_CHECKING:
    from litmegalodon.inference.generation import generate_together
    from litmegalodon.inference.loading import load_model
    from litmegalodon.inference.reader import Reader
    from litmegalodon.inference.sampling import sample_next
    from litmegalodon.inference.snapshot import load_state, save_state
    from litmegalodon.inference.text_state import TextState

__all__ = [
    "Drawing",
    "Reader",
    "TextState",
    "check_stops",
    "generate_together",
    "load_model",
    "load_state",
    "sample_next",
    "save_state",
]

_MODULES = {
    "Reader": "reader",
    "TextState": "text_state",
    "generate_together": "generation",
    "load_model": "loading",
    "load_state": "snapshot",
    "sample_next": "sampling",
    "save_state": "snapshot",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
