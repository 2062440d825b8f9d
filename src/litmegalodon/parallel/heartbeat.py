"""Signs of life of a run's processes: who is silent, and who keeps the others waiting.

Each process writes into the store of the process group, every few seconds and from a thread of its
own, that it lives, and what it is doing. The first process reads them all, and its verdict ends
the run; the others read the first one's and the verdict, so that the store has two requests of each
to answer.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from torch.distributed import Store

VERDICT = "heartbeat/verdict"


class Sign(NamedTuple):
    """What a process tells of itself.

    Attributes:
        beat: number of signs before this one.
        work: number of things it has done, batches for example.
        step: optimizer step that it is in.
        doing: what.
        where: host and process.
    """

    beat: int
    work: int
    step: int
    doing: str
    where: str

    def text(self) -> str:
        return "|".join(map(str, self))

    @classmethod
    def read(cls, text: str) -> "Sign":
        beat, work, step, doing, where = text.split("|", 4)
        return cls(int(beat), int(work), int(step), doing, where)


class Heartbeat:
    """One process's own signs and its watch over the others.

    Args:
        store: of the process group; this process's own copy of it, as a call may block.
        rank, size: of this process, and how many there are.
        silence: seconds without a sign of life after which a process is given up.
        standstill: seconds in which no process has done anything after which the run is.
        give_up: called with the reason, from another thread than the main one, which may hang.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        silence: float,
        standstill: float,
        give_up: Callable[[str], None],
    ):
        self.rank, self.size = rank, size
        self.silence, self.standstill = silence, standstill
        self.interval = min(5.0, silence / 10)
        self._store, self._give_up = store, give_up
        where = f"{socket.gethostname()}, process {os.getpid()}"
        self._sign, self._beats = Sign(0, 0, 0, "starting", where), 0
        # By rank what was read last, and when it was another.
        self._signs: dict[int, Sign] = {}
        self._changed: dict[int, float] = {}
        self._worked: dict[int, float] = {}
        self._verdict = ""
        self._answered = time.monotonic()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def first(self) -> None:
        """Write a first sign; all processes must have done so before any starts to watch."""
        if self.rank == 0:
            self._store.set(VERDICT, "")
        self._beat()

    def start(self) -> None:
        """Begin to beat and to watch."""
        # Two threads: a store whose process is stopped does not answer, which has to be noticed.
        tasks = (self._beating, self._watching)
        self._threads = [threading.Thread(target=task, daemon=True) for task in tasks]
        for thread in self._threads:
            thread.start()

    def note(self, doing: str, step: int) -> None:
        """Say what this process does from now on."""
        # One assignment: the threads see the old one or the new one.
        old = self._sign
        self._sign = old._replace(work=old.work + 1, step=step, doing=doing)

    def stop(self, in_order: bool) -> None:
        """End it; if in order, then so that the others do not miss this process."""
        if self._ended.is_set():
            return
        self._ended.set()
        for thread in self._threads:
            thread.join(self.interval)
        if in_order:
            self.note("ended", self._sign.step)
            # The store goes with the process that holds it, which may have ended first.
            with suppress(RuntimeError):
                self._beat()

    def _beat(self) -> None:
        # Not in the sign itself, which the main thread replaces at any moment.
        self._beats += 1
        self._store.set(_key(self.rank), self._sign._replace(beat=self._beats).text())

    def _beating(self) -> None:
        while not self._ended.wait(self.interval):
            try:
                self._beat()
                self._read()
            except RuntimeError:
                # No answer, as from a store that does not exist any more: the watch sees for how
                # long.
                continue

    def _read(self) -> None:
        watched = range(1, self.size) if self.rank == 0 else (0,)
        *signs, verdict = self._store.multi_get([*map(_key, watched), VERDICT])
        now = time.monotonic()
        for rank, text in zip(watched, signs, strict=True):
            sign, old = Sign.read(text.decode()), self._signs.get(rank)
            if old is None or sign.beat != old.beat:
                self._changed[rank] = now
            if old is None or sign.work != old.work:
                self._worked[rank] = now
            self._signs[rank] = sign
        self._verdict, self._answered = verdict.decode(), now

    def _watching(self) -> None:
        looked, mine, since = time.monotonic(), self._sign.work, time.monotonic()
        while not self._ended.wait(self.interval / 2):
            now = time.monotonic()
            if now - looked > 4 * self.interval:
                # It was this process that stood still: the others get the time back.
                lost = now - looked
                self._answered += lost
                since += lost
                for times in (self._changed, self._worked):
                    for rank in times:
                        times[rank] += lost
            looked = now
            if self._sign.work != mine:
                mine, since = self._sign.work, now
            reason = self._verdict or self._judge(now, since)
            if reason and not self._ended.is_set():
                self._ended.set()
                self._publish(reason)
                self._give_up(reason)

    def _judge(self, now: float, since: float) -> str:
        """Why the run has to end; nothing if it does not."""
        first = self._signs.get(0)
        if self.rank > 0 and first is not None and first.doing == "ended":
            # And the store with it, perhaps.
            return ""
        if (seconds := now - self._answered) > self.silence:
            if self.rank > 0:
                return self._silent(0, seconds)
            return f"the store of the process group has given no answer for {seconds:.0f} s"
        for rank, sign in list(self._signs.items()):
            # As long as the store answers: without it all are silent.
            seconds = self._answered - self._changed[rank]
            if sign.doing != "ended" and seconds > self.silence:
                return self._silent(rank, seconds)
        if self.rank > 0:
            return ""
        alive = {r: s for r, s in self._signs.items() if s.doing != "ended"}
        latest = max([since, *(self._worked[rank] for rank in alive)])
        if now - latest <= self.standstill:
            return ""
        alive[0] = self._sign
        least = min((sign.step, sign.work) for sign in alive.values())
        behind = [r for r in sorted(alive) if (alive[r].step, alive[r].work) == least]
        names = ", ".join(f"{r} ({alive[r].doing}; {alive[r].where})" for r in behind[:4])
        more = f" and {len(behind) - 4:,} more" if len(behind) > 4 else ""
        return (
            f"no process has come further for {now - latest:.0f} s; the last to come are of rank"
            f" {names}{more}, in step {least[0]}"
        )

    def _silent(self, rank: int, seconds: float) -> str:
        reason = f"rank {rank} has given no sign of life for {seconds:.0f} s"
        if (sign := self._signs.get(rank)) is not None:
            reason += f"; its last was in step {sign.step}, {sign.doing} ({sign.where})"
        return reason

    def _publish(self, reason: str) -> None:
        if self.rank > 0:
            return
        try:
            self._store.set(VERDICT, reason)
        except RuntimeError:
            # Where nothing answers nobody reads it either.
            return
        # Time for the others to read it.
        time.sleep(2 * self.interval)


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"
