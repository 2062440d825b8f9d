"""What a run says about itself, once however many processes it has."""

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.syntax import Syntax
from rich.tree import Tree

from litmegalodon.utils.command_line import is_main_process

LIGHTNING_LOGS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)
REMARKS = (
    "GPU available",
    "TPU available",
    "Initializing distributed",
    "-----",
    "Restoring states",
    # Names the checkpoint that was asked for, which a damaged one's predecessor may stand for.
    "Restored all states",
    # the sign before an advertisement
    "\N{ELECTRIC LIGHT BULB}",
)


def say(text: str) -> None:
    """Print a line."""
    if is_main_process():
        print(text, flush=True)


def harmless(text: str) -> str:
    """Text for a terminal: what a model writes must not command it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def opening(cfg: DictConfig) -> None:
    """The first lines of a run: its settings, its folder and the checkpoint it starts from."""
    if cfg.extras.ignore_warnings:
        warnings.filterwarnings("ignore")
    folder = Path(cfg.paths.output_dir)
    # Hydra makes its own run folder; this one may be another.
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.extras.print_config:
        print_config(cfg, folder)
    say(f"run folder: {short_path(folder)}")
    if cfg.get("train"):
        say_where_the_schedule_ends(cfg)
    if cfg.get("init_from"):
        say(f"weights from: {short_path(Path(cfg.init_from))}")
    if cfg.get("ckpt_path"):
        checkpoint = Path(cfg.ckpt_path)
        say(f"checkpoint: {short_path(checkpoint)}")
        earlier = checkpoint.parent.parent
        if cfg.get("train") and earlier != folder:
            say(
                "this run's metrics and checkpoints go to its own folder;"
                f" hydra.run.dir={short_path(earlier)} would add to the earlier one"
            )


def say_where_the_schedule_ends(cfg: DictConfig) -> None:
    """Say so where steps come after the schedule's end: allowed, but seldom meant."""
    schedule, steps = cfg.model.scheduler, cfg.trainer.max_steps
    if schedule.kind != "constant" and steps > schedule.total_steps:
        say(
            f"trainer.max_steps={steps} goes past model.scheduler.total_steps="
            f"{schedule.total_steps}: steps after that keep the final rate,"
            f" {schedule.final_ratio:g} of model.optimizer.lr"
        )


def tame_lightning() -> None:
    """Take off the screen what Lightning says of hardware and hosted services, or says twice."""
    # Hydra's handlers print the same messages again.
    logging.getLogger("lightning").handlers.clear()
    for name in LIGHTNING_LOGS:
        logging.getLogger(name).addFilter(
            lambda record: not record.getMessage().startswith(REMARKS)
        )
    # Lightning meets a newer torch; an evaluation needs none of training's callbacks.
    for message in (".*treespec, LeafSpec.*", ".*callbacks used to create the checkpoint.*"):
        warnings.filterwarnings("ignore", message=message)


def print_config(cfg: DictConfig, folder: Path) -> None:
    """Print a configuration as a tree and save it as config_tree.log in a folder."""
    if not is_main_process():
        return
    tree = Tree("settings")
    for name, value in cfg.items():
        text = OmegaConf.to_yaml(value).rstrip() if OmegaConf.is_config(value) else str(value)
        tree.add(str(name)).add(Syntax(text, "yaml", background_color="default"))
    Console().print(tree)
    with (folder / "config_tree.log").open("w") as file:
        Console(file=file, width=100).print(tree)


def describe_data(summary: Mapping[str, Any]) -> str:
    """A line on what is read, from a data module's summary."""
    size = summary.get("train_bytes")
    text = "text of unknown size" if size is None else f"{size / 1e6:.2f} MB"
    train = ""
    if "train_documents" in summary:
        train = f" {summary['train_documents']:,} documents, {text} to train on;"
    elif "train_shards" in summary:
        train = f" {summary['train_shards']:,} shards, {text} in all, to train on as it is read;"
    left_out = summary["left_out_places"]
    return (
        f"data:{train} {summary['val_documents']:,} documents,"
        f" {summary['val_bytes'] / 1e6:.2f} MB held out; fingerprint {summary['fingerprint']}"
        + (f"; {left_out:,} places left out" if left_out else "")
    )


def describe_model(parameters: Mapping[str, int]) -> str:
    """A line on a model's size, from its parameter counts."""
    return (
        f"model: {parameters['total']:,} parameters, {parameters['non_embedding']:,} of them"
        " outside the embeddings"
    )


def short_path(path: Path) -> str:
    """A path as one would type it: relative where it lies below the working directory."""
    path = path.absolute()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
