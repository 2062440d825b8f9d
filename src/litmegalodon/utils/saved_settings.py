"""The settings that a checkpoint was trained with."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from litmegalodon.utils import checkpoints
from litmegalodon.utils.printing import say, short_path

# What the numbers of an evaluation depend on.
DECISIVE = ("seed", "data", "model", "trainer.precision", "trainer.limit_val_batches")


def adopt_settings(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Replace in an evaluation's configuration what decides its numbers by the values of the run
    that wrote `ckpt_path`, then put the command line's overrides on top.

    Raises:
        ValueError: `ckpt_path` is no checkpoint.
    """
    if OmegaConf.is_missing(cfg, "ckpt_path") or not cfg.ckpt_path:
        raise ValueError("ckpt_path: give the checkpoint to evaluate, or `last` for the newest one")
    task_dir = Path(cfg.paths.log_dir) / cfg.last_of
    checkpoint = checkpoints.find("ckpt_path", str(cfg.ckpt_path), task_dir)
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
                OmegaConf.update(cfg, name, value, merge=False)
        for override in given:
            key = override.key_or_group
            if key.startswith(("data.", "model.")) and not override.is_delete():
                OmegaConf.update(cfg, key, override.value())
