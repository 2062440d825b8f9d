"""What a command line asks to be read and written, checked before torch is imported."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from litmegalodon import checkpoints
from litmegalodon.inference.drawing import Drawing, check_stops
from litmegalodon.inference.prompts import TextFiles, checked, find_text
from litmegalodon.runs.settings import check_values

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Request:
    """What is read and how it is continued.

    Attributes:
        document: files to read first.
        standard_input: whether to read that instead.
        prompts: texts of which each follows what was read; at least one, which may be empty.
        stops: strings that end a text.
        drawing: settings of `Drawing`.
    """

    document: TextFiles | None
    standard_input: bool
    prompts: tuple[bytes, ...]
    stops: tuple[str, ...]
    drawing: dict[str, Any]


def check_request(cfg: DictConfig, texts: Mapping[str, Sequence[str]]) -> Request:
    """Check a composed configuration, and replace `ckpt_path` by the checkpoint that it means.

    Args:
        cfg: settings of configs/generate.yaml.
        texts: the values of `prompt` and `stop` on the command line.

    Raises:
        ValueError: a setting's name as typed, its value and the fix.
    """
    OmegaConf.resolve(cfg)
    check_values(cfg)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    drawing = {name: cfg[name] for name in names}
    Drawing(**drawing)
    prompts = [os.fsencode(text) for text in texts["prompt"] or _strings(cfg, "prompt")]
    for prompt in prompts:
        for _ in checked([prompt], f"prompt={prompt.decode(errors='replace')}"):
            pass
    stops = check_stops(texts["stop"] or _strings(cfg, "stop"))
    if not cfg.max_new_tokens and not cfg.save_state:
        raise ValueError("max_new_tokens=0: without save_state= there is nothing to do; give one")
    _check_files(cfg, len(prompts))
    if OmegaConf.is_missing(cfg, "ckpt_path") or not cfg.ckpt_path:
        raise ValueError("ckpt_path: give the checkpoint to write with, or `last` for the newest")
    task_dir = Path(cfg.paths.log_dir) / cfg.last_of
    cfg.ckpt_path = str(checkpoints.find("ckpt_path", str(cfg.ckpt_path), task_dir, exports=True))

    typed = sys.stdin is None or sys.stdin.isatty()
    from_input = cfg.prompt_file == STANDARD_INPUT
    from_input = from_input or not (prompts or cfg.prompt_file or typed)
    document = None
    if cfg.prompt_file and not from_input:
        document = find_text("prompt_file", str(cfg.prompt_file))
    return Request(document, from_input, tuple(prompts) or (b"",), stops, drawing)


def _strings(cfg: DictConfig, name: str) -> list[str]:
    """A setting that is one string or a list of them, from a config file."""
    value = cfg[name]
    if isinstance(value, str):
        return [value]
    if OmegaConf.is_list(value) and all(isinstance(item, str) for item in value):
        return list(value)
    raise ValueError(f"{name}={value}: must be a text or a list of texts")


def _check_files(cfg: DictConfig, prompts: int) -> None:
    """The snapshot to go on from is there, and one can be written where it is asked for."""
    for name in ("state", "save_state"):
        if cfg[name] is not None:
            cfg[name] = str(Path(str(cfg[name])).expanduser())
    if cfg.state is not None and not Path(cfg.state).is_file():
        raise ValueError(f"state={cfg.state}: there is no such file; make one with save_state=")
    if cfg.save_state is None:
        return
    if prompts > 1:
        raise ValueError(
            f"save_state={cfg.save_state}: {prompts} prompts leave as many states; give one prompt,"
            " or none to keep what prompt_file= is"
        )
    path = Path(cfg.save_state).absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"save_state={cfg.save_state}: must be a file in a folder that exists")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"save_state={cfg.save_state}: its folder can't be written to")
