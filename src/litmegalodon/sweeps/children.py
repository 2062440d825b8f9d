"""A run of a sweep as a process of its own, which may crash without harm to the others."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from litmegalodon import checkpoints

# What the process said on stderr, its traceback among it.
ERRORS = "errors.txt"
INTERRUPTED = 130


def command(overrides: Sequence[str], folder: Path) -> list[str]:
    """The command that trains a run in its folder, from its own newest checkpoint if it has one."""
    settings = list(overrides)
    if checkpoints.newest(folder) is not None:
        # Where it started from is in the checkpoint.
        own = ("ckpt_path=", "init_from=")
        settings = [s for s in settings if not s.lstrip("+").startswith(own)]
        settings.append("ckpt_path=last")
    script = str(Path(sys.argv[0]).resolve())
    return [sys.executable, script, *settings, f"hydra.run.dir={folder}"]


def run(arguments: Sequence[str], folder: Path, lock: IO[str]) -> int:
    """Run a command to its end and return its exit code; it holds `lock` for as long as it lives.

    A signal to end this process ends the command first, as a terminal's Ctrl-C would.

    Raises:
        KeyboardInterrupt: this process or the command was interrupted.
    """
    with _handed_on() as attach:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[lock.fileno()],
            # A terminal's Ctrl-C reaches this process only, which hands it on once.
            process_group=0,
        )
        attach(process)
        echo = threading.Thread(target=_echo, args=(process.stderr, folder / ERRORS), daemon=True)
        echo.start()
        code = process.wait()
    echo.join(timeout=5)
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    return code


@contextmanager
def _handed_on() -> Iterator[Callable[[subprocess.Popen], None]]:
    """Hand signals on to the process that is attached; raise KeyboardInterrupt at the end.

    Signals that are ignored stay so, as under nohup.
    """
    processes: list[subprocess.Popen] = []
    received: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        received.append(number)
        for process in processes:
            process.send_signal(number)

    def attach(process: subprocess.Popen) -> None:
        processes.append(process)
        for number in received:
            process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield attach
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, hand_on)
    try:
        yield attach
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _echo(stream: IO[bytes], path: Path) -> None:
    """Show what comes on a stream and keep it in a file, which is made when there is something."""
    while chunk := os.read(stream.fileno(), 65536):
        sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()
        with path.open("ab") as file:
            file.write(chunk)
