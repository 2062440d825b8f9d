"""The interpreter's own standard library as a corpus: real text, long documents, no download."""

import hashlib
import os
import re
import sysconfig
from functools import cached_property
from pathlib import Path

from litmegalodon.data.documents import Document, ListShard, corpus_fingerprint
from litmegalodon.data.holding_out import check_fraction

# Installed packages are not the standard library and caches hold no source: not even counted.
_FOREIGN_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})

# Tests, and what is generated, bundled or data in the form of Python.
_LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "_bundled"}
)

# Made for one machine: they hold its paths and compiler flags.
_MACHINE_FILE = re.compile(r"_sysconfigdata.*|(site|user)customize\.py")

# How the tables of `encodings` begin, most going on "generated from '...' with gencodec.py".
_ENCODING_TABLE = re.compile(rb'"""\s*Python Character Mapping Codec')


class StdlibSource:
    """Every top-level package or module of the standard library is one document.

    A document is the package's .py files in path order, each headed by a line with its relative
    path (`# email/charset.py`), as bytes with Unix line ends. Held out are documents in the order
    of a hash of their names, skipping those above `max_validation_document` of the corpus' bytes,
    until `validation_fraction` of the bytes is reached. `root` names another folder of sources.
    ValueError where a setting or an empty folder leaves a split empty.
    """

    def __init__(
        self,
        validation_fraction: float = 0.05,
        max_validation_document: float = 0.02,
        root: str | None = None,
    ) -> None:
        check_fraction(validation_fraction)
        if not 0 < max_validation_document <= 1:
            raise ValueError(
                f"data.source.max_validation_document={max_validation_document}:"
                " must be above 0 and at most 1"
            )
        self.validation_fraction = validation_fraction
        self.max_validation_document = max_validation_document
        self.root = root

    def shards(self, split: str) -> list[ListShard]:
        return [ListShard(split, self._splits[split])]

    @property
    def num_bytes(self) -> int:
        return sum(len(document.text) for document in self._read[0])

    @cached_property
    def fingerprint(self) -> str:
        return corpus_fingerprint(self._splits)

    @property
    def left_out(self) -> dict[str, int]:
        """Files and bytes of Python source under the root that are no part of the corpus.

        Installed packages (site-packages) are not looked at.
        """
        return self._read[1]

    @cached_property
    def _splits(self) -> dict[str, list[Document]]:
        documents = self._read[0]
        total = sum(len(document.text) for document in documents)
        held_out: set[str] = set()
        held_out_bytes = 0
        for document in sorted(documents, key=_name_hash):
            if held_out_bytes >= self.validation_fraction * total:
                break
            if len(document.text) <= self.max_validation_document * total:
                held_out.add(document.name)
                held_out_bytes += len(document.text)
        if not held_out:
            raise ValueError(
                f"data.source.max_validation_document={self.max_validation_document}: none of the"
                f" {len(documents)} documents is that small a part of the corpus,"
                " so none can be held out; raise it"
            )
        if len(held_out) == len(documents):
            raise ValueError(
                f"data.source.validation_fraction={self.validation_fraction}: all {len(documents)}"
                " documents would be held out and none is left to train on; lower it"
            )
        return {
            "train": [document for document in documents if document.name not in held_out],
            "val": [document for document in documents if document.name in held_out],
        }

    @cached_property
    def _read(self) -> tuple[list[Document], dict[str, int]]:
        root = Path(self.root if self.root is not None else sysconfig.get_paths()["stdlib"])
        parts: dict[str, list[bytes]] = {}
        left_out = {"files": 0, "bytes": 0}
        for path in _python_files(root):
            relative = path.relative_to(root)
            text = path.read_bytes()
            if _is_left_out(relative, text):
                left_out["files"] += 1
                left_out["bytes"] += len(text)
            else:
                header = f"# {relative.as_posix()}\n".encode(errors="surrogateescape")
                parts.setdefault(relative.parts[0], []).append(header + _normalised(text))
        if not parts:
            raise ValueError(
                f"data.source.root={'null' if self.root is None else self.root}: no Python source"
                f" to train on in {root.absolute()}; name a folder that holds .py files, or null"
                " for the interpreter's own standard library"
            )
        return [Document(name, b"".join(texts)) for name, texts in parts.items()], left_out


def _python_files(root: Path) -> list[Path]:
    """All .py files below `root` in path order, the same on every file system."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _FOREIGN_FOLDERS]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _is_left_out(relative: Path, text: bytes) -> bool:
    folders = relative.parts[:-1]
    return (
        not _LEFT_OUT_FOLDERS.isdisjoint(folders)
        or any(folder.startswith("config-") for folder in folders)
        or _MACHINE_FILE.fullmatch(relative.name) is not None
        or (folders == ("encodings",) and _ENCODING_TABLE.match(text) is not None)
    )


def _normalised(text: bytes) -> bytes:
    """Unix line ends, after the last line too, so that the next file's header opens a line."""
    text = text.replace(b"\r\n", b"\n")
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _name_hash(document: Document) -> str:
    return hashlib.sha256(document.name.encode(errors="surrogateescape")).hexdigest()
