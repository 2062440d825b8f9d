"""Which checkpoint a setting means."""

from pathlib import Path

# A checkpoint is a folder that holds both; the one written last makes it complete.
META = "meta.pt"
FILES = (".metadata", META)


def is_complete(path: str | Path) -> bool:
    """Whether a path is a checkpoint that was written to its end."""
    return all((Path(path) / name).is_file() for name in FILES)


def is_export(path: str | Path) -> bool:
    """Whether a path is a folder of safetensors with a config, as scripts/export_checkpoint.py
    writes them.
    """
    path = Path(path)
    names = ("model.safetensors", "model.safetensors.index.json")
    return (path / "config.json").is_file() and any((path / name).is_file() for name in names)


def newest(folder: Path) -> Path | None:
    """The complete checkpoint below a folder that was finished last, None where there is none."""
    found = [path for path in folder.rglob("*.ckpt") if is_complete(path)]
    return max(found, key=lambda path: (path / META).stat().st_mtime_ns, default=None)


def find(
    name: str, value: str, task_dir: Path, run_dir: Path | None = None, exports: bool = False
) -> Path:
    """The checkpoint that a setting's value means.

    Args:
        name: the setting, for messages.
        value: a checkpoint, a run's folder (its newest one), or `last`: the newest one of the
            run's own folder where it holds any, else of the task's.
        exports: whether the folder of an export may be meant.

    Raises:
        ValueError: there is none.
    """
    if value == "last":
        path = (run_dir and newest(run_dir)) or newest(task_dir)
        if path is None:
            raise ValueError(f"{name}=last: there is no complete checkpoint under {task_dir} yet")
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
