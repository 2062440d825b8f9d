"""What was read of a text, as a file: read once, continued many times, by the same model only.

A safetensors file with the tensors of `MegalodonState` and the last token, and beside them, as
metadata, what they are worth nothing without: the model's config, dtype and weights, and the
tokenizer. Its size depends on the model and on how full the open chunk is, at most a chunk, and not
on the length of the text.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from litmegalodon.checkpoints.files import check_same_model
from litmegalodon.inference.text_state import TextState
from litmegalodon.models import Megalodon, MegalodonState

FORMAT = "litmegalodon snapshot 1"
# Values of a parameter that its fingerprint reads.
SAMPLES = 256


def save_state(path: str | Path, state: TextState, model: Megalodon, tokenizer: Any) -> None:
    """Write a snapshot; it appears under its name only once it is whole.

    Raises:
        OSError: it can't be written.
    """
    path, memory = Path(path), state.memory
    if memory is None:
        memory = model.fresh_state()
    tensors = memory.tensors() | {"last": torch.tensor([state.last])}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = {"format": FORMAT, "config": json.dumps(model.config.to_dict())}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, about | _fingerprints(model, tokenizer))
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"save_state={path}: can't be written ({error})") from None
    finally:
        partial.unlink(missing_ok=True)


def load_state(path: str | Path, model: Megalodon, tokenizer: Any) -> TextState:
    """Read a snapshot onto the model's device.

    Raises:
        ValueError: the file is no whole snapshot, or one of another model or tokenizer.
    """
    setting = f"state={path}"
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(
                    f"{setting}: is no snapshot ({FORMAT}) but another safetensors file; make one"
                    " with save_state="
                )
            _check(about, model, tokenizer, setting)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"{setting}: there is no such file; make one with save_state=") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{setting}: is no whole snapshot ({error}); make it again with save_state="
        ) from None
    position = tensors.get("position", torch.empty(0))
    place = int(position[0]) if position.shape == (1,) else 0
    expected = model.fresh_state(place).tensors()
    expected["last"] = torch.zeros(1, dtype=torch.int64)
    last = int(tensors["last"]) if _kinds(tensors) == _kinds(expected) else -1
    if not 0 <= last < tokenizer.vocab_size:
        raise ValueError(f"{setting}: its tensors are not those of a snapshot; make it again")
    return TextState(MegalodonState.from_tensors(tensors).to(model.embed.weight.device), last)


def fingerprint(model: Megalodon) -> str:
    """16 hex digits of a model's weights, from evenly spaced values of every parameter.

    Cheap for any size. Two models that differ in a few values in between have the same.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64)
        values = flat[places.long().to(flat.device)].double().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def _kinds(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}


def _fingerprints(model: Megalodon, tokenizer: Any) -> dict[str, str]:
    return {
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "tokenizer": tokenizer.fingerprint,
        "weights": fingerprint(model),
    }


def _check(about: dict[str, str], model: Megalodon, tokenizer: Any, setting: str) -> None:
    """Compare a snapshot's metadata with the model and tokenizer that are to go on from it."""
    try:
        theirs = json.loads(about["config"])
    except (KeyError, ValueError):
        raise ValueError(f"{setting}: names no model; make it again with save_state=") from None
    check_same_model(model.config.to_dict(), theirs, setting)
    for name, ours in _fingerprints(model, tokenizer).items():
        if about.get(name) != ours:
            raise ValueError(
                f"{setting}: is of {name} {about.get(name)}, and this model's is {ours}; read the"
                " text again with this one"
            )
