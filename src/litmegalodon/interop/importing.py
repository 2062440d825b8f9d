"""Checkpoints of other implementations read whole, and written as one of this project."""

import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import Tensor

from litmegalodon.checkpoints import META
from litmegalodon.data import Tokenizer
from litmegalodon.interop import megalodon_hf
from litmegalodon.interop.config_json import config_from
from litmegalodon.interop.exported import read_config
from litmegalodon.interop.foreign_files import (
    read_json,
    read_pickle,
    read_weights,
)
from litmegalodon.interop.reference import check_reference_state_dict
from litmegalodon.interop.shards import merge_shards
from litmegalodon.models import Megalodon, MegalodonConfig

SOURCES = ("reference", "megalodon-hf", "export")
# The reference rounds its rotary frequencies with the weights, at most to bfloat16.
_BFLOAT16 = 2**-7


class Foreign(NamedTuple):
    """A network from elsewhere: its config, its tensors under the reference's names, and what a
    user should know of it, in sentences.
    """

    config: MegalodonConfig
    tensors: dict[str, Tensor]
    notes: list[str]


def read_foreign(
    source: str,
    path: str | Path,
    config: MegalodonConfig | None = None,
    accept_different_norm: bool = False,
) -> Foreign:
    """Read a checkpoint of another implementation, of which nothing is run.

    Args:
        source: reference (consolidated.pth, or the folder with it or with its model-parallel
            shards), megalodon-hf (a folder with config.json and weights) or export (a folder that
            scripts/export_checkpoint.py wrote in its format hf or safetensors).
        path: the file or folder.
        config: the network's, where the reference's config.json is not beside its weights.
        accept_different_norm: take weights of megalodon-hf although they were trained with another
            TimestepNorm.

    Raises:
        ValueError: the files are missing, damaged, would run code, or are of no such model.
    """
    setting = f"path={path}"
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{setting}: there is no such file or folder")
    if source == "reference":
        return _read_reference(place, setting, config)
    if not place.is_dir():
        raise ValueError(f"{setting}: must be a folder that holds config.json and the weights")
    if source == "megalodon-hf":
        return _read_megalodon_hf(place, setting, accept_different_norm)
    if source == "export":
        tensors = read_weights(place, setting)
        bare = {name.removeprefix("model."): value for name, value in tensors.items()}
        if len(bare) < len(tensors):
            raise ValueError(f"{setting}: holds a tensor under two names, with model. and without")
        return Foreign(read_config(place, setting), bare, [])
    raise ValueError(f"from={source}: must be {', '.join(SOURCES[:-1])} or {SOURCES[-1]}")


def as_model(foreign: Foreign, setting: str) -> Megalodon:
    """The network with its weights in float32, on the CPU.

    Takes the tensors out of `foreign` one by one, so that there is no second copy of all.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape or not finite.
    """
    with torch.device("meta"):
        model = Megalodon(foreign.config)
    try:
        check_reference_state_dict(model, foreign.tensors)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(foreign.tensors.pop(name))
            if not parameter.isfinite().all():
                raise ValueError(
                    f"{setting}: {name} holds NaN or infinite values in float32: the file is"
                    " damaged, or what trained it failed; take an earlier checkpoint"
                )
    return model


def write_checkpoint(
    model: Megalodon,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    folder: Path,
    origin: Mapping[str, str],
) -> Path:
    """Write a run's folder with a checkpoint that `init_from=`, evaluation and generation take.

    Args:
        settings: what the run's configuration would hold: data and model.
        folder: an empty folder.
        origin: where the weights come from, kept in the checkpoint.

    Returns:
        the checkpoint.
    """
    # It takes a second to import, which those who only read need not wait for.
    from litmegalodon.data import TextDataModule

    path = folder / "checkpoints" / "imported.ckpt"
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is .*")
        dcp.save({"state_dict": tensors}, checkpoint_id=path, no_dist=True)
    meta = {
        "hyper_parameters": {"config": model.config.to_dict(), "resume": {}},
        "global_step": 0,
        "epoch": 0,
        "tokens": 0,
        "pytorch-lightning_version": version("lightning"),
        # Whoever goes on with the weights has to have the same ids.
        TextDataModule.__qualname__: {"tokenizer.fingerprint": tokenizer.fingerprint},
        "imported": dict(origin),
    }
    torch.save(meta, path / META)
    (folder / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(dict(settings)), folder / ".hydra" / "config.yaml")
    return path


def _read_reference(path: Path, setting: str, config: MegalodonConfig | None) -> Foreign:
    folder = path if path.is_dir() else path.parent
    files = _shards(folder, setting) if path.is_dir() else [path]
    try:
        tensors, unequal = merge_shards([read_pickle(file, setting) for file in files])
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(setting) else f"{setting}: {text}") from None
    notes = [f"read {', '.join(file.name for file in files)}"]
    if unequal:
        notes.append(
            f"{len(unequal)} tensors that every shard holds whole differ between shards, as"
            f" {unequal[0]}; the first shard's are taken"
        )
    if (folder / "config.json").is_file():
        config = _reference_config(folder, tensors, setting)
        notes.append("sizes are those of the config.json beside it")
    elif config is None:
        raise ValueError(f"{setting}: there is no config.json beside it; give the model's config")
    elif not isinstance(config, MegalodonConfig):
        raise ValueError(
            f"{setting}: is a Megalodon, and model= gives a {config.kind}; leave it out"
        )
    else:
        notes.append("there is no config.json beside it: sizes are those of model.config")
    return Foreign(config, tensors, notes + _check_rope(tensors, config, setting))


def _shards(folder: Path, setting: str) -> list[Path]:
    """The one file, or those of all model-parallel ranks in their order."""
    if (folder / "consolidated.pth").is_file():
        return [folder / "consolidated.pth"]
    found = {
        int(match[1]): file
        for file in folder.iterdir()
        if (match := re.fullmatch(r"consolidated\.(\d+)\.pth", file.name))
    }
    if not found:
        raise ValueError(f"{setting}: holds neither consolidated.pth nor consolidated.00.pth")
    count = len(found)
    if (folder / "consolidate_config.json").is_file():
        told = read_json(folder / "consolidate_config.json", setting).get("model_parallel_size")
        count = told if isinstance(told, int) else count
    if sorted(found) != list(range(count)):
        missing = sorted(set(range(max(count, max(found) + 1))) - set(found))
        what = f"consolidated.{missing[0]:02d}.pth is missing" if missing else "there are too many"
        raise ValueError(f"{setting}: has {len(found)} shards of {count}: {what}")
    return [found[rank] for rank in range(count)]


def _reference_config(folder: Path, tensors: Mapping[str, Tensor], setting: str) -> MegalodonConfig:
    found = read_json(folder / "config.json", setting).get("model")
    if not isinstance(found, Mapping):
        raise ValueError(f"{setting}: config.json has no part `model`, as the reference's has")
    known = dict(found)
    if known.get("vocab_size", -1) == -1 and "embed.weight" in tensors:
        # The reference fills it in from its tokenizer.
        known["vocab_size"] = len(tensors["embed.weight"])
    # How the weights once began changes none.
    known.pop("init_mode", None)
    return config_from(known, f"{setting}: config.json")


def _check_rope(tensors: Mapping[str, Tensor], config: MegalodonConfig, setting: str) -> list[str]:
    """The saved rotary frequencies tell the heads and the base, which no other shape does.

    Returns:
        a note where they were rounded.
    """
    saved = tensors.get("rope.freqs")
    if saved is None:
        return []
    z = config.z_dim // config.num_heads
    if saved.shape != (z // 2,):
        raise ValueError(
            f"{setting}: model.config.num_heads={config.num_heads}: its rotary frequencies are of"
            f" heads of {2 * saved.numel()} features, and these have {z}"
        )
    expected = (config.rope_base or 10_000.0) ** -(torch.arange(0, z, 2, dtype=torch.float64) / z)
    if not torch.allclose(saved.double(), expected, rtol=_BFLOAT16, atol=0):
        raise ValueError(
            f"{setting}: model.config.rope_base={config.rope_base}: its rotary frequencies are of"
            f" another base{_base_of(saved)}"
        )
    if torch.allclose(saved.double(), expected, rtol=1e-5, atol=0):
        return []
    return [
        "its rotary frequencies were rounded, and it may have been trained with them; here they are"
        " exact, so that outputs far into a chunk differ from what it gave there"
    ]


def _base_of(frequencies: Tensor) -> str:
    if len(frequencies) < 2 or not 0 < float(frequencies[-1]) < 1:
        return ""
    z = 2 * len(frequencies)
    return f", about {float(frequencies[-1]) ** (-z / (z - 2)):.0f}"


def _read_megalodon_hf(path: Path, setting: str, accept_different_norm: bool) -> Foreign:
    if not accept_different_norm:
        raise ValueError(
            f"{setting}: {megalodon_hf.DIFFERENT_NORM}: with its weights this model gives other"
            " outputs until it is trained on; set accept_different_norm=true to take them"
            " nevertheless"
        )
    theirs = read_json(path / "config.json", setting)
    tensors = read_weights(path, setting)
    try:
        config = megalodon_hf.own_config(theirs, tensors)
        own = megalodon_hf.own_tensors(tensors, config)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    warning = f"{megalodon_hf.DIFFERENT_NORM}: expect other outputs until it is trained on"
    return Foreign(config, own, [warning, *megalodon_hf.different_function(theirs)])
