"""Files that are whole or missing, whatever is killed when, and that one process writes at a time.

A file is written under another name, flushed to the disk and renamed. The other name is fixed:
what a kill leaves under it is taken over when the file is written again.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_NO_ROOM = "make room there"
_NOT_ALLOWED = "name a folder that may be written"
_FIXES = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
}


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """ValueError, one sentence, for what the system refuses while `path` is written."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(
            f"output={path.parent}: {path.name} could not be written: {reason};"
            f" {_FIXES.get(error.errno or 0, 'mend it')} and run the same command again"
        ) from error


@contextlib.contextmanager
def writing(path: Path, wait: bool = False) -> Iterator[BinaryIO]:
    """An empty file that is at `path` once the block is left without an error, else nowhere.

    ValueError where it cannot be written, or another process is writing it, unless `wait`.
    """
    part = path.with_name(f".{path.name}.part")
    with saving(path):
        file = None
        # A signal can end this anywhere, amid taking the file too.
        try:
            file = _claim(part, wait)
            if file is None:
                raise ValueError(
                    f"output={path.parent}: another process is writing {path.name};"
                    " end one of the two"
                )
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            _close(file)
            _discard(part)
            raise
        finally:
            _close(file)
    # Some file systems have nothing to flush for a folder, and say so with an error.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _claim(path: Path, wait: bool) -> BinaryIO | None:
    """A file opened and locked; None where another process has it."""
    while True:
        file = path.open("ab")
        try:
            if not _lock(file, wait):
                file.close()
                return None
            # Whoever had it may have renamed it since it was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            # With it goes the lock.
            file.close()
            raise
        file.close()


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Whether a file is this process's now; on a file system without locks it always is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _discard(path: Path) -> None:
    """Take an unfinished file away, unless another process is writing it."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if _lock(file, wait=False):
            path.unlink()


def _close(file: BinaryIO | None) -> None:
    # What could not be written is tried again on closing.
    with contextlib.suppress(OSError):
        if file is not None:
            file.close()


def write(path: Path, content: bytes, wait: bool = False) -> None:
    with writing(path, wait) as file:
        file.write(content)


def write_json(path: Path, content: Mapping[str, Any], wait: bool = False) -> None:
    write(path, to_json(content).encode(), wait)


def to_json(content: Mapping[str, Any]) -> str:
    """The same text for the same content."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's content; None where there is no such file, ValueError where it is no JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); remove it and prepare again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is damaged (no object); remove it and prepare again")
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
