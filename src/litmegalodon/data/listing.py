"""The files that patterns mean, in an order that is the same on every file system."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from litmegalodon.data.readers import COMPRESSIONS, FORMATS, CorpusFile

READABLE = f"{', '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)}"


@dataclass
class Listing:
    """Files by each setting that names some, and what matched and is not read.

    `left_out` counts the latter as `{"files": ..., "bytes": ...}`, `left_out_endings` by their
    names' endings, or as "hidden" or "link to a file that is read".
    """

    files: dict[str, list[CorpusFile]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=lambda: {"files": 0, "bytes": 0})
    left_out_endings: Counter[str] = field(default_factory=Counter)

    def leave_out(self, kind: str, size: int) -> None:
        self.left_out["files"] += 1
        self.left_out["bytes"] += size
        self.left_out_endings[kind] += 1


def list_files(patterns: Mapping[str, Sequence[str]], root: str | None) -> Listing:
    """The files of `{setting: patterns}`, each named by its path from the patterns' common folder.

    A pattern is a file, a folder, which stands for all that is in it, or either with `*`, `?`,
    `[...]` and `**`; it is looked up below `root`, or the working folder. Files whose names, or
    whose folders' names, begin with a dot are not read; those in a folder that is matched are
    counted. A file that links make match more than once is read once, by its own name where that
    is matched. ValueError that names the setting where a pattern matches nothing, or nothing of a
    format that is read.
    """
    bases, listing = [], Listing()
    hidden: set[str] = set()
    # Two patterns may mean the same file.
    matched: dict[str, dict[str, str]] = {setting: {} for setting in patterns}
    for setting, of_setting in patterns.items():
        for pattern in of_setting:
            inner = os.path.expanduser(pattern)
            full = os.path.join(root or "", inner)
            # A wildcard in the name of the root is none.
            found = glob.glob(os.path.join(glob.escape(root or ""), inner), recursive=True)
            paths = list(_files(setting, [full] if os.path.lexists(full) else found, hidden))
            _check_matched(f"{setting}={pattern}", paths, root)
            bases.append(_base(full))
            matched[setting] |= {os.path.abspath(path): path for path in paths}
    folder = os.path.commonpath(bases)
    for path in hidden.difference(*matched.values()):
        listing.leave_out("hidden", _size(path))
    for setting, by_absolute in matched.items():
        files = []
        again = _met_again(by_absolute)
        for absolute, path in by_absolute.items():
            status = _status(setting, path)
            size = status.st_size
            name = os.path.relpath(absolute, folder).replace(os.sep, "/")
            file = CorpusFile(name, path, size, status.st_mtime_ns)
            # Opening a pipe would wait for whoever writes to it.
            if file.format is None or not stat.S_ISREG(status.st_mode):
                listing.leave_out(_ending(path), size)
            elif absolute in again:
                listing.leave_out("link to a file that is read", size)
            else:
                files.append(file)
        listing.files[setting] = sorted(files, key=lambda file: file.name.split("/"))
    return listing


def _met_again(absolute: Iterable[str]) -> set[str]:
    """Paths to files that another path leads to: its own, if it is of a format, or the first."""
    # What a link of a format leads to may itself be of none, as in caches of downloads.
    paths = [path for path in absolute if CorpusFile("", path, 0).format is not None]
    real = {path: os.path.realpath(path) for path in paths}
    links_first = sorted(
        paths, key=lambda path: (os.path.islink(path), path != real[path], path), reverse=True
    )
    read = {real[path]: path for path in links_first}
    return {path for path in paths if read[real[path]] != path}


def _files(setting: str, found: Sequence[str], hidden: set[str]) -> Iterator[str]:
    """The files among `found` and in its folders, whose hidden ones are noted in `hidden`."""
    for path in found:
        if os.path.isdir(path):
            yield from _below(setting, path, hidden)
        else:
            yield path


def _below(setting: str, folder: str, hidden: set[str]) -> Iterator[str]:
    """All files in a folder and those below it; a link that leads back up is followed once."""

    def refuse(error: OSError) -> None:
        raise unreadable(setting, error.filename, error)

    seen: set[str] = set()
    for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(path)
        visible = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (os.path.join(path, name) for name in names if not name.startswith("."))
            hidden |= {os.path.abspath(os.path.join(path, n)) for n in names if n.startswith(".")}
            for name in folders:
                if name.startswith("."):
                    hidden |= _all_below(os.path.join(path, name))
        seen.add(real)
        folders[:] = visible


def _all_below(folder: str) -> set[str]:
    """All files below a folder as far as it may be read, links not followed."""
    below = os.walk(os.path.abspath(folder))
    return {os.path.join(path, name) for path, _, names in below for name in names}


def _check_matched(setting: str, paths: Sequence[str], root: str | None) -> None:
    folder = os.path.abspath(root or "")
    if not paths:
        raise ValueError(f"data.source.{setting}: matches no file in {folder}")
    if all(CorpusFile("", path, 0).format is None for path in paths):
        endings = sorted({_ending(path) for path in paths})
        files = "one file" if len(paths) == 1 else f"{len(paths)} files"
        raise ValueError(
            f"data.source.{setting}: matches {files} in {folder}, none of a format that is read"
            f" ({', '.join(endings[:10])}); formats are {READABLE}"
        )


def _ending(path: str) -> str:
    stem, ending = os.path.splitext(path)
    if ending.lower() in COMPRESSIONS:
        ending = os.path.splitext(stem)[1] + ending
    return ending or "no ending"


def _base(pattern: str) -> str:
    """The folder that a pattern looks in, as far as it has no wildcard."""
    path = os.path.abspath(pattern)
    if os.path.isdir(path):
        return path
    if os.path.lexists(path):
        return os.path.dirname(path)
    parts = path.split(os.sep)
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return os.sep.join(parts[:plain]) or os.sep


def _size(path: str) -> int:
    """Of a file, or of a link itself; 0 where it is gone by now."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _status(setting: str, path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise unreadable(setting, path, error) from None


def unreadable(setting: str, path: str, error: OSError) -> ValueError:
    """What to raise for a file or folder that a setting names and the run cannot read."""
    return ValueError(
        f"data.source.{setting}: {path} cannot be read ({error.strerror}); mend that, or leave it"
        " out of the patterns"
    )
