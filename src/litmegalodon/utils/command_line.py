"""What has to be in place before Hydra reads the command line."""

import os
import re
import sys
from pathlib import Path

# Settings whose values are paths. Hydra's grammar has no unquoted `=`, which checkpoint names hold.
PATHS = (
    "ckpt_path",
    "init_from",
    "hydra.run.dir",
    "output",
    "path",
    "prompt_file",
    "state",
    "save_state",
    "data.source.folder",
    "data.tokenizer.path",
    "evaluation.prompts",
    "harness.include_path",
)
UNQUOTED = re.compile(r"[\w\-./\\+%*@?|:]*")


def prepare(script: str) -> None:
    """Set PROJECT_ROOT, read .env and quote the paths on the command line.

    `script` lies in a folder of the project, as src/ or scripts/.
    """
    root = Path(script).resolve().parents[1]
    os.environ.setdefault("PROJECT_ROOT", str(root))
    read_env(root / ".env")
    sys.argv[1:] = [quote_path(argument) for argument in sys.argv[1:]]


def read_env(path: Path) -> None:
    """Put the NAME=value lines of a file into the environment; variables that exist win.

    A missing file is fine. Lines that start with # and blank lines are ignored, quotes around a
    value are taken off; anything else raises ValueError.
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip().isidentifier():
            # The line is not shown: it may hold a key.
            raise ValueError(f"{path}, line {number}: must be NAME=value; correct the line")
        os.environ.setdefault(name.strip(), re.sub(r"^(['\"])(.*)\1$", r"\2", value.strip()))


def quote_path(argument: str) -> str:
    """Quote the value of `name=path` for Hydra where the path holds characters that it parses.

    Commas still separate the values of a sweep; a value with quotes is left alone.
    """
    name, equals, value = argument.partition("=")
    if not equals or name.lstrip("+") not in PATHS or value[:1] in ("'", '"'):
        return argument
    parts = [p if UNQUOTED.fullmatch(p) else f"'{_escape(p)}'" for p in value.split(",")]
    return f"{name}={','.join(parts)}"


def _escape(text: str) -> str:
    return text.replace("'", "\\'")


def take_texts(*names: str) -> dict[str, list[str]]:
    """Take `name=text` arguments off the command line before Hydra parses it, text as it is.

    Quotes, commas, braces, line breaks and `=` are characters like others. The values of each name
    in their order; bytes that are no UTF-8 come as Python has them in sys.argv.
    """
    taken: dict[str, list[str]] = {name: [] for name in names}
    left = []
    for argument in sys.argv[1:]:
        name, equals, text = argument.partition("=")
        if equals and name in taken:
            taken[name].append(text)
        else:
            left.append(argument)
    sys.argv[1:] = left
    return taken


def is_main_process() -> bool:
    """Whether this process is the one of its run that prints, told from the environment."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank == "0" for rank in ranks if rank is not None), True)
