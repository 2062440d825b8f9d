"""What this machine offers a run, and what is wrong with it, each with a fix.

Every check stands alone and imports what it needs itself: the point is to find what is missing.
"""

import errno
import importlib.metadata as installed
import netrc
import os
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from packaging.requirements import Requirement

from litmegalodon.planning.settings import GPU_DRIVERS, machine_memory
from litmegalodon.utils.command_line import read_env

PACKAGE = "litmegalodon"
GIB = 2**30
# Of free space: below the first no run, below the second a word.
LEAST_FREE, LITTLE_FREE = GIB, 10 * GIB
# Bytes written to learn a disk's speed, and bytes a second below which checkpoints take long.
TRIAL, SLOW_DISK = 32 * 2**20, 50 * 10**6
# Of /dev/shm, through which workers of the data loader send, and of open files.
LITTLE_SHARED, FEW_FILES = 64 * 2**20, 1024
WANDB = "api.wandb.ai"


@dataclass(frozen=True)
class Finding:
    """What a check found: `ok`, `note` (a run goes without), or `fault` (no run goes).

    fix: what to do about a note or a fault, "" where there is nothing to do.
    """

    state: str
    what: str
    text: str
    fix: str = ""


def examine(root: Path, logs: Path) -> Iterator[Finding]:
    """The findings of all checks, one after another; a check that breaks down is a fault.

    Args:
        root: the project's folder.
        logs: where runs write.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "Python": python,
        "packages": packages,
        "torch": torch_and_gpus,
        "kernels": kernels,
        "machine": machine,
        "logs": lambda: disk(logs),
        "network": network,
        "secrets": lambda: secrets(root),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            yield Finding("fault", name, f"{type(error).__name__}: {said}", "make setup")


def python() -> Iterator[Finding]:
    """The interpreter, and whether it is one of the project's."""
    text = f"{sys.version.split()[0]}, {sys.executable}"
    good = (3, 11) <= sys.version_info < (3, 14)
    fix = "" if good else "make setup PYTHON=python3.11: 3.11, 3.12 or 3.13 is needed"
    yield Finding("ok" if good else "fault", "Python", text, fix)


def packages() -> Iterator[Finding]:
    """What pyproject.toml asks for, and which optional parts are there."""
    wrong: list[str] = []
    extras: dict[str, list[str]] = {}
    for text in installed.requires(PACKAGE) or []:
        needed = Requirement(text)
        found = re.search(r"extra == ['\"]([\w-]+)", text)
        if needed.name == PACKAGE or (
            needed.marker and not needed.marker.evaluate({"extra": found[1] if found else ""})
        ):
            continue
        missing = _unmet(needed)
        if found:
            extras.setdefault(found[1], []).extend(missing)
        else:
            wrong += missing
    if wrong:
        yield Finding("fault", "packages", "; ".join(wrong), "make setup")
    else:
        yield Finding("ok", "packages", "all that a run needs, in the versions that are asked for")
    there = [name for name, missing in extras.items() if not missing]
    absent = [name for name, missing in extras.items() if missing]
    fix = f"where you want them: pip install -e '.[{','.join(absent)}]'" if absent else ""
    text = f"there: {', '.join(there) or 'none'}; not there: {', '.join(absent) or 'none'}"
    yield Finding("note" if absent else "ok", "extras", text, fix)


def _unmet(needed: Requirement) -> list[str]:
    try:
        version = installed.version(needed.name)
    except installed.PackageNotFoundError:
        return [f"{needed.name} is missing"]
    if needed.specifier.contains(version, prereleases=True):
        return []
    return [f"{needed.name} is {version}, not {needed.specifier}"]


def torch_and_gpus() -> Iterator[Finding]:
    """torch, and the GPUs that it can use; a GPU that it can't use is named."""
    import torch

    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    if torch.version.hip:
        build = f"for ROCm {torch.version.hip}"
    yield Finding("ok", "torch", f"{torch.__version__}, {build}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            text = (
                f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, capability {gpu.major}.{gpu.minor}"
            )
            yield Finding("ok", f"GPU {i}", text)
        return
    driver = any(Path(path).exists() for path in GPU_DRIVERS)
    if not driver:
        yield Finding("ok", "GPU", "none: runs are on the CPU")
    elif torch.version.cuda or torch.version.hip:
        fix = f"a driver that is new enough for {build[4:]}; nvidia-smi says which one is there"
        yield Finding("fault", "GPU", "there is a driver, and torch finds no GPU", fix)
    else:
        fix = "make setup without TORCH_INDEX, for torch's build with CUDA"
        yield Finding("fault", "GPU", "there is a driver, and this torch is the one for CPUs", fix)


def kernels() -> Iterator[Finding]:
    """Triton, and the folder in which it keeps what it has compiled."""
    try:
        import triton
    except ImportError:
        fix = "make setup, for GPUs; on a CPU nothing is missing"
        yield Finding("note", "triton", "not there: model.impl=torch is what runs", fix)
        return
    cache = Path(os.environ.get("TRITON_CACHE_DIR", "~/.triton/cache")).expanduser()
    files = [path for path in cache.rglob("*") if path.is_file()] if cache.is_dir() else []
    size = sum(path.stat().st_size for path in files)
    compiled = sum(path.suffix in (".cubin", ".hsaco") for path in files)
    text = f"{triton.__version__}; {compiled:,} compiled kernels, {size / 2**20:.0f} MiB in {cache}"
    reason = _unwritable(cache)
    fix = "TRITON_CACHE_DIR=<a folder that can be written>, or each run compiles anew"
    yield Finding("note" if reason else "ok", "triton", text, fix if reason else "")


def machine() -> Iterator[Finding]:
    """Cores, memory, shared memory and open files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    given = f", OMP_NUM_THREADS={threads}" if threads else ""
    yield Finding("ok", "cores", f"{cores} for this process{given}")
    text = f"{machine_memory() / GIB:.1f} GiB, a container's limit counted"
    yield Finding("ok", "memory", text)
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < LITTLE_SHARED:
        fix = "docker run --shm-size=1g, or data.num_workers=0"
        yield Finding("note", "/dev/shm", f"{free / 2**20:.0f} MiB free", fix)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = 0 <= files < FEW_FILES
    fix = f"ulimit -n {FEW_FILES}" if few else ""
    yield Finding("note" if few else "ok", "open files", f"{files:,} at most", fix)


def disk(logs: Path) -> Iterator[Finding]:
    """Whether runs can write where they write, how much and how fast."""
    if reason := _unwritable(logs):
        fix = "paths.log_dir=<a folder that can be written>"
        yield Finding("fault", "logs", f"{logs}: {reason}", fix)
        return
    free = shutil.disk_usage(_existing(logs)).free
    text = f"{logs}: {free / GIB:.1f} GiB free"
    fix = "delete old runs, or paths.log_dir=<a folder on another disk>"
    if free < LEAST_FREE:
        yield Finding("fault", "logs", text, fix)
        return
    speed = _write_speed(_existing(logs))
    slow = speed < SLOW_DISK
    text += f", written at {speed / 1e6:,.0f} MB/s"
    if slow:
        fix = "a larger checkpoint_every, or paths.log_dir=<a folder on a faster disk>"
    little = free < LITTLE_FREE or slow
    yield Finding("note" if little else "ok", "logs", text, fix if little else "")


def _existing(folder: Path) -> Path:
    """The folder, or the next one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _unwritable(folder: Path) -> str | None:
    """Why a folder can't be written to, or made; None: it can."""
    there = _existing(folder)
    trial = there / f".doctor-{os.getpid()}"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _write_speed(folder: Path) -> float:
    """Bytes a second, the system's own buffers emptied."""
    trial = folder / f".doctor-{os.getpid()}"
    block = os.urandom(2**20)
    started = time.perf_counter()
    try:
        with trial.open("wb") as file:
            for _ in range(TRIAL // len(block)):
                file.write(block)
            os.fsync(file.fileno())
    finally:
        trial.unlink(missing_ok=True)
    return TRIAL / (time.perf_counter() - started)


def network() -> Iterator[Finding]:
    """A free port, and whether processes on this machine can talk."""
    import torch
    import torch.distributed as dist

    if port := os.environ.get("MASTER_PORT"):
        try:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", int(port)))
        except (OSError, ValueError) as error:
            busy = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            text = f"MASTER_PORT={port}: {'another program has it' if busy else error}"
            yield Finding("fault", "port", text, "unset MASTER_PORT, or another number")
            return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    try:
        store = dist.TCPStore("127.0.0.1", number, 1, True, timedelta(seconds=5))
        dist.init_process_group(
            "gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=5)
        )
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        fix = "GLOO_SOCKET_IFNAME=lo, and this machine's name in /etc/hosts"
        yield Finding("fault", "loopback", f"gloo: {str(error).splitlines()[0]}", fix)
        return
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    yield Finding("ok", "loopback", f"gloo works, port {number} is free")


def secrets(root: Path) -> Iterator[Finding]:
    """.env, and whether Weights & Biases knows who you are; no key is printed."""
    try:
        read_env(root / ".env")
    except ValueError as error:
        text, _, fix = str(error).partition("; ")
        yield Finding("fault", ".env", text, fix)
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled"):
        yield Finding("ok", "W&B", f"WANDB_MODE={mode}: nothing is sent")
    elif os.environ.get("WANDB_API_KEY"):
        yield Finding("ok", "W&B", "logged in by WANDB_API_KEY")
    elif _in_netrc():
        yield Finding("ok", "W&B", "logged in by ~/.netrc")
    else:
        fix = "wandb login, or logger.wandb.offline=true; only logger=wandb needs it"
        yield Finding("note", "W&B", "not logged in", fix)


def _in_netrc() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(WANDB) is not None
    except (OSError, netrc.NetrcParseError):
        return False
