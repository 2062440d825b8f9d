"""Writes checkpoints one after another, each complete or absent, while training goes on.

All processes hand over the same checkpoints in the same order. A thread of each does the work, and
they talk over a process group of their own. A checkpoint is written into a folder under another
name, its files hashed on their way, and renamed when every process is done.
"""

import os
import queue
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem

from litmegalodon.parallel.staging import Staging, size_in_bytes
from litmegalodon.utils.checkpoint_manifest import (
    MANIFEST,
    HashingFile,
    damage,
    read_manifest,
    write_file,
    write_manifest,
)
from litmegalodon.utils.checkpoints import DOOMED, META, PARTIAL, is_complete

# Seconds that a process which gives up waits for the others to begin with the same checkpoint.
BEGIN_SECONDS = 10.0
# What is waited longer for the checkpoint before is said.
SAID_SECONDS = 1.0

Entries = dict[str, dict[str, Any]]


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
        failures_allowed: so many checkpoints in a row may fail before `save` raises.
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
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # What the last checkpoint holds, while training has not changed it.
        self._current: Job | None = None
        self._failed_in_a_row = 0
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
            SaveError: too many in a row failed, of which this is not one yet.
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
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
        self._queue.put(job)
        if wait or not self.asynchronous:
            self.wait()

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
                self._failed_in_a_row = 0
                continue
            if job is self._current:
                self._current = None
            self._failed_in_a_row += 1
            if self._failed_in_a_row > self.failures_allowed:
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
            else:
                # Why it failed is said already.
                job.done.exception()
        self._current = self._last_error = None

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

    def _work(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while True:
            job = self._queue.get()
            try:
                self._write(job)
            except BaseException as error:
                job.done.set_exception(error)
            else:
                job.done.set_result(None)

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


class _HashingFileSystem(FileSystem):
    """Notes sizes and hashes of the files it writes, by name; makes no folders."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: Entries = {}
        self.error: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        file = None
        try:
            with open(path, mode) as raw:
                file = HashingFile(raw)
                yield file
                file.flush()
        except OSError as error:
            self.error = error
            raise
        finally:
            if file is not None and file.error:
                self.error = file.error
        self.entries[Path(path).name] = file.entry()

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.entries[Path(new_path).name] = self.entries.pop(Path(path).name)

    def mkdir(self, path: str | os.PathLike) -> None:
        # A folder that has vanished with its disk must not come to life on another one.
        pass


class _Planner(DefaultSavePlanner):
    """Remembers from one checkpoint of a writer to the next who writes what.

    Without it the first process plans for all anew each time, seconds of Python at many processes.
    """

    def __init__(self, writer: str) -> None:
        super().__init__(enable_plan_caching=True)
        # torch keeps plans by this name, for all models of the process.
        self._cached_plans_key = writer


class _HashingWriter(FileSystemWriter):
    """torch's writer on that file system."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fs = _HashingFileSystem()

    def write_data(self, *args: Any) -> Any:
        try:
            return super().write_data(*args)
        except Exception as error:
            # Serialisation in C++ loses the reason.
            raise (self.fs.error or error) from None


def prepare(partial: Path, size: int) -> None:
    """Make an empty folder for a checkpoint.

    Raises:
        OSError: its disk has no room for so many bytes.
    """
    if partial.exists():
        shutil.rmtree(partial)
    free = shutil.disk_usage(partial.parent).free
    if free < size:
        raise OSError(
            f"it takes {size / 1e9:,.2f} GB and the disk has {free / 1e9:,.2f} GB left; make room"
        )
    partial.mkdir()


def write_tensors(
    state: dict[str, Any], partial: Path, group: dist.ProcessGroup, plans: str
) -> Entries:
    """Write this process's part of a state, and return what it wrote as entries of a manifest.

    `plans` is a name under which plans are kept.
    """
    writer = _HashingWriter(partial)
    dcp.save(state, storage_writer=writer, process_group=group, planner=_Planner(plans))
    return writer.fs.entries


def link(twin: Path, partial: Path) -> Entries | None:
    """Give another checkpoint's tensors a second name; None where that can't be done."""
    try:
        manifest = read_manifest(twin)
        entries = dict(manifest["files"]) if manifest else {}
        entries.pop(META)
        for name in entries:
            os.link(twin / name, partial / name)
    except (OSError, ValueError, KeyError):
        # It failed, was replaced meanwhile, or the file system knows no such names.
        shutil.rmtree(partial)
        partial.mkdir()
        return None
    return entries


def publish(partial: Path, path: Path) -> None:
    """Give a complete checkpoint its name, in place of one that may have it."""
    assert (partial / MANIFEST).exists()
    _to_disk(partial)
    doomed = path.with_name(path.name + DOOMED)
    shutil.rmtree(doomed, ignore_errors=True)
    if path.exists():
        path.rename(doomed)
    partial.rename(path)
    _to_disk(path.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a checkpoint so that no moment shows a damaged one under its name."""
    doomed = path.with_name(path.name + DOOMED)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _to_disk(folder: Path) -> None:
    """Make names in a folder outlive a loss of power, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
