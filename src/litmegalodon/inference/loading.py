"""A trained model and its tokenizer from a checkpoint, in one process and with nothing run that it
names.
"""

from collections.abc import Callable, Mapping
from inspect import isclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from litmegalodon.data import Tokenizer
from litmegalodon.interop import exported
from litmegalodon.models import LanguageModel, ModelConfig
from litmegalodon.models import config_of as config_from
from litmegalodon.utils import checkpoints
from litmegalodon.utils.checkpoint_files import read_meta, read_tensors

PACKAGE = "litmegalodon."
# Where a checkpoint keeps the network's tensors.
WEIGHTS = "state_dict.model."
DTYPES = ("float32", "bfloat16", "float64")


def load_model(
    checkpoint: str | Path,
    device: str = "auto",
    dtype: str = "float32",
    tokenizer: Tokenizer | None = None,
) -> tuple[LanguageModel, Tokenizer]:
    """The network of a checkpoint, ready to read, and the tokenizer that it was trained with.

    The tokenizer is made from the settings beside the checkpoint, whose `_target_` must be a class
    of this package: no code that a checkpoint names is run, none that it holds either.

    Args:
        checkpoint: a checkpoint, a run's folder (its newest one), `last`: the newest one below
            logs/train, or the folder of an export in safetensors.
        device: auto (cuda where there is one), cpu or cuda.
        dtype: float32, bfloat16 (CEMA and norms stay float32) or float64.
        tokenizer: one to take instead of the checkpoint's.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or its tokenizer can't be made.
    """
    setting = f"ckpt_path={checkpoint}"
    path = checkpoints.find("ckpt_path", str(checkpoint), Path("logs/train"), exports=True)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    place = _device(device)
    exported_there = checkpoints.is_export(path)
    if exported_there:
        config = exported.read_config(path, setting)
    else:
        config = config_of(read_meta(path, setting), setting)
    if tokenizer is None:
        find_tokenizer = exported.tokenizer_of if exported_there else tokenizer_beside
        tokenizer = find_tokenizer(path, setting)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{setting}: the model knows {config.vocab_size:,} tokens and the tokenizer has"
            f" {tokenizer.vocab_size:,}; give the one that it was trained with"
        )
    with torch.device("meta"):
        model = config.build().to(getattr(torch, dtype))
    if exported_there:
        exported.check_files(path, model, setting)
    model.to_empty(device=place)
    tensors = model.state_dict()
    if exported_there:
        exported.fill(path, tensors, setting)
    else:
        read_tensors(path, {f"{WEIGHTS}{n}": value for n, value in tensors.items()}, setting)
    return model.eval().requires_grad_(False), tokenizer


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch finds no GPU here; set device=cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device={name}: must be auto, cpu or cuda")
    return name


def config_of(meta: Mapping[str, Any], setting: str) -> ModelConfig:
    """The config of the network of a checkpoint; ValueError where no such network is known."""
    return _make(config_from, {"saved": meta["hyper_parameters"]["config"]}, setting)


def tokenizer_beside(checkpoint: Path, setting: str) -> Tokenizer:
    """The tokenizer of the settings that Hydra saved for the run.

    Raises:
        ValueError: they are not there, or name something else than a tokenizer of this package.
    """
    path = checkpoints.run_config(checkpoint)
    try:
        node = None if path is None else OmegaConf.select(OmegaConf.load(path), "data.tokenizer")
    except (OmegaConfBaseException, YAMLError):
        raise ValueError(f"{setting}: {path} beside it is damaged") from None
    if not OmegaConf.is_dict(node) or "_target_" not in node:
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
