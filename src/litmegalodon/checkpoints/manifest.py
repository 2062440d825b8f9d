"""Sizes and hashes of a checkpoint's files, by which a damaged one is known before it is used.

manifest.json is the last file written to a checkpoint's folder. Hashes are XXH3-128, which finds
accidents (`xxhsum -H2` gives the same), not forgeries, at the speed of memory.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

MANIFEST = "manifest.json"
BLOCK = 16 << 20


class HashingFile:
    """A file being written, front to back, that hashes what it is given."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.size = file, xxhash.xxh3_128(), 0
        # Where serialisation in C++ reports something else: the reason that a write failed.
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        with self._noted():
            written = self._file.write(data)
        self._hash.update(data)
        self.size += written
        return written

    def entry(self) -> dict[str, Any]:
        """This file's part of a manifest."""
        return {"bytes": self.size, "xxh3_128": self._hash.hexdigest()}

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        with self._noted():
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        # Whoever opened the file closes it.
        self.flush()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


def write_file(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file to the disk itself, and return its entry of a manifest."""
    with open(path, "wb") as raw:
        file = HashingFile(raw)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return file.entry()


def write_manifest(folder: Path, written: int, files: dict[str, dict[str, Any]]) -> None:
    """Write the manifest of a folder's files.

    Args:
        folder: the checkpoint.
        written: when it was, in ns since 1970: copying a folder changes the times of its files.
        files: entries by name.
    """
    body = {"written": written, "files": files}
    text = json.dumps({**body, "manifest": _hash_of(body)}, separators=(",", ":"))
    write_file(folder / MANIFEST, text.encode())


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None where there is none, as in checkpoints that older versions wrote.

    Raises:
        ValueError: it is damaged.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads(text)
        stated = manifest.pop("manifest")
        # Each byte counts, those between the values too.
        again = json.dumps({**manifest, "manifest": stated}, separators=(",", ":"))
        whole = stated == _hash_of(manifest) and again.encode() == text
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{MANIFEST} is not what was written")
    return manifest


def wrong_size(folder: Path) -> str | None:
    """What is missing from a checkpoint, or cut short, in words; None if nothing is.

    Looks at the files' sizes only: quick, whatever the size.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return str(error)
    for name, entry in ({} if manifest is None else manifest["files"]).items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if size != entry["bytes"]:
            return f"{name} has {size:,} bytes instead of {entry['bytes']:,}"
    return None


def damage(folder: Path, share: slice | None = None) -> str | None:
    """What is wrong with a checkpoint, in words that name the file; None if nothing is.

    Args:
        folder: the checkpoint; nothing can be wrong with one that has no manifest.
        share: which of its files to read, in the order of their names; None: all.
    """
    if wrong := wrong_size(folder):
        return wrong
    files = (read_manifest(folder) or {"files": {}})["files"]
    names = sorted(files)
    return _wrong_content(folder, files, names if share is None else names[share])


def damaged_file(folder: Path, name: str) -> str | None:
    """`damage`, of one file."""
    if wrong := wrong_size(folder):
        return wrong
    files = (read_manifest(folder) or {"files": {}})["files"]
    return _wrong_content(folder, files, [name] if name in files else [])


def _wrong_content(folder: Path, files: dict[str, Any], names: Iterable[str]) -> str | None:
    for name in names:
        digest = xxhash.xxh3_128()
        with open(folder / name, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != files[name]["xxh3_128"]:
            return f"{name} is not what was written"
    return None


def _hash_of(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, separators=(",", ":")).encode())
