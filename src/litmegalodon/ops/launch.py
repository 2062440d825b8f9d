"""One way to start a Triton kernel, so that what a GPU would run can be listed on any machine.

`make kernels` builds its report from `recording`: the operator runs on tensors without memory
(device="meta"), and each kernel is noted with its arguments in place of being run.

On a GPU the candidate configurations of a kernel are measured at the first call of a size (sizes
that round up to the same powers of two share the choice) and the fastest is kept in memory. A
configuration may add in another order, so runs that must agree in every bit want the default ones:
`torch.use_deterministic_algorithms(True)` takes those, and so does a stream that is being captured
into a CUDA graph, where nothing can be measured. A model's call without a state reads nothing from
the device; one with a state first reads where its rows stand, which a capture refuses.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


# Programs along the three axes of a grid, at the most.
LIMITS = (2**31 - 1, 65_535, 65_535)


def rows_refusal(rows: int) -> str | None:
    """Why no kernel serves that many rows (heads of all rows), an axis of their grids; or None."""
    if rows > LIMITS[-1]:
        return f"takes at most {LIMITS[-1]:,} rows times heads, not {rows:,}; use impl='torch'"
    return None


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
        configs: candidates; the first is the default, taken where nothing can be measured (the
            interpreter included).
    """
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, dict(arguments), tuple(configs)))
        return
    config = configs[0]
    if len(configs) > 1 and _can_measure(arguments):
        config = _fastest(kernel, grid, arguments, configs)
    _start(kernel, grid, arguments, config)


def _start(kernel: Any, grid: Any, arguments: Mapping[str, Any], config: Config) -> None:
    tiles = dict(config.tiles)
    device = _device(arguments)
    programs = grid(tiles)
    if any(n > most for n, most in zip(programs, LIMITS, strict=False)):
        raise ValueError(f"{kernel.__name__}: {programs} programs; a grid has at most {LIMITS}")
    # Triton takes the current device, whatever device the tensors are on.
    with nullcontext() if device is None else torch.cuda.device(device):
        kernel[programs](
            **arguments, **tiles, num_warps=config.num_warps, num_stages=config.num_stages
        )


def _device(arguments: Mapping[str, Any]) -> torch.device | None:
    """The GPU that the tensors are on, None without one."""
    tensors = (v for v in arguments.values() if isinstance(v, Tensor))
    return next((t.device for t in tensors if t.is_cuda), None)


# The fastest configuration by kernel and size.
_fastest_of: dict[tuple, Config] = {}


def _can_measure(arguments: Mapping[str, Any]) -> bool:
    return (
        not INTERPRETED
        and _device(arguments) is not None
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.cuda.is_current_stream_capturing()
    )


def _fastest(
    kernel: Any, grid: Any, arguments: Mapping[str, Any], configs: Sequence[Config]
) -> Config:
    """The fastest candidate: kernels write only what they do not read, so they can run again."""
    key = (kernel, *(_size(v) for v in arguments.values()))
    if key not in _fastest_of:
        times = [_milliseconds(kernel, grid, arguments, config) for config in configs]
        _fastest_of[key] = configs[times.index(min(times))]
    return _fastest_of[key]


def _size(value: Any) -> Any:
    """What a choice depends on of an argument."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, *((n - 1).bit_length() for n in value.shape)
    if isinstance(value, int) and not isinstance(value, bool):
        return (value - 1).bit_length()
    return value


def _milliseconds(kernel: Any, grid: Any, arguments: Mapping[str, Any], config: Config) -> float:
    """Median time of a candidate; infinite where the device lacks what it needs."""
    from triton.runtime.errors import OutOfResources, PTXASError
    from triton.testing import do_bench

    def start() -> None:
        _start(kernel, grid, arguments, config)

    try:
        # On the kernel's own device: do_bench times the current one's stream.
        with torch.cuda.device(_device(arguments)):
            return do_bench(start, warmup=5, rep=20, return_mode="median")
    except (OutOfResources, PTXASError, torch.OutOfMemoryError):
        return math.inf
