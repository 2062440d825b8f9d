"""A checkpoint's weights for others, read from its shards by one process without the optimizer.

Safetensors are written file after file, so that no more than one file's tensors are in memory; the
reference's single pickle takes all weights at once.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from litmegalodon.checkpoints.files import read_meta, read_tensors
from litmegalodon.checkpoints.model import WEIGHTS, saved_config, saved_tokenizer
from litmegalodon.data import Tokenizer
from litmegalodon.interop.card import Facts, model_card
from litmegalodon.interop.exported import MODEL_TYPE, TOKENIZER_FACTS, TOKENIZER_MODEL
from litmegalodon.models import Megalodon, MegalodonConfig
from litmegalodon.models.config import SWITCHES
from litmegalodon.utils.whole_folder import whole_folder

FORMATS = ("hf", "safetensors", "reference")
DTYPES = ("float32", "bfloat16")


def export(
    checkpoint: Path,
    output: Path,
    format: str,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
) -> Facts:
    """Write a checkpoint's weights, config, tokenizer and model card into a new folder.

    Args:
        checkpoint: a complete one.
        output: the folder, whole or missing whatever happens.
        format: hf (for transformers with `import litmegalodon.interop.hf`), safetensors (the same
            under the names of this project's own modules) or reference (consolidated.pth).
        dtype: of matrices; CEMA and norms stay float32.
        shard_bytes: what a safetensors file holds at most, a larger tensor aside.

    Returns:
        what the model card says.

    Raises:
        ValueError: a setting, the checkpoint or the folder is no good.
    """
    for name, value, choices in (("format", format, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in choices:
            raise ValueError(f"{name}={value}: must be {', '.join(choices[:-1])} or {choices[-1]}")
    setting = f"ckpt_path={checkpoint}"
    meta = read_meta(checkpoint, setting)
    tokenizer = saved_tokenizer(checkpoint, setting)
    config = saved_config(meta, setting)
    if not isinstance(config, MegalodonConfig):
        raise ValueError(f"{setting}: is a {config.kind}, and only a Megalodon is exported")
    replaced = [name for name, kinds in SWITCHES.items() if getattr(config, name) != kinds[0]]
    if format == "reference" and (replaced or config.chunk_size is None):
        names = ", ".join(f"model.config.{name}" for name in replaced or ["chunk_size"])
        raise ValueError(f"format=reference: the reference has no {names} as here; take another")
    with torch.device("meta"):
        model = Megalodon(config).to(getattr(torch, dtype))
    facts = Facts.of(checkpoint, meta, model, tokenizer, format, dtype)
    with whole_folder(output, "output") as folder:
        if format == "reference":
            _write_reference(folder, checkpoint, model, setting, dtype)
        else:
            prefix = "model." if format == "hf" else ""
            _write_safetensors(folder, checkpoint, model, setting, prefix, shard_bytes)
            _write_json(folder / "config.json", _config_json(config, tokenizer, dtype, format))
        _write_tokenizer(folder, tokenizer, config, format)
        (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    return facts


def _read(checkpoint: Path, like: Mapping[str, Tensor], setting: str) -> dict[str, Tensor]:
    """The checkpoint's tensors of these names in the dtypes of `like`."""
    tensors = {name: torch.empty_like(value, device="cpu") for name, value in like.items()}
    read_tensors(checkpoint, {f"{WEIGHTS}{n}": value for n, value in tensors.items()}, setting)
    return tensors


def _distinct(model: Megalodon) -> dict[str, Tensor]:
    """A shared embedding once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _files(tensors: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of at most so many bytes, in their order."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, value in tensors.items():
        if group and size + value.nbytes > most:
            yield group
            group, size = {}, 0
        group[name] = value
        size += value.nbytes
    yield group


def _write_safetensors(
    folder: Path, checkpoint: Path, model: Megalodon, setting: str, prefix: str, most: int
) -> None:
    groups = list(_files(_distinct(model), most))
    places: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        file = "model.safetensors" if len(groups) == 1 else file
        tensors = {f"{prefix}{k}": v for k, v in _read(checkpoint, group, setting).items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # safetensors lets nobody else read it; an export is for others.
        (folder / file).chmod(folder.stat().st_mode & 0o666)
        places |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_reference(
    folder: Path, checkpoint: Path, model: Megalodon, setting: str, dtype: str
) -> None:
    """The names, shapes and buffers of the reference's own model, and the two files beside it."""
    config = model.config
    tensors = _read(checkpoint, _distinct(model), setting)
    if config.share_emb:
        tensors["output.output.weight"] = tensors["embed.weight"]
    z = config.z_dim // config.num_heads
    exponents = torch.arange(0, z, 2, dtype=torch.float64) / z
    tensors["rope.freqs"] = ((config.rope_base or 10_000.0) ** -exponents).float()
    norms = [f"layers.{i}.mega.timenorm" for i in range(config.num_layers)]
    for norm in [*norms, "output.final_norm"]:
        tensors[f"{norm}.prior_count"] = torch.tensor(0)
        for name in ("prior_mean", "prior_logv"):
            tensors[f"{norm}.{name}"] = torch.zeros(config.norm_num_groups)
    torch.save(tensors, folder / "consolidated.pth")
    # It refuses fields that it does not know.
    sizes = {k: v for k, v in config.to_dict().items() if k not in SWITCHES}
    kept = {"tokenizer": {"path": TOKENIZER_MODEL}, "model": sizes}
    _write_json(folder / "config.json", kept)
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    about = {"model_parallel_size": 1, "dtype": short}
    _write_json(folder / "consolidate_config.json", about)


def _config_json(
    config: MegalodonConfig, tokenizer: Tokenizer, dtype: str, format: str
) -> dict[str, Any]:
    written = config.to_dict() | {
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
        "tie_word_embeddings": config.share_emb,
    }
    return written | ({"architectures": ["MegalodonForCausalLM"]} if format == "hf" else {})


def _write_tokenizer(
    folder: Path, tokenizer: Tokenizer, config: MegalodonConfig, format: str
) -> None:
    model: bytes | None = getattr(tokenizer, "model", None)
    if model is not None:
        (folder / TOKENIZER_MODEL).write_bytes(model)
    if format == "reference":
        return
    facts: dict[str, Any] = {
        "kind": "bytes" if model is None else "sentencepiece",
        "fingerprint": tokenizer.fingerprint,
    }
    if format == "hf":
        facts |= {"tokenizer_class": "MegalodonTokenizer", "padding_side": "left"}
        # As this project's own drawing: BOS only opens documents, other ids are no text.
        never = [tokenizer.bos_id, *range(tokenizer.vocab_size, config.num_outputs)]
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.eos_id}
        named = {f"{name}_token_id": value for name, value in ids.items()}
        _write_json(folder / "generation_config.json", named | {"suppress_tokens": never})
    _write_json(folder / TOKENIZER_FACTS, facts)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
