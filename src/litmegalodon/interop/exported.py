"""Models that scripts/export_checkpoint.py wrote, read again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from litmegalodon.data import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from litmegalodon.interop.config_json import config_from
from litmegalodon.interop.foreign_files import read_json, weight_files
from litmegalodon.models import LanguageModel, MegalodonConfig

# What `model_type` says in config.json. Not "megalodon": that is megalodon-hf's, whose weights
# mean something else under the same names.
MODEL_TYPE = "litmegalodon"
TOKENIZER_MODEL = "tokenizer.model"
TOKENIZER_FACTS = "tokenizer_config.json"
_FLOATS = ("F64", "F32", "BF16", "F16")


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
    return config_from(found, f"{setting}: config.json")


def check_files(folder: Path, model: LanguageModel, setting: str) -> None:
    """Compare the files' tensors with a network's, of which no memory need be taken yet.

    Raises:
        ValueError: one is missing, unknown, of another shape or no floating-point numbers, or a
            file is damaged.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    left = dict(own)
    for file in weight_files(folder, setting):
        if file.suffix != ".safetensors":
            raise ValueError(f"{setting}: an export holds safetensors, this one has {file.name}")
        with _opened(file, setting) as opened:
            for name in opened.keys():  # noqa: SIM118
                like = left.pop(name.removeprefix("model."), None)
                if like is None:
                    raise ValueError(f"{setting}: {file.name} holds {name}, unknown here")
                found = opened.get_slice(name)
                shape, dtype = tuple(found.get_shape()), found.get_dtype()
                if shape != like.shape:
                    raise ValueError(
                        f"{setting}: {name} has shape {shape}, its config says {tuple(like.shape)}"
                    )
                if dtype not in _FLOATS:
                    raise ValueError(f"{setting}: {name} is {dtype}, no floating-point numbers")
    # A shared embedding is saved once.
    there = {id(value) for name, value in own.items() if name not in left}
    if missing := [name for name, value in left.items() if id(value) not in there]:
        raise ValueError(f"{setting}: its files lack {missing[0]}")


def fill(folder: Path, tensors: Mapping[str, Tensor], setting: str) -> None:
    """Fill a network's tensors from files that were checked, in the network's own dtypes."""
    for file in weight_files(folder, setting):
        with _opened(file, setting) as opened:
            for name in opened.keys():  # noqa: SIM118
                tensors[name.removeprefix("model.")].copy_(opened.get_tensor(name))


@contextmanager
def _opened(file: Path, setting: str) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{setting}: {file.name} is damaged ({error})") from None


def tokenizer_of(folder: Path, setting: str) -> Tokenizer:
    """The tokenizer that the model was trained with.

    Raises:
        ValueError: the folder does not say which, or holds another one than it says.
    """
    facts: dict[str, Any] = read_json(folder / TOKENIZER_FACTS, setting)
    model = folder / TOKENIZER_MODEL
    if not model.is_file() and facts.get("kind") != "bytes":
        raise ValueError(
            f"{setting}: holds no {TOKENIZER_MODEL}, and its {TOKENIZER_FACTS} does not say"
            " that it reads bytes"
        )
    tokenizer = SentencePieceTokenizer(str(model)) if model.is_file() else ByteTokenizer()
    if facts.get("fingerprint", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise ValueError(
            f"{setting}: the model was trained with the tokenizer {facts['fingerprint']}, and its"
            f" files make {tokenizer.fingerprint}; give it the {TOKENIZER_MODEL} that it had"
        )
    return tokenizer
