"""Tokenise a source once, into a folder that `PreparedCorpus` reads.

The work is cut into units by settings alone (`Plan`), so that any number of processes and machines
make the same files. A unit is done when its entry is there; what a kill leaves is done again.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from litmegalodon.data import manifest, whole_files
from litmegalodon.data.documents import SPLITS, Document, LeftOut, Shard, Source
from litmegalodon.data.manifest import Plan, Unit
from litmegalodon.data.mixture import MixtureSource
from litmegalodon.data.store import OnError
from litmegalodon.data.token_files import TokenWriter
from litmegalodon.data.tokenizer import Tokenizer

# By split: files of a corpus at least, and so how many processes can work on it.
UNITS = {"train": 16, "val": 2}

# Places of a unit that gave no document and are told in its entry; all are counted.
EXAMPLES = 10


@runtime_checkable
class Divisible(Protocol):
    """A shard that parses no more than is asked for."""

    def in_part(self, part: int, parts: int) -> Shard:
        """The same records, those of one of `parts` alone."""


@dataclass(frozen=True)
class Finished:
    """A unit that is done: its counts, whether an earlier run did it, and how long it took."""

    unit: Unit
    counts: dict[str, int]
    kept: bool
    seconds: float


@dataclass
class Work:
    """What a process needs to do units; it is sent to worker processes."""

    source: Source
    tokenizer: Tokenizer
    folder: Path
    plan: Plan
    on_error: str

    def do(self, unit: Unit) -> Finished:
        """Make a unit's file and entry, or find that both are there and whole."""
        began = time.monotonic()
        entry = manifest.read_entry(self.folder, unit, self.plan)
        kept = entry is not None and _is_whole(self.folder, entry)
        if entry is None or not kept:
            entry = self._make(unit)
            content = entry | {"plan": self.plan.digest}
            whole_files.write_json(self.folder / f"{unit.name}.json", content)
        counts = {name: entry[name] for name in manifest.COUNTS}
        return Finished(unit, counts, kept, time.monotonic() - began)

    def _make(self, unit: Unit) -> dict[str, Any]:
        path = self.folder / f"{unit.name}.arrow"
        # What an entry says must not be of the file before.
        with whole_files.saving(path):
            path.with_suffix(".json").unlink(missing_ok=True)
        shards = self.source.shards(unit.split)[unit.first : unit.stop]
        on_error = OnError(self.on_error)
        places = errors = 0
        examples: list[str] = []
        with whole_files.writing(path) as file:
            writer = TokenWriter(file, self.tokenizer)
            for item in _documents(shards, unit):
                if isinstance(item, LeftOut):
                    counted = on_error(item)
                    places += counted
                    errors += counted * item.error
                    if counted and len(examples) < EXAMPLES:
                        examples.append(f"{item.where}: {item.reason}")
                else:
                    writer.add(item)
            writer.close()
            file.flush()
            size, digest = os.path.getsize(file.name), whole_files.sha256(Path(file.name))
        return {
            "file": path.name,
            "size": size,
            "sha256": digest,
            "left_out": {"places": places, "errors": errors, "examples": examples},
            **writer.counts,
        }


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    machine: tuple[int, int] = (1, 1),
    workers: int = 1,
    units: Mapping[str, int] = UNITS,
    on_error: str = "raise",
    made_from: Mapping[str, Any] | None = None,
    done: Callable[[Finished, int, int], None] = lambda finished, number, of: None,
) -> list[str]:
    """Do the units of machine i of n, those numbered i, i + n, ..., that are not done yet.

    Returns the names of the units that other machines still have to do; where there are none the
    manifest is written, and the corpus complete.

    Args:
        source, tokenizer: what is read, and its tokens; both are sent to the workers.
        folder: new, or of this very corpus.
        machine: (i, n), i from 1.
        workers: processes; 1 works in this one.
        units: by split, how many units there are at least. The same on all machines.
        on_error: `raise` where the source finds no document in a place that should hold one, or
            `skip` and count it.
        made_from: told in the manifest, for who reads it.
        done: called with (what is done, its number from 1, how many this machine has).

    Raises:
        ValueError: a setting and its fix, or what in the source or the folder is at fault.
    """
    OnError(on_error)
    if isinstance(source, MixtureSource):
        raise ValueError(
            "data.source.weights: a corpus holds every document once, whatever its weight; prepare"
            " each of the sources by itself, and mix the corpora"
        )
    shards = {split: len(source.shards(split)) for split in SPLITS}
    shared = {
        split: manifest.shared_out(shards[split], units[split], source.num_bytes)
        for split in SPLITS
    }
    model = getattr(tokenizer, "model", None)
    plan = Plan(
        tokenizer={
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "model": None if model is None else manifest.MODEL,
        },
        source=source.fingerprint,
        shards=shards,
        groups={split: groups for split, (groups, _) in shared.items()},
        parts={split: parts for split, (_, parts) in shared.items()},
    )
    _open_folder(folder, plan, {"left_out": dict(source.left_out), **(made_from or {})}, model)
    work = Work(source, tokenizer, folder, plan, on_error)
    number, machines = machine
    ours = plan.units()[number - 1 :: machines]
    for i, finished in enumerate(_all(work, ours, workers), 1):
        done(finished, i, len(ours))
    return manifest.complete(folder)


def _open_folder(
    folder: Path, plan: Plan, made_from: Mapping[str, Any], model: bytes | None
) -> None:
    """Note the plan in a new folder; ValueError where the folder holds something else."""
    with whole_files.saving(folder / manifest.PLAN):
        folder.mkdir(parents=True, exist_ok=True)
        # What begins with a dot is left by a run that was killed.
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others and manifest.PLAN not in others:
        raise ValueError(f"output={folder}: holds other files ({min(others)}); name a new folder")
    if not others:
        manifest.write_plan(folder, plan, made_from)
    # Two machines may have begun at once: what is there now holds for both.
    noted = manifest.read_plan(folder)
    assert noted is not None
    theirs, _ = noted
    for field in fields(plan):
        ours, found = getattr(plan, field.name), getattr(theirs, field.name)
        if ours != found:
            raise ValueError(
                f"output={folder}: holds a corpus of {_named(field.name, found)}, and this one is"
                f" of {_named(field.name, ours)}; give another output=, or the settings that it was"
                " begun with"
            )
    if model is not None and not (folder / manifest.MODEL).exists():
        whole_files.write(folder / manifest.MODEL, model, wait=True)


def _named(field: str, value: Any) -> str:
    """A part of a plan in words."""
    if field == "tokenizer":
        return f"tokenizer {value['fingerprint']}"
    if isinstance(value, Mapping):
        value = ", ".join(f"{split} {number}" for split, number in sorted(value.items()))
    names = {"shards": "input shards", "groups": "groups of these", "parts": "parts of each"}
    return f"{names.get(field, field)} {value}"


def _is_whole(folder: Path, entry: Mapping[str, Any]) -> bool:
    path = folder / entry["file"]
    return (
        path.is_file()
        and path.stat().st_size == entry["size"]
        and whole_files.sha256(path) == entry["sha256"]
    )


def _documents(shards: Iterable[Shard], unit: Unit) -> Iterator[Document | LeftOut]:
    """The unit's part of shards' documents.

    What the system refuses while reading is not taken for the output's.
    """
    for shard in shards:
        # Such shards parse no more than is asked for, and tell in every part where reading failed.
        shared_out = isinstance(shard, Divisible)
        if isinstance(shard, Divisible):
            shard = shard.in_part(unit.part, unit.parts)
        try:
            for number, item in shard.documents():
                if shared_out or number % unit.parts == unit.part:
                    yield item
        except OSError as error:
            raise ValueError(f"data.source: {shard.name} could not be read: {error}") from error


def _all(work: Work, units: list[Unit], workers: int) -> Iterator[Finished]:
    """The units as they are done, in this process or in workers."""
    if workers == 1 or len(units) <= 1:
        yield from map(work.do, units)
        return
    # Forking a process with threads, as pyarrow's, can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(units)), context, initializer=_begin, initargs=(work,)
    )
    try:
        for future in as_completed([pool.submit(_do, unit) for unit in units]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"workers={workers}: one of them ended early, killed by the system if memory ran out;"
            " run the same command again with fewer workers, finished files are kept"
        ) from error
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_work: Work | None = None


def _begin(work: Work) -> None:
    global _work
    _work = work
    # The parent decides; being ended by it takes away what is half written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end(*_: object) -> None:
    # A pool whose first worker has ended terminates the others again, amid their tidying.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _end_with_parent() -> None:
    """A parent that is killed takes its workers along: they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _do(unit: Unit) -> Finished:
    assert _work is not None
    try:
        return _work.do(unit)
    except SystemExit:
        # The pool would go on with the next unit.
        os._exit(1)
