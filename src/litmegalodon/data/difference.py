"""Which file it is that makes two sources differ."""

from collections.abc import Mapping

from litmegalodon.data.documents import Source

# Of more files a checkpoint notes none: half a megabyte is enough.
MOST_FILES = 10_000


def files_of(source: Source) -> dict[str, str] | None:
    """Digests of the source's files by name; None where it has none, or too many to keep."""
    digests = getattr(source, "file_digests", None)
    return digests if digests and len(digests) <= MOST_FILES else None


def difference(theirs: Mapping[str, str] | None, ours: Mapping[str, str] | None) -> str:
    """The first file that differs, as a part of a sentence; empty where digests are unknown."""
    if not theirs or not ours:
        return ""
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    if not names:
        return " (the files are the same: split, mixed or their columns taken in another way)"
    first = names[0]
    was, now = theirs.get(first), ours.get(first)
    what = "is new" if was is None else "is gone" if now is None else "has changed"
    if was and now and was.startswith("commit ") and now.startswith("commit "):
        what = f"was of {was} and is of {now}"
    return f" ({first} {what}; {len(names)} of the files differ)"
