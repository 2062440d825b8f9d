"""What a checkpoint's folder is written with: files hashed on their way, and names that appear at
once.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem

from litmegalodon.checkpoints import DOOMED, META
from litmegalodon.checkpoints.manifest import MANIFEST, HashingFile, read_manifest

# Entries of a manifest by the files' names.
Entries = dict[str, dict[str, Any]]


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
