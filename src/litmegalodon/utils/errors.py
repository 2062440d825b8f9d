"""A user's mistake ends in one line on stderr and exit code 2; a bug ends in a traceback."""

import errno
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from litmegalodon.utils.command_line import is_main_process

# What a process says of its own that others have caused.
PEER_GONE = re.compile("Connection (closed|reset) by peer|DistNetworkError|DistBackendError")
WORKER_GONE = re.compile(
    r"DataLoader worker \(pid.*(exited unexpectedly|killed by signal)", re.DOTALL
)
# What torch says where deterministic=true cannot be kept.
UNDETERMINED = re.compile(r"(?P<what>\S+) does not have a deterministic implementation")
# What Hydra says of a `_target_` that is not there.
NO_TARGET = re.compile(r"Error (?:locating|loading) (?:target )?'(?P<target>[^']+)'")
FULL_KEY = re.compile(r"full_key: (?P<key>\S+)")
# An error of a worker of the data loader: its message ends with the traceback there.
IN_WORKER = re.compile(
    r"Caught \w+ in DataLoader worker.*\n(\w+\.)*\w+Error: (?P<text>.*)", re.DOTALL
)

# There is no room left: on the disk, in a quota, below a limit on a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What a file can't be written to, however much room there is.
LOST = (errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENOTCONN)

# Exit code after Ctrl-C, as shells have it.
INTERRUPTED = 130

# Hydra prints its own errors over several lines unless this variable is 1: then it raises them.
VARIABLE = "HYDRA_FULL_ERROR"
TRACEBACKS_WANTED = os.environ.get(VARIABLE) == "1"


class Stopped(BaseException):
    """A run was asked to stop; what it had is saved, if anything was.

    Args:
        code: exit code of the process.
    """

    def __init__(self, reason: str, code: int):
        super().__init__(reason)
        self.code = code


@contextmanager
def composing() -> Iterator[None]:
    """Around a `hydra.main` function: mistakes on the command line or in a config file."""
    os.environ[VARIABLE] = "1"
    with one_line():
        yield


@contextmanager
def running(tracebacks: bool = False) -> Iterator[None]:
    """Around what a `hydra.main` function does: mistakes in settings."""
    if not TRACEBACKS_WANTED:
        # Processes that the run starts inherit the environment, and it was not the user who set it.
        os.environ.pop(VARIABLE, None)
    before = threading.excepthook
    if not (tracebacks or TRACEBACKS_WANTED):
        threading.excepthook = _told_by_thread
    try:
        with one_line(tracebacks):
            yield
    finally:
        threading.excepthook = before
    os.environ[VARIABLE] = "1"


def _told_by_thread(failed: threading.ExceptHookArgs) -> None:
    """A user's mistake that ends a thread, as TensorBoard's on a disk that is full or gone."""
    if failed.exc_value is None or not is_users(failed.exc_value):
        threading.__excepthook__(failed)
    else:
        print(f"error in a thread: {explain(failed.exc_value)}", file=sys.stderr)


@contextmanager
def one_line(tracebacks: bool = False) -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2, Ctrl-C into one line and 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'interrupted'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Stopped as stopped:
        if is_main_process():
            print(f"\n{stopped}", file=sys.stderr, flush=True)
        sys.exit(stopped.code)
    except Exception as error:
        reason = cause(error)
        if tracebacks or TRACEBACKS_WANTED or not is_users(reason):
            raise
        process = "" if is_main_process() else f" in process {os.environ.get('LOCAL_RANK')}"
        print(f"error{process}: {explain(reason)}", file=sys.stderr)
        sys.exit(2)


def cause(error: BaseException) -> BaseException:
    """The error that a config's object raised, without Hydra's wrapping."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        if NO_TARGET.search(str(error)):
            # What is wrong is the name of the object: nothing was made that could raise.
            break
        error = error.__cause__
    return error


def is_users(error: BaseException) -> bool:
    """Whether an error is about settings or files rather than a bug."""
    if isinstance(error, ValueError | OSError | HydraException | OmegaConfBaseException):
        return True
    known = (PEER_GONE, WORKER_GONE, UNDETERMINED)
    if isinstance(error, RuntimeError) and any(p.search(str(error)) for p in known):
        return True
    # Lightning's is known by name: importing it takes seconds.
    return type(error).__name__ == "MisconfigurationException"


def _is_lost(error: OSError) -> bool:
    """Whether a file can't be written as its file system is read-only or gone, folder and all."""
    if error.errno != errno.ENOENT or not isinstance(error.filename, str | bytes):
        return error.errno in LOST
    folder = os.path.dirname(os.fsdecode(error.filename))
    return bool(folder) and not os.path.isdir(folder)


def explain(error: BaseException) -> str:
    """One sentence for an error, Hydra's own ones reworded to name the setting and the fix."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if (group, name) == ("hydra/sweeper", "optuna"):
            return "hparams_search=optuna: needs pip install 'litmegalodon[optuna]'"
        return f"{group}={name}: there is no such {group}; there are {', '.join(error.options)}"
    if isinstance(error, RuntimeError) and WORKER_GONE.search(str(error)):
        return (
            "data.num_workers: one of the workers was ended, by the system if memory ran out; set"
            " fewer, and go on with ckpt_path=last"
        )
    if isinstance(error, RuntimeError) and (found := UNDETERMINED.search(str(error))):
        return (
            f"deterministic=true: {found['what']} gives other bits from run to run on this device;"
            " set deterministic=warn to be told of it and go on"
        )
    if isinstance(error, RuntimeError) and PEER_GONE.search(str(error)):
        return "another process of this run has ended; what it says is the reason"
    if isinstance(error, OSError) and error.errno in FULL:
        # TensorBoard does not say which file.
        where = os.fsdecode(error.filename or "a file of the run's folder (paths.output_dir)")
        return (
            f"{where} could not be written: {error.strerror}; make room and go on with"
            " ckpt_path=last, the checkpoints are as they were"
        )
    if isinstance(error, OSError) and _is_lost(error):
        return (
            f"{os.fsdecode(error.filename or 'a file of the run')}: {error.strerror}; its folder is"
            " gone or read-only: mount it again and go on with ckpt_path=last, or set another"
            " hydra.run.dir"
        )
    found = IN_WORKER.match(str(error))
    text = " ".join((found["text"] if found else str(error)).split())
    if isinstance(error, InstantiationException) and (found := NO_TARGET.search(text)):
        key = FULL_KEY.search(text)
        name = f"{key['key']}._target_" if key else "_target_"
        return f"{name}={found['target']}: cannot be imported; name a class or function that can"
    if "Could not override" in text:
        given = text.split("'")[1]
        return f"{given}: there is no such setting; --help lists them, +{given}=... adds one"
    if isinstance(error, OmegaConfBaseException):
        first = (error.msg or "").partition("\n")[0]
        return f"{error.full_key}: {first}" if error.full_key else text
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; quote the value, as 'name=\"a value\"'"
    return text
