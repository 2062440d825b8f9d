"""What a long run leaves behind: memory that grows, open files, processes.

    python benchmarks/long_run.py [--steps 10000]

Trains the debug model with everything that is on by default, validation, checkpoints and a
worker for the data included, and compares the highest resident memory of the first half after
warm-up with that of the second half; prints the figures and, with 10,000 steps or more, keeps them
in results/long-run.json.
"""

import argparse
import gc
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from litmegalodon.utils.allocator import keep_freed_memory

ROOT = Path(__file__).parents[1]
# train.py, and how tests compose a configuration
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

# A part of the run, in which caches and pools fill.
WARM_UP = 0.3


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> Counter[str]:
    """How many files of each name this process has open; sockets and pipes are of one name."""
    # What has only reached the end of its use is closed.
    gc.collect()
    found: Counter[str] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[re.sub(r":\[\d+\]", "", str(path.readlink()))] += 1
        except FileNotFoundError:
            # The one that lists them.
            continue
    return found


def children() -> set[str]:
    """Process ids that this process has started and that are there still."""
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for path in lists for pid in path.read_text().split()}


def long_run(steps: int, folder: Path) -> dict[str, float | list[str]]:
    """Train, and say what was held and what is left."""
    from config_helpers import composed
    from litmegalodon.runs.settings import check_settings
    from litmegalodon.training.module import MegalodonModule
    from train import train

    seen: list[int] = []
    step = MegalodonModule.optimizer_step

    def watched(module, *args, **kwargs) -> None:
        step(module, *args, **kwargs)
        seen.append(memory())

    cfg = composed(
        "experiment=debug",
        "trainer.accelerator=cpu",
        "extras.print_config=false",
        f"model.scheduler.total_steps={steps}",
        f"validate_every={max(10, steps // 20)}",
        f"checkpoint_every={max(5, steps // 20)}",
        "trainer.limit_val_batches=2",
        "data.num_workers=1",
        folder=folder,
    )
    check_settings(cfg)
    # A first short run makes what a process makes once: threads, caches, a process group.
    first = composed(
        *("experiment=debug", "trainer.accelerator=cpu", "extras.print_config=false"),
        *("trainer.max_steps=2", "validate_every=2", "data.num_workers=1"),
        folder=folder / "first",
    )
    check_settings(first)
    train(first)
    files, processes = open_files(), children()
    MegalodonModule.optimizer_step = watched
    try:
        train(cfg)
    finally:
        MegalodonModule.optimizer_step = step
    warm = seen[int(WARM_UP * steps) :]
    # What is resident goes up and down by some per cent as freed memory is given back and taken
    # again: the highest of a half is steadier than any moment, and a leak raises it all the same.
    half = len(warm) // 2
    early, late = max(warm[:half]), max(warm[half:])
    return {
        "steps": len(seen),
        "mib_after_warm_up": round(early / 2**20, 1),
        "mib_at_the_end": round(late / 2**20, 1),
        "growth_percent": round(100 * (late / early - 1), 3),
        "files_left": sorted((open_files() - files).elements()),
        "processes_left": sorted(children() - processes),
    }


def main() -> None:
    """Measure this very process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    steps = parser.parse_args().steps
    keep_freed_memory()
    os.environ.setdefault("PROJECT_ROOT", str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        found = long_run(steps, Path(folder))
    for name, value in found.items():
        print(f"{name.replace('_', ' '):20} {value}", flush=True)
    if steps >= 10_000:
        import json

        from measure import RESULTS, machine

        text = json.dumps({"machine": machine()} | found, indent=1)
        (RESULTS / "long-run.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
