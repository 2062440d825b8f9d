"""Configurations as the entry points get them."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from litmegalodon.utils.command_line import quote_path

CONFIGS = Path(__file__).parents[1] / "configs"


def composed(*overrides: str, folder: Path, name: str = "train") -> DictConfig:
    """The configuration `name` with its logs in a folder and its run in a folder `run` there."""
    paths = [f"paths.log_dir={folder}", f"paths.output_dir={folder}/run", "paths.work_dir=."]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, [*map(quote_path, overrides), *paths])
