"""The settings that a checkpoint was trained with."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from litmegalodon import checkpoints
from litmegalodon.utils.printing import say, short_path

# What the numbers of an evaluation depend on.
DECISIVE = ("seed", "data", "model", "trainer.precision", "trainer.limit_val_batches")


def adopt_settings(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Replace in an evaluation's configuration what decides its numbers by the values of the run
    that wrote `ckpt_path`, then put the command line's overrides on top.

    Raises:
        ValueError: `ckpt_path` is no checkpoint, or its settings name code that this project's
            configs do not name.
    """
    if OmegaConf.is_missing(cfg, "ckpt_path") or not cfg.ckpt_path:
        raise ValueError("ckpt_path: give the checkpoint to evaluate, or `last` for the newest one")
    if not isinstance(cfg.last_of, str):
        raise ValueError(f"last_of={cfg.last_of}: must be text, the task_name of a run")
    task_dir = Path(cfg.paths.log_dir) / cfg.last_of
    checkpoint = checkpoints.find("ckpt_path", str(cfg.ckpt_path), task_dir)
    # None is only what `auto` may give.
    assert checkpoint is not None
    path = checkpoints.run_config(checkpoint)
    cfg.ckpt_path = str(checkpoint)
    if path is None:
        say(f"{short_path(checkpoint)}: has no settings beside it, those of configs/eval.yaml hold")
        return
    saved = OmegaConf.load(path)
    given = OverridesParser.create().parse_overrides(list(overrides))
    # data=name on the command line is another group, which takes the place of the saved one whole.
    groups = {override.key_or_group for override in given}
    with open_dict(cfg):
        for name in DECISIVE:
            value = OmegaConf.select(saved, name)
            if value is not None and name not in groups:
                check_targets(value, name, cfg, path)
                OmegaConf.update(cfg, name, value, merge=False)
        for override in given:
            key = override.key_or_group
            if key.startswith(("data.", "model.")) and not override.is_delete():
                OmegaConf.update(cfg, key, override.value())


def check_targets(node: Any, name: str, cfg: DictConfig, path: Path) -> None:
    """Refuse settings from elsewhere that would have other code run than this project's do.

    What a node's `_target_` names is called when it is made; `os.system` is a name as good as any.

    Args:
        node: saved settings.
        name: of these settings.
        cfg: the configuration at hand.
        path: the file that they come from.

    Raises:
        ValueError: a `_target_` stands neither in `cfg` nor in any file of configs/.
    """
    ours = {target for _, target in _targets(cfg, "")}
    folder = Path(os.environ["PROJECT_ROOT"]) / "configs"
    for file in folder.rglob("*.yaml"):
        ours |= set(re.findall(r"^\s*_target_: (\S+)$", file.read_text(), re.MULTILINE))
    for where, target in _targets(node, name):
        if target not in ours:
            raise ValueError(
                f"{where}={target}: {path} names it and no config of this project does; code that a"
                f" checkpoint names is not run, give {name.partition('.')[0]}=... yourself"
            )


def _targets(node: Any, name: str) -> Iterator[tuple[str, str]]:
    """The `_target_` of a node and of all inside it, by name."""
    if OmegaConf.is_list(node):
        items = [(str(i), node._get_node(i)) for i in range(len(node))]
    elif OmegaConf.is_dict(node):
        items = [(str(key), node._get_node(key)) for key in node]
    else:
        return
    for key, value in items:
        inner = f"{name}.{key}" if name else key
        if key == "_target_":
            # As it is written: an interpolation is no name.
            yield inner, str(value._value())
        else:
            yield from _targets(value, inner)
