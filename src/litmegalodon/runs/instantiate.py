"""Lightning's objects from a configuration that check_settings has passed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict

from litmegalodon.checkpoints import is_complete
from litmegalodon.checkpoints.files import read_meta
from litmegalodon.ops.dispatch import triton_refusal
from litmegalodon.planning.settings import check_memory
from litmegalodon.training.callbacks.run_ids import RunIds, run_id
from litmegalodon.utils.errors import FULL_KEY, cause
from litmegalodon.utils.printing import say, tame_lightning


def check_device(cfg: DictConfig) -> None:
    """Refuse what this machine can't run, before any data is read.

    Raises:
        ValueError: there is no such accelerator, the kernels do not run on it, or its memory does
            not hold the run.
    """
    device = accelerator(cfg.trainer.accelerator)
    if cfg.model.impl == "triton" and (reason := triton_refusal(torch.empty(0, device=device))):
        raise ValueError(f"model.impl=triton: it {reason}")
    if device == "cuda":
        devices = cfg.trainer.devices
        count = len(devices) if OmegaConf.is_list(devices) else devices
        if count in ("auto", -1):
            count = torch.cuda.device_count()
        check_memory(cfg, torch.cuda.get_device_properties(0).total_memory, count)


@contextmanager
def open_trainer(cfg: DictConfig) -> Iterator[Trainer]:
    """The trainer of a configuration; leaving it ends the process group that it started.

    A process group's threads may hold the last reference to a tensor. One that outlives the
    interpreter then ends the process with SIGABRT in place of its exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C, which Lightning would answer with exit code 1.
    """
    trainer = make_trainer(cfg)
    try:
        yield trainer
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def make_trainer(cfg: DictConfig) -> Trainer:
    """The trainer with the callbacks and loggers of a configuration."""
    tame_lightning()
    kind = accelerator(cfg.trainer.accelerator)
    if kind == "cpu" and OmegaConf.is_list(cfg.trainer.devices):
        raise ValueError(
            f"trainer.devices={cfg.trainer.devices}: a list names GPUs, and this run is on the CPU;"
            " set a number of processes"
        )
    callbacks = make_list(cfg.get("callbacks"), "callbacks", Callback)
    continue_hosted_run(cfg)
    callbacks.append(RunIds())
    settings: dict[str, Any] = {
        "accelerator": kind,
        "callbacks": callbacks,
        # None would be Lightning's own logger.
        "logger": make_list(cfg.get("logger"), "logger", Logger) or False,
        # Where no callback saves checkpoints, Lightning would add one that does.
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "deterministic": cfg.get("deterministic", False),
    }
    if "validate_every" in cfg and "val_check_interval" not in cfg.trainer:
        # Lightning counts micro-batches here.
        steps = min(cfg.validate_every, cfg.trainer.max_steps)
        settings["val_check_interval"] = steps * cfg.trainer.accumulate_grad_batches
    return instantiate(cfg.trainer, **settings)


def continue_hosted_run(cfg: DictConfig) -> None:
    """Let a resumed run continue the Weights & Biases run of its checkpoint.

    An id that is set, in logger.wandb.id or by a sweep's agent in WANDB_RUN_ID, goes first.
    """
    node = OmegaConf.select(cfg, "logger.wandb")
    resumed = cfg.get("train") and cfg.get("ckpt_path")
    if not resumed or not node or node.get("id") or os.environ.get("WANDB_RUN_ID"):
        return
    known = run_id(read_meta(cfg.ckpt_path, f"ckpt_path={cfg.ckpt_path}"))
    if known is None:
        return
    with open_dict(cfg):
        node.id = known
        node.resume = "allow"
    say(f"logger.wandb: goes on with run {known}")


def make_list(group: DictConfig | None, name: str, kind: type) -> list[Any]:
    """The objects of a config group, each a node with `_target_`; nodes that are null give none.

    Raises:
        ValueError: a node is not what the group is for.
    """
    made = []
    for key, node in ((str(key), node) for key, node in (group or {}).items()):
        if node is None:
            continue
        if not OmegaConf.is_config(node) or "_target_" not in node:
            raise ValueError(f"{name}.{key}: has no _target_, which names the class to make")
        try:
            item = instantiate(node)
        except InstantiationException as error:
            if isinstance(cause(error), ModuleNotFoundError):
                raise ValueError(f"{name}.{key}: {cause(error)}") from error
            # An evaluation inside a callback does not know its own name.
            wrong, inside = cause(error), FULL_KEY.search(str(error))
            if inside and isinstance(wrong, ValueError) and str(wrong).startswith("evaluation."):
                raise ValueError(str(wrong).replace("evaluation.", f"{inside['key']}.")) from error
            raise
        if not isinstance(item, kind):
            raise ValueError(f"{name}.{key}._target_={node._target_}: is not a {kind.__name__}")
        made.append(item)
    return made


def accelerator(name: str) -> str:
    """cuda or cpu; Lightning's auto and gpu would also take Apple's mps, which lacks float64."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={name}: torch finds no GPU here; set trainer=cpu")
    return "cuda"


def best_checkpoint(trainer: Trainer) -> str | None:
    """The checkpoint with the best monitored metric; None where there is none."""
    savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    monitored = [callback for callback in savers if callback.monitor]
    path = monitored[0].best_model_path if monitored else ""
    if not path or is_complete(path):
        return path or None
    say(f"{path} could not be saved: the weights of the last step take its place")
    return None
