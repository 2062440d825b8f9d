"""A run's processes: started as a launcher starts them, signalled, waited for, and what they leave.

They run src/train.py as a program. Most are forks of this process, in which Python, torch and
Lightning are imported already, so that a start takes a second or two; some are started afresh.
"""

import atexit
import ctypes
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src" / "train.py"
WORLD = 2
# How long processes may take to end once one of them has.
PATIENCE = 90.0
# From <sys/prctl.h>: children whose parent has ended become this process's.
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of what a killed process leaves, so that it can be found."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def import_what_forks_need() -> None:
    """Import what a training process imports, and leave no thread behind, which a fork lacks."""

    assert threading.active_count() == 1, threading.enumerate()


class Life:
    """The processes of a run from one start to their end.

    Args:
        arguments: of src/train.py.
        temporary: folder for their temporary files.
        afresh: start new interpreters in place of forks.
    """

    def __init__(self, arguments: list[str], temporary: Path, afresh: bool = False) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self._pipe, self._bytes = reading, bytearray()
        port = _free_port()
        self.pids: list[int] = []
        for rank in range(WORLD):
            # As torchrun sets them.
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(WORLD),
                "LOCAL_WORLD_SIZE": str(WORLD),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "soak",
                "OMP_NUM_THREADS": "1",
                "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "benchmarks"))),
                "TMPDIR": str(temporary),
                # torch's cache, which is meant to stay.
                "TORCHINDUCTOR_CACHE_DIR": str(temporary.parent / "torch-cache"),
                "CUDA_VISIBLE_DEVICES": "",
            }
            start = _interpreter if afresh else _fork
            self.pids.append(start(arguments, variables, writing))
        os.close(writing)
        self.codes: list[int | None] = [None] * WORLD

    def alive(self) -> bool:
        """Whether any process has not ended; reads what they say, too."""
        self._read()
        for rank, pid in enumerate(self.pids):
            if self.codes[rank] is None:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return None in self.codes

    def send(self, number: int, *ranks: int) -> bool:
        """Send a signal to the ranks that have not ended; False if none has got it."""
        self.alive()
        there = [rank for rank in ranks if self.codes[rank] is None]
        for rank in there:
            os.kill(self.pids[rank], number)
        return bool(there)

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition holds; False if all have ended or the time is over before."""
        deadline = time.monotonic() + seconds
        while not until():
            if not self.alive() or time.monotonic() > deadline:
                return until()
            time.sleep(0.004)
        return True

    def end(self) -> bool:
        """Wait for all to end; False if some had to be killed for it, which should never be."""
        self.wait(lambda: False, PATIENCE)
        hung = self.send(signal.SIGKILL, *range(WORLD))
        while self.alive():
            time.sleep(0.01)
        self._read()
        os.close(self._pipe)
        return not hung

    def said(self) -> str:
        """What they have printed."""
        return self._bytes.decode(errors="replace")

    def _read(self) -> None:
        try:
            while block := os.read(self._pipe, 1 << 16):
                self._bytes += block
        except BlockingIOError:
            # Nothing more for now.
            return


def children() -> set[int]:
    """This process's children, adopted ones included; those that have ended are let go."""
    found = set()
    for path in Path("/proc/self/task").glob("*/children"):
        found |= {int(pid) for pid in path.read_text().split()}
    return {pid for pid in found if os.waitpid(pid, os.WNOHANG)[0] == 0}


def left_behind(seconds: float = 30.0) -> list[str]:
    """The command lines of processes that are there after so long; then they are killed.

    A worker of a data loader looks every five seconds whether its parent is there.
    """
    deadline = time.monotonic() + seconds
    while (pids := children()) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = []
    for pid in pids:
        names.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return names


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _interpreter(arguments: list[str], variables: dict[str, str], output: int) -> int:
    command = [sys.executable, str(SCRIPT), *arguments]
    process = subprocess.Popen(
        command,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        # Where this process runs in the background it ignores Ctrl-C, and they would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # Waited for by its number, as forks are.
    process.returncode = 0
    return process.pid


def _fork(arguments: list[str], variables: dict[str, str], output: int) -> int:
    pid = os.fork()
    if pid == 0:
        _be_program(arguments, variables, output)
    return pid


def _be_program(arguments: list[str], variables: dict[str, str], output: int) -> NoReturn:
    """What an interpreter does with a script, from its start to its exit code."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ |= variables
        sys.argv = [str(SCRIPT), *arguments]
        # Temporary folders are the parent's to remove.
        weakref.finalize._registry.clear()
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
        finally:
            os._exit(code)
