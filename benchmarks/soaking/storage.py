"""Storage that fails: a disk that fills up, and checkpoints that lose bytes."""

import ctypes
import errno
import os
import random
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

from litmegalodon.checkpoints.finding import is_complete
from litmegalodon.checkpoints.manifest import MANIFEST, damage

# From <sched.h>: mounts of this process and what it starts alone; they go when it does.
CLONE_NEWNS = 0x00020000
# A checkpoint of the debug model has 0.3 MiB.
DISK_BYTES = 16 << 20


class SmallDisk:
    """A folder on a small tmpfs of this process's own, filled by a file.

    Where mounting is not permitted the limit on a file's size stands for it (RLIMIT_FSIZE): writing
    beyond it fails with EFBIG in place of ENOSPC, at any byte of a file, too.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self._ballast = folder, folder / "ballast"
        libc = ctypes.CDLL(None, use_errno=True)
        mounted = (
            libc.unshare(CLONE_NEWNS) == 0
            and _quiet("mount", "--make-rprivate", "/") == 0
            and _quiet("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "soak", folder) == 0
        )
        self.means = "tmpfs" if mounted else "RLIMIT_FSIZE"

    def fill(self, left: int, pids: list[int]) -> None:
        """Leave so many bytes, or let those processes' files grow to so many."""
        if self.means == "tmpfs":
            with open(self._ballast, "wb") as file:
                while True:
                    disk = os.statvfs(self.folder)
                    try:
                        size = max(1, disk.f_bavail * disk.f_frsize - left)
                        os.posix_fallocate(file.fileno(), 0, size)
                        return
                    except OSError as error:
                        # The run has written meanwhile: what is left is less.
                        if error.errno != errno.ENOSPC:
                            raise
                        if disk.f_bavail == 0:
                            return
        else:
            _limit(left, pids)

    def close(self) -> None:
        """Take the disk away with what is on it."""
        if self.means == "tmpfs":
            _quiet("umount", self.folder)

    def empty(self, pids: list[int]) -> None:
        """Give the room back."""
        if self.means == "tmpfs":
            self._ballast.unlink(missing_ok=True)
        else:
            _limit(resource.RLIM_INFINITY, pids)


def whole(run: Path) -> dict[int, list[Path]]:
    """The undamaged checkpoints of a run by their step, all bytes read."""
    found: dict[int, list[Path]] = {}
    for path in sorted((run / "checkpoints").glob("*.ckpt")):
        there = is_complete(path) and (path / MANIFEST).is_file()
        if there and damage(path) is None:
            step = int(path.name.partition("step=")[2][:6])
            found.setdefault(step, []).append(path)
    return found


def corrupt(run: Path, draw: random.Random) -> str | None:
    """Damage the newest checkpoint in one file, and say how; None where no other one is whole.

    The best one may share its files, and its damage.
    """
    if len(steps := whole(run)) < 2:
        return None
    newest = steps[max(steps)][-1]
    target = draw.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))
    kind = draw.choice(list(DAMAGES))
    DAMAGES[kind](target, draw)
    return f"{kind} {newest.name}/{target.name}"


def _flip(path: Path, draw: random.Random) -> None:
    # In place: hard links keep their file.
    with open(path, "r+b") as file:
        place = draw.randrange(path.stat().st_size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ draw.randrange(1, 256)]))


def _cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def _delete(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": _flip,
    "cut": _cut,
    "delete": _delete,
}


def _limit(size: int, pids: list[int]) -> None:
    for pid in pids:
        try:
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
        except ProcessLookupError:
            continue


def _quiet(*command: object) -> int:
    try:
        return subprocess.run([str(part) for part in command], capture_output=True).returncode
    except FileNotFoundError:
        return 127
