"""What can be known to be wrong with the settings before torch is imported, which takes seconds."""

import importlib.util
import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from litmegalodon import checkpoints
from litmegalodon.data.packing import check_cutting
from litmegalodon.parallel.mesh import Degrees, resolve
from litmegalodon.planning.settings import check_memory
from litmegalodon.runs.setting_rules import (
    CHOICES,
    DEGREES,
    FLAGS,
    FLAGS_OR,
    GROUPS,
    MAY_BE_NULL,
    NEEDED,
    NUMBERS,
    TEXTS,
    WHOLE_NUMBERS_AT_LEAST,
)
from litmegalodon.runs.values import (
    are_betas,
    are_texts,
    is_amount,
    is_flag_or,
    is_number,
    is_text,
    is_time,
    is_whole,
)
from litmegalodon.utils.errors import FULL_KEY, cause

# Settings that are written to, by the ends of their names, and an address as fsspec has them; of
# hydra.run.dir one of the slashes is left.
WRITTEN = ("_dir", "dirpath", ".folder", "output", "save_state")
REMOTE = re.compile(r"(^|/)\w{2,}:/")


def check_settings(cfg: DictConfig) -> None:
    """Check a composed configuration, and replace `ckpt_path` and `init_from` by what they mean.

    Settings that the configuration lacks are not checked: an evaluation has no scheduler to check.

    Raises:
        ValueError: a setting's name as typed on the command line, its value and the fix.
    """
    for name in NEEDED:
        rule = "is needed, as a node with _target_; leave it as it is or change what is in it"
        _check(cfg, name, OmegaConf.is_dict, rule)
    OmegaConf.resolve(cfg)
    check_values(cfg)
    check_memory(cfg)
    check_data(cfg)
    check_model(cfg)
    check_best(cfg)
    check_evaluation(cfg)
    check_schedule(cfg)
    check_processes(cfg)
    check_tags(cfg)
    check_purpose(cfg)
    find_checkpoints(cfg)


def check_values(cfg: DictConfig) -> None:
    """Each setting by itself: its type and its range."""
    for name in GROUPS:
        rule = "must be parts by name, as name: {...}, or null"
        _check(cfg, name, lambda value: value is None or OmegaConf.is_dict(value), rule)
    for name, least in WHOLE_NUMBERS_AT_LEAST.items():
        _check(cfg, name, is_whole(least), f"must be a whole number, at least {least}")
    for name, (low, high, closed) in NUMBERS.items():
        bound = f"{'at least' if closed else 'above'} {low}"
        upper = "" if high == math.inf else f" and at most {high}"
        _check(cfg, name, is_number(low, high, closed), f"must be a number {bound}{upper}")
    for name, choices in CHOICES.items():
        _check(
            cfg, name, choices.__contains__, f"must be {', '.join(choices[:-1])} or {choices[-1]}"
        )
    for name, may_be_null in TEXTS.items():
        _check(
            cfg,
            name,
            is_text(may_be_null),
            "must be text, or null" if may_be_null else "must be text",
        )
        if name.endswith(WRITTEN):
            rule = "must be on this machine; mount what lies elsewhere, and give where it is then"
            _check(cfg, name, lambda value: not REMOTE.search(value or ""), rule)
    check_targets(cfg, "")
    for name in FLAGS:
        _check(cfg, name, lambda value: isinstance(value, bool), "must be true or false")
    for name in ("trainer.limit_val_batches", "trainer.limit_test_batches"):
        rule = "must be a number of batches, at least 1, or a part of them as 0.5, at most 1.0"
        _check(cfg, name, is_amount, rule)
    for name, word in FLAGS_OR.items():
        _check(
            cfg,
            name,
            partial(is_flag_or, word),
            f"must be true, false or {word}",
        )
    rule = "must be a number of batches, or a part of them as 0.5, at most 1.0"
    _check(cfg, "trainer.overfit_batches", lambda value: value == 0 or is_amount(value), rule)
    _check(
        cfg,
        "trainer.fast_dev_run",
        lambda value: isinstance(value, bool) or is_whole(1)(value),
        "must be true, false or a number of batches",
    )
    _check(cfg, "logger.wandb.tags", are_texts, "must be a list of texts, as [dev]")
    _check(cfg, "seed", lambda seed: seed < 2**32, "must be below 4294967296")
    _check(cfg, "model.optimizer.betas", are_betas, "must be two numbers in [0, 1), as [0.9,0.98]")
    _check(cfg, "trainer.max_time", is_time, "must be days:hours:minutes:seconds, 00:12:00:00")
    _check(
        cfg,
        "trainer.max_epochs",
        lambda value: value == -1,
        "training is counted in steps, set trainer.max_steps instead",
    )


def check_targets(node: DictConfig, name: str) -> None:
    """What each `_target_` in a node names could be there."""
    for key in node:
        if OmegaConf.is_missing(node, key):
            # Whoever needs it says what it means.
            continue
        value = node[key]
        inner = f"{name}.{key!s}" if name else str(key)
        if key == "_target_":
            module = value.partition(".")[0] if isinstance(value, str) else ""
            if not module.isidentifier() or importlib.util.find_spec(module) is None:
                raise ValueError(
                    f"{inner}={value}: must name a class or function of an installed package, as"
                    " litmegalodon.data.ByteTokenizer"
                )
        elif OmegaConf.is_dict(value):
            check_targets(value, inner)


def check_data(cfg: DictConfig) -> None:
    """Rows of lanes are whole chunks, of a model that has such; questions are not streamed."""
    data = cfg.data
    cutting = data.get("cutting", "packed")
    check_cutting(
        cutting, data.seq_len, cfg.model.config.get("chunk_size"), data.get("streaming", False)
    )


def check_model(cfg: DictConfig) -> None:
    """The model's own rules, and that its vocabulary holds the tokenizer's ids."""
    # Also what the data's parts can say without reading any text.
    tokenizer = _make(cfg.data.tokenizer)
    _make(cfg.data.source)
    model = _make(cfg.model.config)
    model.check_impl(cfg.model.impl)
    # By default the model's: only now it is known to be a number.
    _check(cfg, "data.chunk_size", is_whole(1), "must be a whole number, at least 1")
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.config.vocab_size={model.vocab_size}: the tokenizer has"
            f" {tokenizer.vocab_size} ids; set at least {tokenizer.vocab_size}"
        )
    # Answers may be of few tokens, which shows when they are read.
    predicts_all = cfg.data.get("cutting", "packed") != "questions"
    if predicts_all and model.num_outputs < tokenizer.vocab_size:
        raise ValueError(
            f"model.config.output_size={model.num_outputs}: each of the tokenizer's"
            f" {tokenizer.vocab_size} ids is predicted; set -1, or data.cutting=questions"
        )


def check_best(cfg: DictConfig) -> None:
    """The best checkpoint by right answers is that of most, of a model that counts them."""
    best = OmegaConf.select(cfg, "callbacks.best_checkpoint")
    if not best or best.get("monitor") != "val/accuracy":
        return
    if best.get("mode") != "max":
        raise ValueError(
            f"callbacks.best_checkpoint.mode={best.get('mode')}: keeps the lowest val/accuracy; set"
            " max"
        )
    if cfg.model.get("_target_") == "litmegalodon.training.MegalodonModule":
        raise ValueError(
            "callbacks.best_checkpoint.monitor=val/accuracy: this model does not count right"
            " answers; set model._target_=litmegalodon.training.AnswersModule"
        )


def check_evaluation(cfg: DictConfig) -> None:
    """What reads documents chunk by chunk has a model with chunks."""
    by_chunks = "contexts" in (cfg.get("evaluation") or {})
    if by_chunks and cfg.model.config.get("chunk_size") is None:
        raise ValueError(
            "evaluation=context: reads documents in chunks, and a model without"
            " model.config.chunk_size attends to all of them; leave evaluation= out"
        )


def check_schedule(cfg: DictConfig) -> None:
    """The warmup ends before the schedule does."""
    schedule = cfg.model.scheduler
    if schedule.kind != "constant" and schedule.warmup_steps >= schedule.total_steps:
        raise ValueError(
            f"model.scheduler.warmup_steps={schedule.warmup_steps}: must be less than"
            f" model.scheduler.total_steps={schedule.total_steps}"
        )


def check_processes(cfg: DictConfig) -> None:
    """How many processes there are, and whether this way of starting them works."""
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    is_list = OmegaConf.is_list(devices) and len(devices) > 0 and all(map(is_whole(0), devices))
    if not (is_list or devices in ("auto", -1) or is_whole(1)(devices)):
        raise ValueError(
            f"trainer.devices={devices}: must be a whole number, at least 1, a list of GPUs"
            " as [0,2], or auto"
        )
    if is_list or devices not in ("auto", -1):
        processes = (len(devices) if is_list else devices) * nodes
        degrees = check_mesh(cfg, processes)
        check_batches(cfg, processes if degrees is None else degrees.readers)
    alone = (devices == 1 or (is_list and len(devices) == 1)) and nodes == 1
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN and not alone:
        raise ValueError(
            f"trainer.devices={devices}: with hydra/launcher=basic a sweep (-m) runs in one"
            " process, since each further process would start the whole sweep again; leave"
            " hydra/launcher=runs"
        )
    folder_given = any(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra)
    starter = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else ""
    if os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_ID" in os.environ:
        starter = "srun"
    if starter and not folder_given:
        raise ValueError(
            f"hydra.run.dir: {starter}'s processes would each make a folder of their own; give them"
            " one, as hydra.run.dir=logs/train/runs/my_run"
        )


def check_search() -> None:
    """A search without -m would be a single run of the settings that it starts from."""
    hydra = HydraConfig.get()
    search = hydra.runtime.choices.get("hparams_search")
    # A search's own trials are given their folders.
    folder_given = any(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra)
    if search not in (None, "null") and hydra.mode != RunMode.MULTIRUN and not folder_given:
        raise ValueError(
            f"hparams_search={search}: searches with -m only, and without it trains a single run;"
            f" python src/train.py -m hparams_search={search}"
        )


def check_mesh(cfg: DictConfig, processes: int) -> Degrees | None:
    """How the processes share rows and parameters; None with a strategy of the user's own, whose
    processes all read their own rows.
    """
    strategy = cfg.trainer.strategy
    if strategy.get("bf16_parameters") and cfg.trainer.precision != "bf16-mixed":
        raise ValueError(
            f"trainer.strategy.bf16_parameters=true: trainer.precision={cfg.trainer.precision} has"
            " products in float32; set trainer.precision=bf16-mixed with it"
        )
    replicate, data, chunk = (strategy.get(name) for name in DEGREES)
    if None in (replicate, data, chunk):
        return None
    lengths = {f"data.{name}": cfg.data[name] for name in read_settings(cfg, "seq_len")}
    return resolve(processes, replicate, data, chunk, cfg.model.config.get("chunk_size"), lengths)


def read_settings(cfg: DictConfig, name: str) -> list[str]:
    """Of a setting of training data and the one of held-out data, those that rows are read by."""
    held_out = f"val_{name}"
    given = bool(cfg.data.get(held_out))
    # A plan is for training; an evaluation reads held-out data alone.
    trains = cfg.train if "train" in cfg else "plan" in cfg
    return [name] * (trains or not given) + [held_out] * given


def check_batches(cfg: DictConfig, readers: int) -> None:
    """Batches divide by who reads them, before any process starts; the data module checks again."""
    for name in read_settings(cfg, "batch_size"):
        size = cfg.data[name]
        if readers > 1 and size % readers:
            nearest = max(1, round(size / readers)) * readers
            raise ValueError(
                f"data.{name}={size}: counts rows over all {readers} data-parallel processes and "
                f"must divide by them; set data.{name}={nearest}"
            )


def check_purpose(cfg: DictConfig) -> None:
    """There is something to do, and something to do it with."""
    if "train" not in cfg or cfg.train:
        return
    if not cfg.test:
        raise ValueError("train=false: with test=false there is nothing to do; set one of them")
    if not (cfg.ckpt_path or cfg.init_from):
        raise ValueError("test=true: with train=false it needs the weights; give ckpt_path=")


def check_tags(cfg: DictConfig) -> None:
    """A run can be found again."""
    if not are_texts(cfg.tags):
        raise ValueError(f"tags={cfg.tags}: must be a list of texts, as tags=[dev]")
    if cfg.extras.enforce_tags and not cfg.tags:
        raise ValueError(
            "tags=[]: give at least one, as tags=[dev], or allow none: extras.enforce_tags=false"
        )


def find_checkpoints(cfg: DictConfig) -> None:
    """Replace `ckpt_path` and `init_from` by the checkpoints they mean."""
    goes_on = cfg.get("ckpt_path") == "auto" and cfg.get("train")
    if cfg.get("ckpt_path") and cfg.get("init_from") and not goes_on:
        raise ValueError(
            f"init_from={cfg.init_from}: ckpt_path={cfg.ckpt_path} brings its own weights; give one"
            " of the two"
        )
    task_dir = Path(cfg.paths.log_dir) / (cfg.get("last_of") or cfg.task_name)
    for name in ("ckpt_path", "init_from"):
        if cfg.get(name):
            given = str(cfg[name])
            own = given == "last" or (name == "ckpt_path" and goes_on)
            run_dir = Path(cfg.paths.output_dir) if own else None
            path = checkpoints.find(name, given, task_dir, run_dir)
            cfg[name] = None if path is None else str(path)
            if name == "ckpt_path" and path is not None:
                # `last` is one that can be read; a checkpoint by its name is that one.
                with open_dict(cfg):
                    cfg.ckpt_may_be_older = not given.rstrip("/").endswith(path.name)
        if name == "ckpt_path" and cfg.get(name) and goes_on and cfg.get("init_from"):
            # It began with these weights, and has gone on since.
            cfg.init_from = None
    if "init_from" in cfg:
        cfg.model.init_from = cfg.init_from


def _make(node: DictConfig) -> Any:
    try:
        return instantiate(node)
    except InstantiationException as error:
        wrong, key = cause(error), FULL_KEY.search(str(error))
        source = "data.source."
        inside = key and key["key"].startswith(source)
        if key and inside and isinstance(wrong, ValueError) and str(wrong).startswith(source):
            # A part of a mixture does not know its own name.
            rest = str(wrong).removeprefix(source)
            raise ValueError(f"{key['key']}.{rest}") from None
        raise wrong from None


def _check(cfg: DictConfig, name: str, is_good: Callable[[Any], bool], rule: str) -> None:
    missing = object()
    value = OmegaConf.select(cfg, name, default=missing)
    if value is missing or (value is None and name in MAY_BE_NULL):
        return
    if not is_good(value):
        raise ValueError(f"{name}={'null' if value is None else value}: {rule}")
