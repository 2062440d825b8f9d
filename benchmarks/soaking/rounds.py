"""A round of a soak: one run, ended and started again until it is through as an undisturbed one.

Two kinds. In `everything` all faults come, and single batches are poisoned, which the guard steps
over. In `going back` whole stretches are poisoned, so that the guard goes back to a checkpoint: the
newest, which a signal's own checkpoint or a failed one changes by design, so there only kills come.
Either is compared with an undisturbed run over the same poison.
"""

import csv
import random
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from soaking import storage
from soaking.ranks import WORLD, Life
from soaking.storage import SmallDisk
from soaking.tally import Tally

MEASURED = (
    "train/loss",
    "train/grad_norm",
    "train/lr",
    "train/skipped_steps",
    "tokens",
    "data/utilisation",
    "val/loss",
    "val/bpb",
)
COMMON = (
    "experiment=debug",
    "trainer=sim",
    "extras.print_config=false",
    "callbacks.report=null",
    "callbacks.progress=null",
    "data.source.validation_fraction=0.2",
    "data.val_batch_size=2",
    "trainer.limit_val_batches=1",
    "model.config.hidden_dropout=0.1",
    "model.config.attention_dropout=0.1",
    "validate_every=20",
    "checkpoint_every=7",
    "callbacks.spike_guard.patience=3",
    "+callbacks.poison._target_=soaking.poison.Poison",
    "ckpt_path=auto",
)
# Settings of a kind of round, where its poison begins in every hundred batches, and how long it is.
KINDS = {
    "everything": (("data.cutting=lanes", "data.num_workers=1"), {17: 1, 35: 2, 71: 1}),
    "going back": ((), {24: 3, 64: 4}),
}
SIGNALS = {
    "SIGTERM": (signal.SIGTERM, 75),
    "SIGUSR1": (signal.SIGUSR1, 75),
    "Ctrl-C": (signal.SIGINT, 130),
}
# What ends a life, and how often.
ENDINGS = {
    "everything": {
        "kill one rank": 5,
        "kill all ranks": 5,
        "SIGTERM": 1,
        "SIGUSR1": 1,
        "Ctrl-C": 1,
        "Ctrl-C twice": 1,
    },
    "going back": {"kill one rank": 1, "kill all ranks": 1},
}
# How often the disk fills up in a life, and the newest checkpoint is damaged after one.
FULL, CORRUPT = 0.25, 0.25
# How often a life ends while it starts, at most so many seconds after it began.
EARLY, START_SECONDS = 0.2, 3.0
# How long a life lasts from its first step on, at most.
LIFE_SECONDS = 2.0
# How long a rank may live on when another one is gone, before it is told as a launcher does it: in
# training the connection breaks; at the start it waits for who does not come.
GRACE, START_GRACE = 20.0, 0.5
# Starts in a row that may come to nothing.
FUTILE = 3

Rows = dict[int, tuple[str, ...]]


def poisoned(kind: str, steps: int) -> list[int]:
    """Numbers of the batches that are poisoned: more than there are steps, as some are passed."""
    places = KINDS[kind][1]
    hundreds = range(0, 2 * steps, 100)
    return [h + first + i for h in hundreds for first, n in places.items() for i in range(n)]


def arguments(kind: str, steps: int, text: Path, run: Path) -> list[str]:
    """The command line of src/train.py, the same at every start."""
    batches = ",".join(map(str, poisoned(kind, steps)))
    return [
        *COMMON,
        *KINDS[kind][0],
        f"model.scheduler.total_steps={steps}",
        f"data.source.root={text}",
        f"+callbacks.poison.batches=[{batches}]",
        f"hydra.run.dir={run}",
    ]


def measured(run: Path) -> Rows:
    """The whole rows of a run's metrics.csv by step, as written."""
    path = run / "metrics.csv"
    if not path.exists():
        return {}
    *lines, _ = path.read_text().split("\n")
    rows = [row for row in csv.DictReader(lines) if None not in row.values()]
    return {int(row["step"]): tuple(row.get(name, "") for name in MEASURED) for row in rows}


def difference(found: Rows, wanted: Rows, last: int) -> str | None:
    """Where rows up to a step differ from an undisturbed run's, in words; bit for bit."""
    for step in range(1, last + 1):
        if found.get(step) != wanted.get(step):
            return f"step {step} is {found.get(step)}, undisturbed {wanted.get(step)}"
    return None


@dataclass
class Round:
    """One run through its faults.

    Args:
        kind: of KINDS.
        command: of src/train.py.
        run: its folder, on `disk`.
        temporary: of its processes.
        wanted: rows of the undisturbed run.
        draw: which faults come when.
        calm_at: time after which no more come.
    """

    kind: str
    command: list[str]
    run: Path
    temporary: Path
    wanted: Rows
    disk: SmallDisk
    draw: random.Random
    calm_at: float
    tally: Tally
    # Faults since the last start, which count once the run has shown that it goes on.
    pending: list[str] = field(default_factory=list)
    # Step of the newest whole checkpoint.
    saved: int = 0
    said: list[str] = field(default_factory=list)

    def through(self) -> None:
        """Start it until it has come to its end, and count."""
        futile = 0
        while futile < FUTILE:
            calm = time.monotonic() > self.calm_at
            pending, self.pending = self.pending, []
            life, ending, fine = self._live(calm)
            self.said.append(f"--- {ending}, exit codes {life.codes}\n{life.said()}")
            through = set(life.codes) == {0}
            if ending == "by itself" and not through and not self.pending:
                # Nothing was done to it.
                self._odd(f"a start came to nothing, exit codes {life.codes}", life)
                futile, self.pending = futile + 1, pending
                continue
            futile = 0
            wrong = self._wrong(through)
            if wrong:
                self._odd(f"after {pending}, then {self.pending}: {wrong}", life)
            for kind in pending:
                self.tally.count(kind, survived=not wrong)
            if through:
                for kind in self.pending:
                    self.tally.count(kind, survived=not wrong)
                break
            if fine:
                self._perhaps_corrupt()
        else:
            for kind in self.pending:
                self.tally.count(kind, survived=False)
            return
        self._end()

    def _live(self, calm: bool) -> tuple[Life, str, bool]:
        """From a start to the end of all processes: what ended them, and whether all did so."""
        before = self._file()
        afresh = self.tally.starts % 10 == 9
        life = Life(self.command, self.temporary, afresh)
        self.tally.starts += 1
        early = self.draw.random() < EARLY
        ending = self._drawn_ending()
        rank = self.draw.randrange(WORLD)
        everyone = self.draw.random() < 0.5
        full = self.kind == "everything" and self.draw.random() < FULL and not early
        moment = self.draw.random()
        left = self.draw.choice([0, self.draw.randrange(4096), self.draw.randrange(1 << 20)])
        seconds = self.draw.uniform(0.2, 1.5)
        if calm:
            self._ended(life, True)
            return life, "by itself", True
        if early:
            life.wait(lambda: False, moment * START_SECONDS)
        elif life.wait(lambda: self._trains(before), 120):
            if full:
                life.wait(lambda: False, moment)
                if life.alive():
                    self.disk.fill(left, life.pids)
                    life.wait(lambda: False, seconds)
                    self.disk.empty(life.pids)
                    self.pending.append("disk full")
            life.wait(lambda: False, moment * LIFE_SECONDS)
        trained = self._trains(before)
        ranks = range(WORLD) if ending == "kill all ranks" or everyone else (rank,)
        ranks = (rank,) if ending == "kill one rank" else ranks
        number = SIGNALS.get(ending, (signal.SIGKILL, 0))[0]
        if ending == "Ctrl-C twice":
            number, ranks = signal.SIGINT, range(WORLD)
        if set(life.codes) == {None} and life.send(number, *ranks):
            self.pending.append(ending)
            if ending == "Ctrl-C twice":
                life.wait(lambda: False, 0.1 * moment)
                life.send(number, *ranks)
        else:
            ending = "by itself"
        fine = self._ended(life, trained)
        if ending in SIGNALS and trained and set(life.codes) not in ({SIGNALS[ending][1]}, {0}):
            self._odd(f"{ending} to {list(ranks)}: exit codes {life.codes}", life)
        if 1 in life.codes:
            self._odd(f"{ending}: a traceback, exit codes {life.codes}", life)
        return life, ending, fine

    def _ended(self, life: Life, trained: bool) -> bool:
        """Wait for the processes as a launcher does; whether none had to be killed."""
        life.wait(lambda: any(code is not None for code in life.codes), 300)
        if not life.wait(lambda: not life.alive(), GRACE if trained else START_GRACE):
            if trained and life.alive():
                self._odd("a rank does not notice that another is gone", life)
            life.send(signal.SIGTERM, *range(WORLD))
        fine = life.end()
        if not fine:
            self._odd("a rank had to be killed", life)
        return fine

    def _drawn_ending(self) -> str:
        weights = ENDINGS[self.kind]
        return self.draw.choices(list(weights), list(weights.values()))[0]

    def _file(self) -> int:
        path = self.run / "metrics.csv"
        return path.stat().st_ino if path.exists() else 0

    def _trains(self, before: int) -> bool:
        """Whether a step of this life is done: its start makes the file of metrics anew."""
        return self._file() != before and max(measured(self.run), default=0) > self.saved

    def _wrong(self, through: bool) -> str | None:
        """What has been lost since the last look, in words."""
        before, self.saved = self.saved, max(storage.whole(self.run), default=0)
        if self.saved < before:
            return f"the newest whole checkpoint was of step {before}, now of {self.saved}"
        rows = measured(self.run)
        if through and set(rows) != set(self.wanted):
            return f"{len(rows)} rows, undisturbed {len(self.wanted)}"
        # What the newest checkpoint stands on is final.
        return difference(rows, self.wanted, max(self.wanted) if through else self.saved)

    def _perhaps_corrupt(self) -> None:
        if self.kind == "everything" and self.draw.random() < CORRUPT:
            how = storage.corrupt(self.run, self.draw)
            if how is not None:
                self.pending.append(f"checkpoint damaged: {how.split()[0]}")
                self.said.append(f"--- {how}")
                self.saved = max(storage.whole(self.run))

    def _end(self) -> None:
        """The run is through: look at what it leaves, and count what was poisoned."""
        self.tally.curves += 1
        self.tally.steps += max(self.wanted)
        skipped = int(float(self.wanted[max(self.wanted)][MEASURED.index("train/skipped_steps")]))
        equal = measured(self.run) == self.wanted
        how = "stepped over" if self.kind == "everything" else "gone back"
        self.tally.count(f"batch poisoned, {how}", equal, skipped)
        # Hidden ones too.
        for path in self.run.rglob("*"):
            if re.search(r"\.(partial|deleted)$", path.name):
                self.tally.left.append(str(path.relative_to(self.run)))

    def _odd(self, what: str, life: Life) -> None:
        self.tally.odd.append(f"{self.kind}: {what}\n{life.said()[-3000:]}")
