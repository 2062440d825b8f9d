"""One way to start a Triton kernel, so that what a GPU would run can be listed on any machine.

`make kernels` builds its report from `recording`: the operator runs on tensors without memory
(device="meta"), and each kernel is noted with its arguments in place of being run.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Triton reads it at its import.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Config:
    """Tile sizes (the kernel's constexpr arguments) and how a program is laid out on the device."""

    tiles: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True)
class Launch:
    """A kernel as it is started: its grid, every argument by name, the candidate configurations."""

    kernel: Any
    grid: Any
    arguments: Mapping[str, Any]
    configs: Sequence[Config]


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Note kernels in the list instead of running them."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(kernel: Any, grid: Any, arguments: Mapping[str, Any], configs: Sequence[Config]) -> None:
    """Start a kernel.

    Args:
        kernel: a function under @triton.jit.
        grid: function from the tile sizes to the number of programs along each axis.
        arguments: tensors, numbers and constexpr arguments by name.
        configs: candidates; the first is the default, taken where nothing can be measured.
    """
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, dict(arguments), tuple(configs)))
        return
    chosen = configs[0]
    tiles = dict(chosen.tiles)
    kernel[grid(tiles)](
        **arguments, **tiles, num_warps=chosen.num_warps, num_stages=chosen.num_stages
    )
