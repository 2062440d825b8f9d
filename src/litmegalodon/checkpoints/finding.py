"""Which checkpoint a setting means."""

import sys
from pathlib import Path

from litmegalodon.checkpoints.manifest import MANIFEST, read_manifest, wrong_size
from litmegalodon.utils.command_line import is_main_process

# A checkpoint is a folder that holds both.
META = "meta.pt"
FILES = (".metadata", META)
# What is added to its name while it is written, and while it is deleted.
PARTIAL, DOOMED = ".partial", ".deleted"


def is_complete(path: str | Path) -> bool:
    """Whether a path is a checkpoint that was written to its end."""
    return all((Path(path) / name).is_file() for name in FILES)


def written(path: Path) -> int:
    """When a complete checkpoint was finished, in ns since 1970."""
    try:
        manifest = read_manifest(path)
    except ValueError:
        manifest = None
    return manifest["written"] if manifest else (path / META).stat().st_mtime_ns


def by_age(folder: Path, pattern: str = "*.ckpt") -> list[Path]:
    """The complete checkpoints below a folder, the one finished last first."""
    found = [path for path in folder.rglob(pattern) if is_complete(path)]
    return sorted(found, key=written, reverse=True)


def is_export(path: str | Path) -> bool:
    """Whether a path is a folder of safetensors with a config, as scripts/export_checkpoint.py
    writes them.
    """
    path = Path(path)
    names = ("model.safetensors", "model.safetensors.index.json")
    return (path / "config.json").is_file() and any((path / name).is_file() for name in names)


def newest(folder: Path) -> Path | None:
    """The checkpoint below a folder that was finished last, None where there is none.

    One of which a file is missing or cut short is left out, and that is said.
    """
    for path in (*_cut_short(folder), *by_age(folder)):
        if (wrong := wrong_size(path)) is None:
            return path
        if is_main_process():
            print(f"{path} is damaged: {wrong}; another one is looked for", file=sys.stderr)
    return None


def _cut_short(folder: Path) -> list[Path]:
    """What was written to its end and has lost a file by which a checkpoint is known."""
    found = [p for p in folder.rglob("*.ckpt") if (p / MANIFEST).is_file() and not is_complete(p)]
    return sorted(path for path in found if wrong_size(path))


def older(path: Path) -> list[Path]:
    """The whole checkpoints beside one that were finished before it, the newest of them first."""
    age = written(path)
    return [p for p in by_age(path.parent) if written(p) < age and wrong_size(p) is None]


def find(
    name: str, value: str, task_dir: Path, run_dir: Path | None = None, exports: bool = False
) -> Path | None:
    """The checkpoint that a setting's value means.

    Args:
        name: the setting, for messages.
        value: a checkpoint, a run's folder (its newest one), or `last`: the newest one of the
            run's own folder where it holds any, else of the task's. `auto`, of a run that is
            started by the same command again and again: the newest one of its own folder, None as
            long as there is none, whole or damaged.
        exports: whether the folder of an export may be meant.

    Raises:
        ValueError: there is none.
    """
    if value == "last":
        path = (run_dir and newest(run_dir)) or newest(task_dir)
        if path is None:
            raise ValueError(f"{name}=last: there is no complete checkpoint under {task_dir} yet")
        return path
    if value == "auto" and run_dir is not None:
        path = newest(run_dir)
        if path is None and (damaged := [*_cut_short(run_dir), *by_age(run_dir)]):
            raise ValueError(
                f"{name}=auto: no checkpoint under {run_dir} is whole, of {len(damaged)}; remove"
                " them to begin anew"
            )
        return path
    path = Path(value).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"{name}={value}: there is no such file or folder; `last` is the newest")
    if is_complete(path) or (exports and is_export(path)):
        return path
    if is_export(path):
        raise ValueError(
            f"{name}={value}: is an export, which text is written with; for training and"
            " evaluation make a checkpoint of it: python scripts/import_checkpoint.py from=export"
            f" path={value} output=imported"
        )
    inside = newest(path) if path.is_dir() else None
    if inside is None:
        raise ValueError(
            f"{name}={value}: is not a checkpoint, which is a folder that holds"
            f" {' and '.join(FILES)}"
        )
    return inside


def run_config(checkpoint: Path) -> Path | None:
    """The configuration that Hydra saved for the run that wrote a checkpoint, if it is there."""
    path = checkpoint.parent.parent / ".hydra" / "config.yaml"
    return path if path.is_file() else None
