"""From settings to a run, and the refusal of one that can't be held; imports nothing heavy."""

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from litmegalodon.models import MegalodonConfig, ModelConfig
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.planning.devices import DEVICES, GIB
from litmegalodon.planning.plan import Run
from litmegalodon.utils.errors import cause

# What is in memory all the time, and what at the start of the backward pass.
CERTAIN = ("parameters", "gradients", "optimizer", "activations", "logits and loss")
GPU_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
# Where a container's limit is.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def run_of(cfg: DictConfig, degrees: Degrees, machine: int, triton: bool) -> Run:
    """What a configuration's settings ask for, over a mesh, with so many processes a machine.

    Raises:
        ValueError: the model's config can't be, or it is no Megalodon's.
    """
    config = _config(cfg)
    if not isinstance(config, MegalodonConfig):
        raise ValueError(f"model={config.kind}: plans know the sizes of a Megalodon only")
    return Run(
        config=config,
        degrees=degrees,
        batch_size=cfg.data.batch_size,
        length=cfg.data.seq_len,
        accumulation=cfg.trainer.accumulate_grad_batches,
        checkpointing=cfg.model.activation_checkpointing,
        bf16=cfg.trainer.precision == "bf16-mixed",
        bf16_parameters=bool(cfg.trainer.strategy.get("bf16_parameters")),
        triton=triton,
        machine=machine,
    )


def check_memory(cfg: DictConfig, device_memory: int | None = None, machine: int = 0) -> None:
    """Refuse to train what can't be held, before anything is made.

    Of a Megalodon: how much another model holds is not known here, and nothing is refused.

    On a CPU the processes of a machine share its memory; whether there is a GPU is guessed from
    its driver, and how much memory it has is known once torch is imported.

    Args:
        device_memory: bytes of a GPU that is there, for one process.
        machine: processes on this machine; those of `trainer.devices`, if that is a number.

    Raises:
        ValueError: the memory needed, and where to learn what would do.
    """
    devices = machine or cfg.trainer.devices
    if not cfg.get("train") or not isinstance(devices, int) or devices < 1:
        return
    kind = cfg.trainer.accelerator
    on_cpu = kind == "cpu" or (kind == "auto" and not any(map(os.path.exists, GPU_DRIVERS)))
    if device_memory is None and not on_cpu:
        return
    if not isinstance(_config(cfg), MegalodonConfig):
        return
    strategy = cfg.trainer.strategy
    replicas, chunk = (strategy.get(name, 1) for name in ("replicate_size", "chunk_parallel_size"))
    # Whether these degrees are possible is checked later: the memory does not depend on it much.
    world = devices * cfg.trainer.num_nodes
    replicas = replicas if replicas > 0 and world % replicas == 0 else 1
    chunk = chunk if chunk > 0 and world // replicas % chunk == 0 else 1
    degrees = Degrees(replicas, world // replicas // chunk, chunk)
    memory = run_of(cfg, degrees, devices, triton=device_memory is not None).memory()
    need = sum(memory[name] for name in CERTAIN)
    if device_memory is not None:
        have, where = device_memory, "its GPU"
    else:
        have = machine_memory() // devices
        where = "this machine" if devices == 1 else "its part of this machine"
    if need <= have:
        return
    parts = ", ".join(f"{name} {_gib(memory[name])}" for name in CERTAIN)
    raise ValueError(
        f"trainer.devices={cfg.trainer.devices}: a process needs at least {_gib(need)} GiB "
        f"({parts}) and {where} has {_gib(have)}; "
        f'make plan{_experiment()} ARGS="trainer.devices=8" says how many GPUs would do'
    )


def check_plan(cfg: DictConfig) -> None:
    """The settings that only a plan has.

    Raises:
        ValueError: one out of range.
    """
    plan = cfg.plan
    if plan.device not in DEVICES:
        raise ValueError(f"plan.device={plan.device}: must be one of {', '.join(DEVICES)}")
    for name in ("efficiency", "links"):
        value = plan[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value <= 1):
            raise ValueError(f"plan.{name}={value}: must be a number above 0 and at most 1")
    devices = cfg.trainer.devices
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(
            f"trainer.devices={devices}: a plan is for machines that are not there; give the "
            "number of GPUs of each, as trainer.devices=8"
        )


def machine_memory() -> int:
    """Bytes of this machine, or of the container's limit."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            least = min(least, int(text))
    return least


def _config(cfg: DictConfig) -> ModelConfig:
    try:
        return instantiate(cfg.model.config)
    except InstantiationException as error:
        raise cause(error) from None


def _experiment() -> str:
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    name = choices.get("experiment")
    return f" EXP={name}" if name else ""


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}"
