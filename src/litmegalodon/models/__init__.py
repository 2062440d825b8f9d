"""The network: its configuration, its modules and its state."""

from typing import TYPE_CHECKING

from litmegalodon.models.config import MegalodonConfig

if TYPE_CHECKING:
    from litmegalodon.models.megalodon import Megalodon
    from litmegalodon.models.state import MegalodonState

__all__ = ["Megalodon", "MegalodonConfig", "MegalodonState"]


def __getattr__(name: str):
    # Settings are checked through MegalodonConfig before torch is imported, which takes seconds.
    if name == "Megalodon":
        from litmegalodon.models.megalodon import Megalodon

        return Megalodon
    if name == "MegalodonState":
        from litmegalodon.models.state import MegalodonState

        return MegalodonState
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
