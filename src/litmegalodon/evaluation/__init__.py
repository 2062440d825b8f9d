"""What a trained model can do beyond one validation number.

Importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litmegalodon.evaluation.at_end import AtEnd
    from litmegalodon.evaluation.by_position import LossByPosition
    from litmegalodon.evaluation.files import Files
    from litmegalodon.evaluation.harness import Harness
    from litmegalodon.evaluation.harness_model import HarnessModel
    from litmegalodon.evaluation.recall import Recall
    from litmegalodon.evaluation.shared_reading import SharedReader

__all__ = ["AtEnd", "Files", "Harness", "HarnessModel", "LossByPosition", "Recall", "SharedReader"]

_MODULES = {
    "AtEnd": "at_end",
    "Files": "files",
    "Harness": "harness",
    "HarnessModel": "harness_model",
    "LossByPosition": "by_position",
    "Recall": "recall",
    "SharedReader": "shared_reading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
