"""`make soak`: a run of two processes under faults at random moments, against an undisturbed one.

    python benchmarks/soak.py [--seconds 600] [--seed 1] [--steps 300]

Trains the debug model on the CPU. Ranks are killed and signalled, the disk is filled, checkpoints
are damaged, batches poisoned; the processes are started again by the same command, as torchrun and
SLURM do it. Every curve has to equal the undisturbed run's bit for bit. Prints a table and exits
with 1 if anything was lost or left behind; runs of 600 s and more are kept in results/soak.json.

A seed gives the same faults in the same order. What a process is doing when one comes also depends
on the machine, which is the point of it.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from soaking import ranks, rounds, tally
from soaking.storage import SmallDisk

ROOT = Path(__file__).parents[1]


def soak(seconds: float, seed: int, steps: int, folder: Path) -> tuple[tally.Tally, str]:
    """Rounds until the time is over, the last one without new faults to its end; and by what means
    the disk was filled.
    """
    counts = tally.Tally()
    temporary, text = folder / "temporary", folder / "text"
    temporary.mkdir()
    # Its own: the package may be edited meanwhile.
    shutil.copytree(
        ROOT / "src" / "litmegalodon", text, ignore=shutil.ignore_patterns("__pycache__")
    )
    disk = SmallDisk(folder / "disk")
    shared = set(Path("/dev/shm").iterdir())
    wanted = {}
    calm_at = time.monotonic() + seconds
    number = 0
    while not number or time.monotonic() < calm_at:
        kind = list(rounds.KINDS)[number % len(rounds.KINDS)]
        if kind not in wanted:
            began = time.monotonic()
            run = folder / f"undisturbed-{kind.replace(' ', '-')}"
            life = ranks.Life(rounds.arguments(kind, steps, text, run), temporary)
            if not life.end() or any(life.codes):
                raise RuntimeError(f"the undisturbed run ended with {life.codes}\n{life.said()}")
            wanted[kind] = rounds.measured(run)
            assert list(wanted[kind]) == list(range(1, steps + 1)), list(wanted[kind])
            calm_at += time.monotonic() - began
        run = disk.folder / "run"
        one = rounds.Round(
            kind,
            rounds.arguments(kind, steps, text, run),
            run,
            temporary,
            wanted[kind],
            disk,
            random.Random(f"{seed}-{number}"),
            calm_at,
            counts,
        )
        before = len(counts.odd)
        one.through()
        if len(counts.odd) > before:
            kept = ROOT / "logs" / "soak" / f"seed={seed}-round={number}"
            shutil.copytree(run, kept / "run", dirs_exist_ok=True)
            (kept / "said.log").write_text("\n".join(one.said))
        shutil.rmtree(run)
        number += 1
        print(f"round {number}, {kind}: {counts.starts} starts, {counts.kills} kills", flush=True)
    disk.close()
    counts.left += ranks.left_behind()
    counts.left += [str(path) for path in temporary.iterdir()]
    counts.left += [str(path) for path in set(Path("/dev/shm").iterdir()) - shared]
    return counts, disk.means


def main() -> int:
    """Soak, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="in which faults come")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--steps", type=int, default=300, help="of each round")
    parser.add_argument("--keep", action="store_true", help="the figures of a shorter run, too")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("LOCAL_RANK", None)
    ranks.adopt_orphans()
    ranks.import_what_forks_need()
    # After an error its disk is still mounted, and that error is the one to see.
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        counts, means = soak(options.seconds, options.seed, options.steps, Path(folder))
    print(counts.table())
    print(f"the disk was filled by {means}")
    for what in (*counts.odd, *(f"left behind: {name}" for name in counts.left)):
        print(f"\n{what}", file=sys.stderr)
    if options.keep or options.seconds >= 600:
        from measure import RESULTS, machine

        settings = {"machine": machine(), "disk": means, **vars(options)}
        kept = tally.keep(RESULTS / "soak.json", settings | counts.as_json())
        print(f"in all runs kept: {kept['all']['kills']} kills")
    return int(bool(counts.lost or counts.left or counts.odd))


if __name__ == "__main__":
    sys.exit(main())
