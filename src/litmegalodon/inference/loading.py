"""A trained model and its tokenizer from a checkpoint, in one process and with nothing run that it
names.
"""

from pathlib import Path

import torch

from litmegalodon import checkpoints
from litmegalodon.checkpoints.files import read_meta, read_tensors
from litmegalodon.checkpoints.model import WEIGHTS, saved_config, saved_tokenizer
from litmegalodon.data import Tokenizer
from litmegalodon.interop import exported
from litmegalodon.models import LanguageModel, ModelConfig

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
    assert path is not None
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    place = _device(device)
    exported_there = checkpoints.is_export(path)
    config: ModelConfig
    if exported_there:
        config = exported.read_config(path, setting)
    else:
        config = saved_config(read_meta(path, setting), setting)
    if tokenizer is None:
        find_tokenizer = exported.tokenizer_of if exported_there else saved_tokenizer
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
