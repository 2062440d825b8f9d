"""What a prepared corpus' folder holds, and whether all of it is there.

corpus.json                   what the corpus is made of, written first: `Plan`
tokenizer.model               the tokenizer's model file, where it has one
train-00000-of-00016.arrow    tokens of one unit of work (`token_files`)
train-00000-of-00016.json     its entry, written after it: hash and counts
manifest.json                 the plan and all entries, written when the last entry is there
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from litmegalodon.data.documents import SPLITS
from litmegalodon.data.whole_files import read_json, to_json, write_json, writing

VERSION = 1
PLAN, MANIFEST, MODEL = "corpus.json", "manifest.json", "tokenizer.model"

# Files of a corpus are not much smaller than this, bytes of text, only to have more of them.
UNIT_BYTES = 64 << 20
# Where a source cannot tell its size.
MOST_UNITS = 4096

COUNTS = ("documents", "tokens", "targets", "bytes")


@dataclass(frozen=True)
class Unit:
    """The documents of input shards `first` to before `stop` whose number in their shard has the
    remainder `part` by `parts`: one file of the corpus, number `index` of `units` of its split.
    """

    split: str
    index: int
    units: int
    first: int
    stop: int
    part: int
    parts: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05}-of-{self.units:05}"


@dataclass(frozen=True)
class Plan:
    """What decides the bytes of a corpus; machines that work on one must agree on it.

    By split: `shards` of the source are taken in `groups`, each in as many `parts`.
    """

    tokenizer: dict[str, Any]
    source: str
    shards: dict[str, int]
    groups: dict[str, int]
    parts: dict[str, int]
    version: int = VERSION

    @property
    def digest(self) -> str:
        """16 hex digits of all of it, which every entry bears."""
        return hashlib.sha256(to_json(asdict(self)).encode()).hexdigest()[:16]

    def units(self) -> list[Unit]:
        """All work, in the order of the corpus."""
        units = []
        for split in SPLITS:
            shards, groups, parts = self.shards[split], self.groups[split], self.parts[split]
            for index in range(groups * parts):
                group, part = divmod(index, parts)
                first, stop = group * shards // groups, (group + 1) * shards // groups
                units.append(Unit(split, index, groups * parts, first, stop, part, parts))
        return units


def shared_out(shards: int, least: int, size: int | None) -> tuple[int, int]:
    """In how many groups the shards of a split are taken, and in how many parts each.

    Together `least` or more; many small shards make files of about UNIT_BYTES of text, as far as
    the source's `size` is known.
    """
    if shards <= least:
        return shards, -(-least // max(1, shards))
    most = MOST_UNITS if size is None else size // UNIT_BYTES
    return min(shards, max(least, most)), 1


def check_version(path: Path, content: Mapping[str, Any]) -> None:
    """ValueError where a plan or manifest is of another version of this code."""
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: is of version {content.get('version')} and this code reads {VERSION};"
            " prepare the corpus again"
        )


def read_plan(folder: Path) -> tuple[Plan, dict[str, Any]] | None:
    """The plan of a corpus and what it says of its making; None where the folder has none."""
    content = read_json(folder / PLAN)
    if content is None:
        return None
    check_version(folder / PLAN, content)
    made_from = content.pop("made_from", {})
    return Plan(**content), made_from


def write_plan(folder: Path, plan: Plan, made_from: Mapping[str, Any]) -> None:
    """Note a plan in a folder; one that another machine has noted meanwhile stays."""
    path = folder / PLAN
    content = to_json(asdict(plan) | {"made_from": made_from}).encode()
    with writing(path, wait=True) as file:
        file.write(path.read_bytes() if path.exists() else content)


def read_entry(folder: Path, unit: Unit, plan: Plan) -> dict[str, Any] | None:
    """The entry of a finished unit of this plan, without its mark; None where it is not done."""
    entry = read_json(folder / f"{unit.name}.json")
    return entry if entry is not None and entry.pop("plan", None) == plan.digest else None


def merged(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The manifest that the entries in a folder make, and the names of units that lack one.

    The manifest is None while any is lacking, or where the folder holds no corpus.
    """
    found = read_plan(folder)
    if found is None:
        return None, []
    plan, made_from = found
    entries = {unit: read_entry(folder, unit, plan) for unit in plan.units()}
    missing = [unit.name for unit, entry in entries.items() if entry is None]
    if missing:
        return None, missing
    shards = {
        split: [entry for unit, entry in entries.items() if entry and unit.split == split]
        for split in SPLITS
    }
    manifest = asdict(plan) | {
        "made_from": made_from,
        "totals": {split: _totals(shards[split]) for split in SPLITS},
        "files": shards,
    }
    return manifest, []


def complete(folder: Path) -> list[str]:
    """Write the manifest of a complete corpus; the names of what is missing where it is not."""
    manifest, missing = merged(folder)
    if manifest is not None and read_json(folder / MANIFEST) != manifest:
        write_json(folder / MANIFEST, manifest, wait=True)
    return missing


def _totals(entries: list[dict[str, Any]]) -> dict[str, int]:
    totals = {name: sum(entry[name] for entry in entries) for name in COUNTS}
    left_out = {
        f"left_out_{name}": sum(entry["left_out"][name] for entry in entries)
        for name in ("places", "errors")
    }
    return totals | left_out
