"""Tensors from other people's files, of which nothing is run."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# What torch's unpickler says of a name that it will not look up.
_NAMED = re.compile(r"(?:GLOBAL|[Uu]nsupported (?:global|class|type)[: ]+)\s*([\w.]+)")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def read_json(path: Path, setting: str) -> dict[str, Any]:
    """A JSON object; ValueError where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        what = f"{path.name} in it" if path.parent.is_dir() else "such folder"
        raise ValueError(f"{setting}: there is no {what}") from None
    except RecursionError:
        raise ValueError(f"{setting}: {path.name} cannot be read (it is nested too deep)") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{setting}: {path.name} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{setting}: {path.name} is no JSON object")
    return found


def read_pickle(path: Path, setting: str) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, which stay on the disk until they are used.

    Raises:
        ValueError: the file would run code, is damaged, or holds more than named tensors.
    """
    try:
        found = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except FileNotFoundError:
        raise ValueError(f"{setting}: there is no file {path.name}") from None
    except pickle.UnpicklingError as error:
        name = _NAMED.search(str(error))
        if name:
            raise ValueError(
                f"{setting}: {path.name} asks for {name[1]}, which would run code and is refused;"
                " save the tensors alone, as torch.save(model.state_dict(), ...)"
            ) from None
        raise ValueError(f"{setting}: {path.name} is damaged or no file of torch.save") from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{setting}: {path.name} cannot be read ({said})") from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise ValueError(f"{setting}: {path.name} holds more than tensors by their names")
    return found


def read_safetensors(path: Path, setting: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError where it is damaged or missing."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"{setting}: there is no file {path.name}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{setting}: {path.name} is damaged ({error})") from None


def weight_files(folder: Path, setting: str) -> list[Path]:
    """The files that hold a model's weights in the way of the Hugging Face Hub.

    One file or those of an index, safetensors before pickles.

    Raises:
        ValueError: there are none, or the index names one outside the folder or of another kind.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if not index.is_file():
            continue
        places = read_json(index, setting).get("weight_map")
        if not isinstance(places, Mapping) or not places:
            raise ValueError(f"{setting}: {index.name} has no weight_map")
        files = sorted({str(file) for file in places.values()})
        if any(Path(file).name != file for file in files):
            raise ValueError(f"{setting}: {index.name} names files outside the folder")
        if other := [file for file in files if Path(file).suffix not in (".safetensors", ".bin")]:
            raise ValueError(f"{setting}: {index.name} names {other[0]!r}, which holds no weights")
        return [folder / file for file in files]
    raise ValueError(f"{setting}: holds neither {' nor '.join(_WEIGHTS)}, nor an index of either")


def read_weights(folder: Path, setting: str) -> dict[str, Tensor]:
    """All tensors of `weight_files`.

    Raises:
        ValueError: a file is missing, damaged or would run code, or a tensor is in two of them.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder, setting):
        read = read_safetensors if file.suffix == ".safetensors" else read_pickle
        more = read(file, setting)
        if twice := sorted(tensors.keys() & more.keys()):
            raise ValueError(f"{setting}: {twice[0]} is in {file.name} and in a file before it")
        tensors |= more
    return tensors
