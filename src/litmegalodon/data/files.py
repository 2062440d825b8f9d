"""Files on this machine as a corpus: text, JSON lines and Parquet, also compressed."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from litmegalodon.data import readers
from litmegalodon.data.columns import Columns
from litmegalodon.data.documents import Document, LeftOut, is_held_out
from litmegalodon.data.holding_out import HoldOut, fraction_of
from litmegalodon.data.listing import Listing, list_files, unreadable
from litmegalodon.data.readers import TEXT_FORMATS, CorpusFile

# The fingerprint reads all of a file of at most WHOLE bytes, of a larger one BLOCKS evenly spaced
# blocks of BLOCK bytes.
WHOLE = 64 << 20
BLOCKS, BLOCK = 256, 64 << 10
# Files that are read at a time.
THREADS = 16


@dataclass(frozen=True)
class FileShard:
    """One file, of whose documents it gives those that `wanted` says yes to by name.

    `part` (i, n) gives of these the ones alone whose numbers have the remainder i by n. Of several
    shards of a file one `tells_of_file`, where it is empty or breaks off; all tell of a change.
    """

    name: str
    file: CorpusFile
    columns: Columns
    wanted: Callable[[str], bool]
    part: tuple[int, int] = (0, 1)
    tells_of_file: bool = True

    def documents(self, first: int = 0) -> Iterator[tuple[int, Document | LeftOut]]:
        return readers.documents(
            self.file, self.columns, first, self.wanted, self.part, self.tells_of_file
        )

    def in_part(self, part: int, parts: int) -> "FileShard":
        """The same file, of which no more is parsed than that part asks for."""
        return replace(self, part=(part, parts))


class FilesSource:
    """The files that `paths` match: a text file is a document, so is a line or row of the others.

    `paths` and `val_paths` are a pattern or several: files, folders, or either with wildcards as in
    `corpus/**/*.jsonl.gz`, from `root` or the working folder on. A document is named by its path
    from the patterns' common folder and its line or row. Held out are the documents of `val_paths`,
    and without them those whose names' hashes fall into `validation_fraction` of all, 0.01 by
    default; this reads all files to find them, lines are only parsed if held out.
    ValueError where a setting is wrong, matches nothing that can be read or leaves a split empty.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        val_paths: str | Sequence[str] | None = None,
        validation_fraction: float | None = None,
        text_column: str = "text",
        prompt_column: str | None = None,
        completion_column: str | None = None,
        root: str | None = None,
    ) -> None:
        self.patterns = {"paths": _patterns("paths", paths)}
        if val_paths is not None:
            self.patterns["val_paths"] = _patterns("val_paths", val_paths)
        self.validation_fraction = fraction_of(validation_fraction, "val_paths", val_paths)
        self.columns = Columns(text_column, prompt_column, completion_column)
        self.root = root

    def shards(self, split: str) -> list[FileShard]:
        """One a file, those of text files only where they are in the split.

        A file of both splits is told of in `train` where it is empty or breaks off.
        """
        files = self._listing.files["paths" if self._by_hash or split == "train" else "val_paths"]
        wanted = HoldOut(split, self.validation_fraction)
        shards = [
            FileShard(
                file.name,
                file,
                self.columns,
                wanted,
                tells_of_file=split == "train" or not self._in_both(file),
            )
            for file in files
            if file.format not in TEXT_FORMATS or wanted(file.name)
        ]
        if not shards:
            raise ValueError(self._no_document(split, [file.name for file in files]))
        if not any(shard.tells_of_file for shard in shards) and self._unreadable is not None:
            raise ValueError(self._unreadable)
        return shards

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and content, of the columns and of how they are split.

        Content as `content_digest` sees it: any change of a file of at most 64 MiB is noticed; of a
        larger one a change of its size, and of bytes in the blocks that are read.
        """
        digest = hashlib.sha256(repr((self.columns, self.validation_fraction)).encode())
        for setting, of_files in self._digests.items():
            digest.update(f"{setting} {len(of_files)}".encode())
            for of_file in of_files.values():
                digest.update(of_file)
        return digest.hexdigest()[:16]

    @property
    def file_digests(self) -> dict[str, str]:
        """What the fingerprint is made of, 8 hex digits a file, by name."""
        return {
            name: of_file.hex()[:8]
            for of_files in self._digests.values()
            for name, of_file in of_files.items()
        }

    @cached_property
    def _digests(self) -> dict[str, dict[str, bytes]]:
        """Of name, size and content of each file, by setting and name."""
        with ThreadPoolExecutor(THREADS) as pool:
            return {
                setting: dict(
                    zip(
                        (file.name for file in files),
                        pool.map(lambda file, s=setting: _file_digest(s, file), files),
                        strict=True,
                    )
                )
                for setting, files in self._listing.files.items()
            }

    @property
    def left_out(self) -> dict[str, int]:
        """Files that match and are not read, and their bytes."""
        return self._listing.left_out

    @property
    def left_out_endings(self) -> Mapping[str, int]:
        """How many files were left out by the ending of their names, or by why they were."""
        return self._listing.left_out_endings

    @cached_property
    def num_bytes(self) -> int | None:
        """Bytes of text, JSON's marks included; None where files are compressed as a whole."""
        files = [file for of_setting in self._listing.files.values() for file in of_setting]
        if any(file.compression for file in files):
            return None
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(lambda file: readers.text_bytes(file, self.columns) or 0, files))

    def _in_both(self, file: CorpusFile) -> bool:
        return self._by_hash and file.format not in TEXT_FORMATS

    @cached_property
    def _unreadable(self) -> str | None:
        """Why the first file of `paths` cannot be read, where none of them can."""
        problems = []
        for file in self._listing.files["paths"]:
            _, item = next(readers.documents(file, self.columns), (0, None))
            if not (isinstance(item, LeftOut) and item.error and item.where == file.shown):
                return None
            problems.append(f"{item.where}: {item.reason}; mend it, or name other files")
        return problems[0]

    @property
    def _by_hash(self) -> bool:
        return self.validation_fraction is not None

    @cached_property
    def _listing(self) -> Listing:
        listing = list_files(self.patterns, self.root)
        if not self._by_hash:
            trained = {os.path.realpath(file.path) for file in listing.files["paths"]}
            both = [f for f in listing.files["val_paths"] if os.path.realpath(f.path) in trained]
            if both:
                raise ValueError(
                    f"data.source.val_paths: {len(both)} of its files would also be trained on,"
                    f" {both[0].path} for one; change data.source.paths so that it misses them"
                )
        return listing

    def _no_document(self, split: str, names: Sequence[str]) -> str:
        """Why text files alone, each a document, leave a split empty, and what to do."""
        instead = "name files to validate on, as data.source.val_paths=[held_out/*.txt]"
        if len(names) == 1:
            return (
                f"data.source.paths: matches one text file, {names[0]}, which is one document and"
                f" cannot be both trained on and held out; {instead}, or cut it into several files"
            )
        setting = f"data.source.validation_fraction={self.validation_fraction}"
        if split == "train":
            return f"{setting}: holds out all {len(names)} files; lower it, or {instead}"
        steps = (step / 1000 for step in range(1, 1001))
        enough = next(step for step in steps if any(is_held_out(name, step) for name in names))
        raised = f"raise it to {enough:g} or more, or " if enough < 1 else ""
        return f"{setting}: holds out none of {len(names)} text files; {raised}{instead}"


def _patterns(setting: str, value: str | Sequence[str]) -> list[str]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    patterns: list[Any] = list(value) if is_list else [value]
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ValueError(
            f"data.source.{setting}={'null' if value is None else value}: must name files, as"
            f" data.source.{setting}=[corpus/**/*.jsonl]"
        )
    return patterns


def content_digest(path: str, size: int) -> bytes:
    """SHA-256 of a file of `size` bytes: of all of it up to 64 MiB, above of 256 evenly spaced
    blocks of 64 KiB, the first and the last among them.

    Not noticed is a change of a larger file that keeps its size and lies between those blocks; when
    a file was written counts for nothing, since a copy of it is the same text.
    """
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        if size <= WHOLE:
            while block := file.read(BLOCK * 16):
                digest.update(block)
        else:
            for i in range(BLOCKS):
                file.seek(i * (size - BLOCK) // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.digest()


def _file_digest(setting: str, file: CorpusFile) -> bytes:
    digest = hashlib.sha256(file.name.encode(errors="surrogateescape"))
    digest.update(f" {file.size} ".encode())
    try:
        digest.update(content_digest(file.path, file.size))
    except OSError as error:
        raise unreadable(setting, file.path, error) from None
    return digest.digest()
