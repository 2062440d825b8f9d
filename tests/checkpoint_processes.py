"""Training processes that can be killed, for test_checkpoints_killed.py: they are forks, so that
Python, torch and Lightning start once.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import train
from config_helpers import composed
from litmegalodon.parallel import checkpoint_storage, checkpoint_writing
from litmegalodon.runs.settings import check_settings

FORKS = mp.get_context("fork")


class Run:
    """A training run of `world` processes in a folder.

    Args:
        world: how many.
        folder: where logs go; the run's folder is `run` there.
        overrides: settings.
        seconds: each process takes so much longer to write its part of a checkpoint, the second
            one three times as long.
        full: the numbers of the checkpoints for which the last process finds its disk full.
    """

    started = 0

    def __init__(
        self,
        world: int,
        folder: Path,
        *overrides: str,
        seconds: float = 0.0,
        full: tuple[int, ...] = (),
    ):
        Run.started += 1
        self.log = folder / f"log-{Run.started}"
        arguments = (world, folder, self.log, overrides, seconds, full)
        self.processes = [
            FORKS.Process(target=_work, args=(rank, *arguments), daemon=True)
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def kill(self, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.processes[rank].pid, signal.SIGKILL)

    def send(self, number: int) -> None:
        """A signal to all, as a terminal sends it."""
        for process in self.processes:
            os.kill(process.pid, number)

    def end(self, timeout: float = 60) -> list[int | None]:
        """Wait until all have ended, and return their exit codes."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hung = [process for process in self.processes if process.is_alive()]
        for process in hung:
            process.kill()
            process.join()
        assert not hung, f"{len(hung)} of {len(self.processes)} hang\n{self.said()}"
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        """What they have printed."""
        return self.log.read_text() if self.log.exists() else ""


def _work(
    rank: int,
    world: int,
    folder: Path,
    log: Path,
    overrides: tuple[str, ...],
    seconds: float,
    full: tuple[int, ...],
) -> None:
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    original = checkpoint_writing.write_tensors
    create, saves = checkpoint_storage._HashingFileSystem.create_stream, []

    def on_full_disk(self, path, mode):
        fails = rank == world - 1 and len(saves) in full
        return create(self, "/dev/full" if fails else path, mode)

    checkpoint_storage._HashingFileSystem.create_stream = on_full_disk

    def slow(*args):
        saves.append(1)
        time.sleep(seconds * (1 + 2 * (rank == 1)) / 2)
        entries = original(*args)
        time.sleep(seconds * (1 + 2 * (rank == 1)) / 2)
        return entries

    checkpoint_writing.write_tensors = slow
    rendezvous = f"file://{log}-rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    try:
        cfg = composed(*overrides, f"trainer.devices={world}", folder=folder)
        check_settings(cfg)
        train.train(cfg)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
