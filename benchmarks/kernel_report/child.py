"""The process that counts: Triton decides at its import whether it interprets or compiles.

    TRITON_INTERPRET=1 python -m kernel_report.child MODULE:FUNCTION TARGETS CACHE OUTPUT

writes, for each target and each of its cases, the counts of every launch as JSON.
"""

import hashlib
import importlib
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from litmegalodon.ops import launch as launch_module
from litmegalodon.ops.launch import Launch

if TYPE_CHECKING:
    from kernel_report.counting import Programs

HERE = Path(__file__).parent
# The modules that decide a count.
COUNTING = ("counting", "shortcuts", "grid")


def load(name: str) -> Callable:
    """The function that `module:function` names."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def count_all(launches: Sequence[Launch], cache: Path) -> list[dict[str, int]]:
    """Counts of a pass's launches, each from the cache where nothing they depend on has changed.

    A kernel that is started again for another part of the work (other numbers, all else the same)
    is taken to count the same if it does in programs tried at the corners and at random.
    """
    from kernel_report.counting import Programs

    result: list[dict[str, int]] = []
    alike: dict[str, tuple[Programs, dict[str, int]]] = {}
    for launch in launches:
        programs = Programs(launch)
        kind = _key(launch, programs.grid, numbers=False)
        file = cache / f"{_key(launch, programs.grid)}.json"
        before = alike.get(kind)
        if file.exists():
            counts = json.loads(file.read_text())
        elif before and _agree(programs, before[0]):
            counts = before[1]
        else:
            counts = _count(programs, launch.kernel.__name__)
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(counts))
        alike.setdefault(kind, (programs, counts))
        result.append(counts)
    return result


def _agree(one: "Programs", other: "Programs") -> bool:
    """Whether programs of two launches with one grid count the same, as far as tried."""
    corners = itertools.product(*({0, n - 1} for n in one.grid))
    draw = random.Random(0)
    inside = [tuple(draw.randrange(n) for n in one.grid) for _ in range(16)]
    return all(one(index) == other(index) for index in (*corners, *inside))


def _count(programs: "Programs", name: str) -> dict[str, int]:
    from kernel_report.grid import Sum

    start = time.monotonic()
    total = Sum(programs)
    counts = dict(total.over(programs.grid))
    seconds = time.monotonic() - start
    if seconds > 5:
        print(f"counted {total.evaluated} programs of {name}: {seconds:.0f} s")
    return counts


def _key(launch: Launch, grid: tuple[int, ...], numbers: bool = True) -> str:
    key = hashlib.sha256()
    package = Path(launch.kernel.fn.__code__.co_filename).parent
    files = [*package.glob("*.py"), *package.parent.glob("*.py")]
    for file in [*sorted(files), *(HERE / f"{n}.py" for n in COUNTING)]:
        key.update(file.read_bytes())
    parts = [launch.kernel.__name__, grid, sorted(launch.configs[0].tiles.items())]
    for name, value in launch.arguments.items():
        if isinstance(value, torch.Tensor):
            parts.append((name, value.shape, value.stride(), value.dtype))
            if value.device.type == "cpu" and not value.is_floating_point():
                key.update(value.contiguous().numpy().tobytes())
        elif numbers or not isinstance(value, int | float):
            parts.append((name, value))
    key.update(repr(parts).encode())
    return key.hexdigest()


def main() -> None:
    name, targets, cache, output = sys.argv[1:]
    # Kernels that make up for what the interpreter lacks are counted as a GPU runs them.
    launch_module.INTERPRETED = False
    cases = load(name)
    result = {
        target: [
            count_all(case.launches, Path(cache)) if case.counted else [] for case in cases(target)
        ]
        for target in filter(None, targets.split(","))
    }
    Path(output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
