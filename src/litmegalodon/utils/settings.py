"""What can be known to be wrong with the settings before torch is imported, which takes seconds."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from litmegalodon.data.packing import CUTTINGS, check_cutting
from litmegalodon.data.store import OnError
from litmegalodon.parallel.mesh import Degrees, resolve
from litmegalodon.planning.settings import check_memory
from litmegalodon.utils import checkpoints
from litmegalodon.utils.errors import cause

# Arguments of `litmegalodon.parallel.mesh.resolve`, in its order.
DEGREES = ("replicate_size", "data_parallel_size", "chunk_parallel_size")
WHOLE_NUMBERS_AT_LEAST = {
    "data.seq_len": 1,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "data.val_seq_len": 1,
    "data.val_batch_size": 1,
    "model.scheduler.warmup_steps": 0,
    "model.scheduler.total_steps": 1,
    "trainer.max_steps": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_nodes": 1,
    "trainer.accumulate_grad_batches": 1,
    "validate_every": 1,
    "checkpoint_every": 1,
    "seed": 0,
    "max_new_tokens": 0,
    "piece_tokens": 1,
    "workers": 1,
    "units.train": 1,
    "units.val": 1,
    "vocab_size": 1,
    "max_bytes": 1,
    "max_held_out_bytes": 1,
    "harness.limit": 1,
    "harness.batch_size": 1,
    "harness.piece_tokens": 1,
    "harness.max_gen_toks": 1,
    "harness.bootstrap_iters": 0,
    **{f"trainer.strategy.{name}": -1 for name in DEGREES},
}
MAY_BE_NULL = {
    "data.val_seq_len",
    "data.val_batch_size",
    "trainer.gradient_clip_val",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
    "harness.limit",
}
# (lowest, highest, whether the lowest itself is allowed)
NUMBERS = {
    "data.in_memory_limit": (0, math.inf, False),
    "model.optimizer.lr": (0, math.inf, False),
    "model.optimizer.eps": (0, math.inf, False),
    "model.optimizer.weight_decay": (0, math.inf, True),
    "model.scheduler.initial_ratio": (0, 1, True),
    "model.scheduler.final_ratio": (0, 1, True),
    "trainer.gradient_clip_val": (0, math.inf, False),
    "character_coverage": (0, 1, False),
    "max_shard_gb": (0, math.inf, False),
}
CHOICES = {
    "data.cutting": CUTTINGS,
    "data.on_error": OnError.CHOICES,
    "model.impl": ("auto", "reference", "torch", "triton"),
    "model.optimizer.decay": ("all", "matrices"),
    "model.scheduler.kind": ("cosine", "linear", "constant"),
    "trainer.accelerator": ("auto", "cpu", "cuda", "gpu"),
    "trainer.precision": ("32-true", "bf16-mixed"),
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("float32", "bfloat16", "float64"),
    "harness.dtype": ("float32", "bfloat16", "float64"),
    "callbacks.best_checkpoint.monitor": ("val/bpb", "val/loss", "val/ppl"),
    "model_type": ("bpe", "unigram"),
    "from": ("reference", "megalodon-hf", "export"),
    "format": ("hf", "safetensors", "reference"),
}
# Objects that a run can't do without; without one of these there would be nothing to check inside.
NEEDED = (
    "data.source",
    "data.tokenizer",
    "model.config",
    "model.optimizer",
    "model.scheduler",
    "trainer.strategy",
)
FLAGS = (
    "train",
    "test",
    "model.compile",
    "model.activation_checkpointing",
    "data.shuffle",
    "data.reset_documents",
    "data.streaming",
    "extras.ignore_warnings",
    "extras.enforce_tags",
    "extras.print_config",
    "extras.tracebacks",
    "overwrite",
    "harness.log_samples",
    "accept_different_norm",
)


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
    check_schedule(cfg)
    check_processes(cfg)
    check_tags(cfg)
    check_purpose(cfg)
    find_checkpoints(cfg)


def check_values(cfg: DictConfig) -> None:
    """Each setting by itself: its type and its range."""
    for name, least in WHOLE_NUMBERS_AT_LEAST.items():
        _check(cfg, name, _is_whole(least), f"must be a whole number, at least {least}")
    for name, (low, high, closed) in NUMBERS.items():
        bound = f"{'at least' if closed else 'above'} {low}"
        upper = "" if high == math.inf else f" and at most {high}"
        _check(cfg, name, _is_number(low, high, closed), f"must be a number {bound}{upper}")
    for name, choices in CHOICES.items():
        _check(
            cfg, name, choices.__contains__, f"must be {', '.join(choices[:-1])} or {choices[-1]}"
        )
    for name in FLAGS:
        _check(cfg, name, lambda value: isinstance(value, bool), "must be true or false")
    for name in ("trainer.limit_val_batches", "trainer.limit_test_batches"):
        rule = "must be a number of batches, at least 1, or a part of them as 0.5, at most 1.0"
        _check(cfg, name, _is_amount, rule)
    _check(cfg, "seed", lambda seed: seed < 2**32, "must be below 4294967296")
    _check(cfg, "model.optimizer.betas", _are_betas, "must be two numbers in [0, 1), as [0.9,0.98]")
    _check(
        cfg,
        "trainer.max_epochs",
        lambda value: value == -1,
        "training is counted in steps, set trainer.max_steps instead",
    )


def check_data(cfg: DictConfig) -> None:
    """Rows of lanes are whole chunks."""
    data = cfg.data
    cutting = data.get("cutting", "packed")
    check_cutting(cutting, data.seq_len, cfg.model.config.chunk_size)


def check_model(cfg: DictConfig) -> None:
    """The model's own rules, and that its vocabulary holds the tokenizer's ids."""
    # Also what the data's parts can say without reading any text.
    tokenizer = _make(cfg.data.tokenizer)
    _make(cfg.data.source)
    model = _make(cfg.model.config)
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.config.vocab_size={model.vocab_size}: the tokenizer has"
            f" {tokenizer.vocab_size} ids; set at least {tokenizer.vocab_size}"
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
    is_list = OmegaConf.is_list(devices) and len(devices) > 0 and all(map(_is_whole(0), devices))
    if not (is_list or devices in ("auto", -1) or _is_whole(1)(devices)):
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
    if "TORCHELASTIC_RUN_ID" in os.environ and not folder_given:
        raise ValueError(
            "hydra.run.dir: torchrun's processes would each make a folder of their own; give them"
            " one, as hydra.run.dir=logs/train/runs/my_run"
        )


def check_mesh(cfg: DictConfig, processes: int) -> Degrees | None:
    """How the processes share rows and parameters; None with a strategy of the user's own, whose
    processes all read their own rows.
    """
    degrees = [cfg.trainer.strategy.get(name) for name in DEGREES]
    if None in degrees:
        return None
    names = ("seq_len", "val_seq_len")
    lengths = {f"data.{name}": cfg.data[name] for name in names if cfg.data.get(name)}
    return resolve(processes, *degrees, cfg.model.config.chunk_size, lengths)


def check_batches(cfg: DictConfig, readers: int) -> None:
    """Batches divide by who reads them, before any process starts; the data module checks again."""
    for name in ("data.batch_size", "data.val_batch_size"):
        size = OmegaConf.select(cfg, name)
        if readers > 1 and size and size % readers:
            nearest = max(1, round(size / readers)) * readers
            raise ValueError(
                f"{name}={size}: counts rows over all {readers} data-parallel processes and must "
                f"divide by them; set {name}={nearest}"
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
    if cfg.extras.enforce_tags and not cfg.tags:
        raise ValueError(
            "tags=[]: give at least one, as tags=[dev], or allow none: extras.enforce_tags=false"
        )


def find_checkpoints(cfg: DictConfig) -> None:
    """Replace `ckpt_path` and `init_from` by the checkpoints they mean."""
    if cfg.get("ckpt_path") and cfg.get("init_from"):
        raise ValueError(
            f"init_from={cfg.init_from}: ckpt_path={cfg.ckpt_path} brings its own weights; give one"
            " of the two"
        )
    task_dir = Path(cfg.paths.log_dir) / (cfg.get("last_of") or cfg.task_name)
    for name in ("ckpt_path", "init_from"):
        if cfg.get(name):
            run_dir = Path(cfg.paths.output_dir)
            path = checkpoints.find(name, str(cfg[name]), task_dir, run_dir)
            cfg[name] = str(path)
    if "init_from" in cfg:
        cfg.model.init_from = cfg.init_from


def _make(node: DictConfig) -> Any:
    try:
        return instantiate(node)
    except InstantiationException as error:
        raise cause(error) from None


def _check(cfg: DictConfig, name: str, is_good: Callable[[Any], bool], rule: str) -> None:
    missing = object()
    value = OmegaConf.select(cfg, name, default=missing)
    if value is missing or (value is None and name in MAY_BE_NULL):
        return
    if not is_good(value):
        raise ValueError(f"{name}={'null' if value is None else value}: {rule}")


def _is_whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(low: float, high: float, closed: bool) -> Callable[[Any], bool]:
    def is_good(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (low <= value if closed else low < value) and value <= high and value < math.inf

    return is_good


def _is_amount(value: Any) -> bool:
    """A whole number from 1, or a float in (0, 1]."""
    return _is_whole(1)(value) or (isinstance(value, float) and 0 < value <= 1)


def _are_betas(value: Any) -> bool:
    in_range = _is_number(0, 1, closed=True)
    return (
        OmegaConf.is_list(value) and len(value) == 2 and all(in_range(b) and b < 1 for b in value)
    )
