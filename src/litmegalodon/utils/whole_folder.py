"""A folder that is whole or missing, whatever stops its writing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path, setting: str) -> Iterator[Path]:
    """An empty folder to fill, which stands at `path` once the block is left without an error.

    Args:
        path: where it will be; nothing may be there yet.
        setting: what named the path, for messages.

    Raises:
        ValueError: something is there, or the system refuses to write.
    """
    if path.exists() or path.is_symlink():
        raise ValueError(f"{setting}={path}: is there already; name another folder, or remove it")
    part = path.with_name(f".{path.name}.part")
    try:
        # What a killed process left of one.
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            part.rename(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{setting}={path}: could not be written: {reason}") from error
