"""The networks: their configurations, modules and state."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.models.llama_config import LlamaConfig
from litmegalodon.models.model_config import ModelConfig

if TYPE_CHECKING:
    from litmegalodon.models.language_model import LanguageModel
    from litmegalodon.models.megalodon import Megalodon
    from litmegalodon.models.state import MegalodonState

__all__ = [
    "LanguageModel",
    "LlamaConfig",
    "Megalodon",
    "MegalodonConfig",
    "MegalodonState",
    "ModelConfig",
    "config_of",
    "kind_of",
    "with_defaults",
]

KINDS = {config.kind: config for config in (MegalodonConfig, LlamaConfig)}


def kind_of(saved: Mapping[str, Any]) -> type[ModelConfig]:
    """The class of a config that `to_dict` wrote.

    Raises:
        ValueError: it is of a model that this version does not know.
    """
    kind = saved.get("kind", MegalodonConfig.kind)
    if kind not in KINDS:
        raise ValueError(f"model {kind!r} is not known here; there are {', '.join(KINDS)}")
    return KINDS[kind]


def config_of(saved: Mapping[str, Any]) -> ModelConfig:
    """The config that `to_dict` wrote.

    Raises:
        ValueError: it is of a model that this version does not know, or out of range.
        TypeError: it has a field that this version does not know.
    """
    return kind_of(saved)(**{name: saved[name] for name in saved if name != "kind"})


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A config that `to_dict` wrote, with the fields that did not exist then."""
    known = fields(kind_of(saved))
    return {f.name: f.default for f in known if f.default is not MISSING} | dict(saved)


def __getattr__(name: str):
    # Settings are checked through MegalodonConfig before torch is imported, which takes seconds.
    if name == "Megalodon":
        from litmegalodon.models.megalodon import Megalodon

        return Megalodon
    if name == "LanguageModel":
        from litmegalodon.models.language_model import LanguageModel

        return LanguageModel
    if name == "MegalodonState":
        from litmegalodon.models.state import MegalodonState

        return MegalodonState
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
