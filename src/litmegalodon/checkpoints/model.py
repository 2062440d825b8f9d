"""The network and the tokenizer that a checkpoint is of, with nothing run that it names."""

from collections.abc import Callable, Mapping
from inspect import isclass
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from litmegalodon.checkpoints.finding import run_config
from litmegalodon.data import Tokenizer
from litmegalodon.models import ModelConfig, config_of

PACKAGE = "litmegalodon."
# Where a checkpoint keeps the network's tensors.
WEIGHTS = "state_dict.model."


def saved_config(meta: Mapping[str, Any], setting: str) -> ModelConfig:
    """The config of the network of a checkpoint; ValueError where no such network is known."""
    return _make(config_of, {"saved": meta["hyper_parameters"]["config"]}, setting)


def saved_tokenizer(checkpoint: Path, setting: str) -> Tokenizer:
    """The tokenizer of the settings that Hydra saved for the run.

    Raises:
        ValueError: they are not there, or name something else than a tokenizer of this package.
    """
    path = run_config(checkpoint)
    try:
        node = None if path is None else OmegaConf.select(OmegaConf.load(path), "data.tokenizer")
    except (OmegaConfBaseException, YAMLError):
        raise ValueError(f"{setting}: {path} beside it is damaged") from None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(
            f"{setting}: the run's .hydra/config.yaml with data.tokenizer is not beside it; keep a"
            " checkpoint in its run's folder"
        )
    try:
        arguments: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(
            f"{setting}: data.tokenizer of its settings can't be read: {str(error).splitlines()[0]}"
        ) from None
    target = str(arguments.pop("_target_"))
    refused = ValueError(
        f"{setting}: its settings name data.tokenizer._target_={target}, which is no tokenizer of"
        f" {PACKAGE[:-1]}; code that a checkpoint names is not run"
    )
    if not target.startswith(PACKAGE):
        raise refused
    try:
        kind = get_object(target)
    except (ImportError, AttributeError, ValueError):
        raise refused from None
    # A path through one of our modules may lead anywhere: what is there has to be ours too.
    ours = isclass(kind) and kind.__module__.startswith(PACKAGE)
    if not ours or not callable(getattr(kind, "encode_piece", None)):
        raise refused
    if any(isinstance(value, dict | list) for value in arguments.values()):
        raise refused
    return _make(kind, arguments, setting)


def _make(kind: Callable, arguments: dict[str, Any], setting: str) -> Any:
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{setting}: was made by another version ({error})") from None
