"""The process that counts: Triton decides at its import whether it interprets or compiles.

    TRITON_INTERPRET=1 python -m kernel_report.child MODULE:FUNCTION TARGETS CACHE OUTPUT

writes, for each target and each of its cases, the counts of every launch as JSON.
"""

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from litmegalodon.ops import launch as launch_module
from litmegalodon.ops.launch import Launch

HERE = Path(__file__).parent
# The modules that decide a count.
COUNTING = ("counting", "shortcuts", "grid")


def load(name: str) -> Callable:
    """The function that `module:function` names."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def count(launch: Launch, cache: Path) -> dict[str, int]:
    """Counts of a launch, from the cache where nothing that they depend on has changed."""
    from kernel_report.counting import Programs
    from kernel_report.grid import Sum

    programs = Programs(launch)
    file = cache / f"{_key(launch, programs.grid)}.json"
    if file.exists():
        return json.loads(file.read_text())
    start = time.monotonic()
    total = Sum(programs)
    counts = dict(total.over(programs.grid))
    seconds = time.monotonic() - start
    if seconds > 5:
        print(f"counted {total.evaluated} programs of {launch.kernel.__name__}: {seconds:.0f} s")
    cache.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(counts))
    return counts


def _key(launch: Launch, grid: tuple[int, ...]) -> str:
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
        else:
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
            [count(launch, Path(cache)) for launch in case.launches] if case.counted else []
            for case in cases(target)
        ]
        for target in filter(None, targets.split(","))
    }
    Path(output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
