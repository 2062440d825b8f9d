"""Models that scripts/export_checkpoint.py wrote, read again."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from litmegalodon.data import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from litmegalodon.interop.foreign_files import read_json, weight_files
from litmegalodon.models import MegalodonConfig

# What `model_type` says in config.json. Not "megalodon": that is megalodon-hf's, whose weights
# mean something else under the same names.
MODEL_TYPE = "litmegalodon"
TOKENIZER_MODEL = "tokenizer.model"
TOKENIZER_FACTS = "tokenizer_config.json"


def read_config(folder: Path, setting: str) -> MegalodonConfig:
    """The network's config.

    Raises:
        ValueError: the folder holds no export of this project.
    """
    found = read_json(folder / "config.json", setting)
    if found.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{setting}: its config.json is of a model {found.get('model_type')}, not of an export"
            f" of this project ({MODEL_TYPE})"
        )
    names = {field.name for field in fields(MegalodonConfig)}
    try:
        return MegalodonConfig(**{name: found[name] for name in found if name in names})
    except TypeError as error:
        raise ValueError(f"{setting}: config.json lacks a size of the model ({error})") from None


def fill(folder: Path, tensors: Mapping[str, Tensor], setting: str) -> None:
    """Fill a network's tensors, one after the other, in their own dtypes.

    Raises:
        ValueError: one is missing or of another shape, or a file is damaged.
    """
    left = dict(tensors)
    for file in weight_files(folder, setting):
        if file.suffix != ".safetensors":
            raise ValueError(f"{setting}: an export holds safetensors, this one has {file.name}")
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    own = left.pop(name.removeprefix("model."), None)
                    if own is None:
                        raise ValueError(f"{setting}: {file.name} holds {name}, unknown here")
                    value = opened.get_tensor(name)
                    if value.shape != own.shape:
                        raise ValueError(
                            f"{setting}: {name} has shape {tuple(value.shape)}, its config"
                            f" says {tuple(own.shape)}"
                        )
                    own.copy_(value)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{setting}: {file.name} is damaged ({error})") from None
    # A shared embedding is saved once.
    there = {value.data_ptr() for name, value in tensors.items() if name not in left}
    if missing := [name for name, value in left.items() if value.data_ptr() not in there]:
        raise ValueError(f"{setting}: its files lack {missing[0]}")


def tokenizer_of(folder: Path, setting: str) -> Tokenizer:
    """The tokenizer that the model was trained with.

    Raises:
        ValueError: the folder does not say which.
    """
    if (folder / TOKENIZER_MODEL).is_file():
        return SentencePieceTokenizer(str(folder / TOKENIZER_MODEL))
    facts: dict[str, Any] = read_json(folder / TOKENIZER_FACTS, setting)
    if facts.get("kind") != "bytes":
        raise ValueError(
            f"{setting}: holds no {TOKENIZER_MODEL}, and its {TOKENIZER_FACTS} does not say"
            " that it reads bytes"
        )
    return ByteTokenizer()
