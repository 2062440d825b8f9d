"""Writes checkpoints one after another, each complete or absent, while training goes on.

All processes hand over the same checkpoints in the same order. A thread of each does the work, and
they talk over a process group of their own. A checkpoint is written into a folder under another
name, its files hashed on their way, and renamed when every process is done.
"""

import queue
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.checkpoint import CheckpointException

from litmegalodon.checkpoints import META, PARTIAL, is_complete
from litmegalodon.checkpoints.manifest import (
    damage,
    write_file,
    write_manifest,
)
from litmegalodon.parallel.checkpoint_storage import (
    Entries,
    link,
    prepare,
    publish,
    write_tensors,
)
from litmegalodon.parallel.staging import Staging, size_in_bytes

# Seconds that a process which gives up waits for the others to begin with the same checkpoint.
BEGIN_SECONDS = 10.0
# What is waited longer for the checkpoint before is said.
SAID_SECONDS = 1.0


class SaveError(OSError):
    """A checkpoint was not written, on no process; the ones before it are as they were."""


@dataclass
class Job:
    """A checkpoint to write: its tensors, the rest (of the first process), and what follows."""

    path: Path
    state: dict[str, Any]
    rest: bytes
    # A checkpoint of the same tensors that is written before this one.
    twin: Path | None
    then: list[Callable[[Path], None]]
    done: Future[None] = field(default_factory=Future)
    # Set when all processes have begun with it.
    begun: threading.Event = field(default_factory=threading.Event)


class CheckpointWriter:
    """Writes what it is given in a thread.

    Args:
        asynchronous: return once the tensors are copied to CPU memory, and not when all is
            written; without it there is no copy.
        failures_allowed: so many checkpoints in a row may fail in a folder before `save` raises.
        timeout: how long a process waits for another one.
        device: of the tensors.
    """

    def __init__(
        self, asynchronous: bool, failures_allowed: int, timeout: timedelta, device: torch.device
    ) -> None:
        self.asynchronous, self.failures_allowed = asynchronous, failures_allowed
        self._device = device
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._rank, self._plans = dist.get_rank(), str(uuid.uuid4())
        self._staging = Staging()
        # Given to the thread and not waited for yet.
        self._jobs: list[Job] = []
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # What the last checkpoint holds, while training has not changed it.
        self._current: Job | None = None
        # By the folder: another one's disk may be well.
        self._failed_in_a_row: Counter[Path] = Counter()
        self._last_error: SaveError | None = None
        # Folders that were there once: one that is gone is not made again.
        self._folders: set[Path] = set()

    def save(
        self,
        path: Path,
        state: dict[str, Any],
        rest: bytes,
        then: list[Callable[[Path], None]],
        wait: bool = False,
    ) -> None:
        """Write a checkpoint, in the background if asked to.

        Args:
            path: its folder.
            state: tensors in nested dictionaries.
            rest: the content of meta.pt; the first process's is written.
            then: called with the path once it is complete, on the first process in its thread.
            wait: return when it is written, whatever was asked of the writer.

        Raises:
            SaveError: too many before it failed in a row.
        """
        twin = None
        if self._current is not None:
            # Saved twice after one step: the tensors are the same.
            state, twin = self._current.state, self._current.path
        else:
            self._wait_said()
            if self.asynchronous and not wait:
                state = self._staging.copy(state)
        if self._rank == 0 and path.parent not in self._folders:
            with suppress(OSError):
                # What it fails for is said by the thread.
                path.parent.mkdir(parents=True, exist_ok=True)
                self._folders.add(path.parent)
        job = Job(path, state, rest, twin, then)
        self._current = job
        self._jobs.append(job)
        if self._thread is None:
            # Nothing is left to wait for at the interpreter's end; what is stuck then stays behind.
            self._thread = threading.Thread(
                target=self._work, args=(self._queue,), name="checkpoints", daemon=True
            )
            self._thread.start()
        self._queue.put(job)
        if wait or not self.asynchronous:
            self.wait()
        if wait:
            # Not a copy, and who saves next may not wait.
            self._current = None

    def changed(self) -> None:
        """Training has changed the tensors: the next checkpoint is not the last one again."""
        self._current = None

    def is_writing(self, path: Path) -> bool:
        """Whether a checkpoint is on its way."""
        return any(job.path == path and not job.done.done() for job in self._jobs)

    def wait(self) -> None:
        """Wait until everything given is written.

        Raises:
            SaveError: too many in a row failed.
        """
        while self._jobs:
            # Ctrl-C comes through here, and the job is waited for again.
            error = self._jobs[0].done.exception()
            job = self._jobs.pop(0)
            if error is not None and not isinstance(error, SaveError):
                raise error
            self._last_error = error
            if error is None:
                self._failed_in_a_row[job.path.parent] = 0
                continue
            if job is self._current:
                self._current = None
            self._failed_in_a_row[job.path.parent] += 1
            if self._failed_in_a_row[job.path.parent] > self.failures_allowed:
                raise error

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            SaveError: the last one was not.
        """
        self.wait()
        error, self._last_error = self._last_error, None
        if error is not None:
            raise error

    def give_up(self) -> None:
        """Wait for what all processes have begun with, and leave the rest."""
        while self._jobs:
            job = self._jobs.pop(0)
            deadline = time.monotonic() + BEGIN_SECONDS
            while not (job.begun.is_set() or job.done.done()) and time.monotonic() < deadline:
                time.sleep(0.01)
            if not (job.begun.is_set() or job.done.done()):
                rank_zero_info(f"{job.path} is not written: other processes had not come so far")
                self._jobs.clear()
                break
            # Why it failed is said already.
            job.done.exception()
        self._current = self._last_error = None

    def close(self) -> None:
        """End the thread after what it does, and free the copy's memory; `save` begins anew."""
        if self._thread is not None:
            self._queue.put(None)
            # What is stuck keeps its queue.
            self._queue, self._thread = queue.SimpleQueue(), None
        self._staging, self._current = Staging(), None

    def damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint; all processes read it together, some files each.

        One that is no complete checkpoint is left to whoever reads it.
        """
        wrong = None
        if is_complete(path):
            try:
                wrong = damage(path, slice(self._rank, None, dist.get_world_size()))
            except OSError as error:
                wrong = str(error)
        return next((said for said in self.gather(wrong) if said), None)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in their order."""
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _wait_said(self) -> None:
        before = time.monotonic()
        self.wait()
        if (seconds := time.monotonic() - before) > SAID_SECONDS:
            rank_zero_info(
                f"training has waited {seconds:.1f} s for the checkpoint before; a greater "
                "checkpoint_every or a faster disk spares that"
            )

    def _work(self, jobs: queue.SimpleQueue[Job | None]) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while job := jobs.get():
            try:
                self._write(job)
            except BaseException as error:
                job.done.set_exception(error)
            else:
                job.done.set_result(None)
            # Not held until the next one comes.
            del job

    def _write(self, job: Job) -> None:
        partial = job.path.with_name(job.path.name + PARTIAL)
        entries: Entries | None = None
        try:
            self.gather(None)
            job.begun.set()
            with self._together(job):
                if self._rank == 0:
                    prepare(partial, 0 if job.twin else size_in_bytes(job.state))
                    entries = link(job.twin, partial) if job.twin else None
            if self.gather(entries)[0] is None:
                with self._together(job):
                    if not partial.is_dir():
                        raise OSError(
                            "the folder that the first process has made is not seen by this one; "
                            "checkpoints go to a disk that all machines share"
                        )
                with self._together(job):
                    mine = write_tensors(job.state, partial, self._group, self._plans)
                gathered = self.gather(mine)
                entries = {name: entry for part in gathered for name, entry in part.items()}
            with self._together(job):
                if self._rank == 0:
                    entries[META] = write_file(partial / META, job.rest)
                    write_manifest(partial, time.time_ns(), entries)
                    publish(partial, job.path)
        except SaveError as error:
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            rank_zero_info(f"{error}; the checkpoints before it are as they were")
            raise
        if self._rank == 0:
            for follow in job.then:
                try:
                    follow(job.path)
                except OSError as error:
                    rank_zero_info(f"{error}: an older checkpoint could not be deleted")

    @contextmanager
    def _together(self, job: Job) -> Iterator[None]:
        """A part of the work that fails on all processes if it fails on one."""
        said = None
        try:
            yield
        except CheckpointException as error:
            # torch has told all processes of it.
            rank, (reason, _) = next(iter(error.failures.items()))
            said = (rank, _sentence(reason))
        except Exception as error:
            said = (self._rank, _sentence(error))
        failed = [failure for failure in self.gather(said) if failure]
        if failed:
            rank, sentence = failed[0]
            where = f" (process {rank})" if dist.get_world_size() > 1 else ""
            raise SaveError(f"{job.path} was not saved: {sentence}{where}")


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
