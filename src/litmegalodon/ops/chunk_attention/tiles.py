"""Tile sizes of chunk attention's kernels on each kind of device.

An accumulator of 32,768 float32 values, 128 registers of each of 256 threads, is what one program
carries beside its scores: 128 queries times 256 columns in the forward pass. The wider a slice of
v, the fewer programs make the same scores again. No default configuration spills a register at z
256, e 2048; shared memory stays below what the device has (163 KiB on sm_80, 227 KiB on sm_90 and
sm_100, 99 KiB on sm_120, 64 KiB on gfx942).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor

from litmegalodon.ops.chunk_attention.kernels import APART, CHOSEN
from litmegalodon.ops.launch import INTERPRETED, Config

# Kinds of devices. sm_120 stands for all of NVIDIA's with 99 KiB of shared memory: sm_86, sm_89.
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")

# By kind and kernel: tile sizes, warps, stages. M queries, N keys, W columns.
_BF16 = {
    "sm_80": {
        "forward": ({"M": 64, "N": 64, "W": 256}, 8, 2),
        "weights": ({"M": 128, "N": 64, "W": 32}, 8, 4),
        "query": ({"M": 128, "N": 64}, 8, 3),
        "key": ({"M": 64, "N": 64, "W": 128}, 8, 3),
        "value": ({"M": 64, "N": 128, "W": 128}, 8, 3),
    },
    "sm_90": {
        "forward": ({"M": 128, "N": 64, "W": 256}, 8, 2),
        "weights": ({"M": 128, "N": 128, "W": 32}, 8, 4),
        "query": ({"M": 128, "N": 64}, 8, 3),
        "key": ({"M": 64, "N": 128, "W": 128}, 8, 3),
        "value": ({"M": 64, "N": 128, "W": 256}, 8, 3),
    },
    "sm_100": {
        "forward": ({"M": 64, "N": 64, "W": 256}, 8, 2),
        "weights": ({"M": 128, "N": 64, "W": 64}, 8, 3),
        "query": ({"M": 64, "N": 64}, 8, 3),
        "key": ({"M": 64, "N": 64, "W": 256}, 8, 3),
        "value": ({"M": 64, "N": 128, "W": 256}, 8, 3),
    },
    "gfx942": {
        "forward": ({"M": 128, "N": 16, "W": 256}, 8, 2),
        "weights": ({"M": 128, "N": 64, "W": 32}, 8, 1),
        "query": ({"M": 128, "N": 64}, 8, 2),
        "key": ({"M": 64, "N": 64, "W": 256}, 8, 2),
        "value": ({"M": 64, "N": 128, "W": 256}, 8, 2),
    },
}
_BF16["sm_120"] = _BF16["sm_80"] | {
    "forward": ({"M": 64, "N": 32, "W": 256}, 8, 2),
    "query": ({"M": 64, "N": 64}, 8, 2),
}
# With an incoming cache every row has two possible addresses, which cost registers.
_BF16_CACHED = {
    "sm_80": {"forward": ({"M": 64, "N": 32, "W": 256}, 8, 2)},
    "sm_90": {"forward": ({"M": 128, "N": 32, "W": 256}, 8, 3)},
    "sm_100": {"forward": ({"M": 64, "N": 32, "W": 256}, 8, 2)},
    "gfx942": {"query": ({"M": 64, "N": 64}, 8, 2)},
}
# float32 and float64 have no tensor cores of their precision everywhere: right first, fast second.
_FLOAT32 = {
    "forward": ({"M": 32, "N": 16, "W": 64}, 8, 1),
    "weights": ({"M": 32, "N": 32, "W": 16}, 8, 1),
    "query": ({"M": 32, "N": 32}, 8, 1),
    "key": ({"M": 32, "N": 32, "W": 64}, 8, 1),
    "value": ({"M": 32, "N": 32, "W": 64}, 8, 1),
}
_FLOAT64 = _FLOAT32 | {"forward": ({"M": 16, "N": 16, "W": 64}, 8, 1)}
_FLOAT64_GFX942 = _FLOAT64 | {"forward": ({"M": 16, "N": 16, "W": 64}, 4, 1)}
# Small enough that short sequences have several tiles.
_INTERPRETED = {
    "forward": ({"M": 16, "N": 16, "W": 16}, 4, 1),
    "weights": ({"M": 32, "N": 16, "W": 16}, 4, 1),
    "query": ({"M": 16, "N": 16}, 4, 1),
    "key": ({"M": 16, "N": 16, "W": 16}, 4, 1),
    "value": ({"M": 16, "N": 32, "W": 16}, 4, 1),
}
_ANY = {
    "rotate": ({"T": 16}, 4, 1),
    "delta": ({"T": 16, "W": 256}, 4, 2),
    "finish": ({"M": 16}, 4, 2),
}

_assumed: str | None = None


@contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Choose tiles for a device that is not there, one of TARGETS."""
    global _assumed
    before, _assumed = _assumed, target
    try:
        yield
    finally:
        _assumed = before


def target(device: torch.device) -> str:
    """The kind of a device; "interpreter" without one, "sm_90" where nothing tells."""
    if _assumed is not None:
        return _assumed
    if INTERPRETED:
        return "interpreter"
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    if shared < 163 * 1024:
        return "sm_120"
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def grid_tile(v: Tensor) -> tuple[int, int]:
    """GRID_M, GRID_N: queries and keys of the tiles in which P and X are left (see
    backward_kernels.py), multiples of M and N of the kernels that make and read them.
    """
    if target(v.device) == "interpreter" or v.dtype != torch.bfloat16:
        return 32, 32
    return 128, 128


def cache_access(device: torch.device) -> int:
    """How kernels reach an incoming cache: CHOSEN or APART of kernels.py."""
    return (APART if target(device) == "gfx942" else CHOSEN).value


def configs(kernel: str, v: Tensor, cached: int) -> tuple[Config, ...]:
    """Candidate configurations, the default first.

    `finish` works in place, so it must have one only: candidates are measured by running them.

    Args:
        kernel: forward, weights, finish, query, key (dK), value (dV), rotate or delta.
        v: [B, L, H, columns], what is cut into slices.
        cached: CACHED of kernels.py.
    """
    tiles, warps, stages = _table(kernel, target(v.device), v.dtype, cached > 0)[kernel]
    if kernel == "finish":
        tiles = tiles | {"N": grid_tile(v)[1]}
    if "W" in tiles:
        # A product takes at least 16 columns.
        columns = max(16, triton.next_power_of_2(v.shape[-1]))
        tiles = tiles | {"W": min(tiles["W"], columns)}
    return (Config(tiles, warps, stages),)


def _table(kernel: str, kind: str, dtype: torch.dtype, cached: bool) -> dict[str, tuple]:
    """Tile sizes, warps and stages of some kernels, this one among them."""
    if kernel in _ANY:
        return _ANY
    if kind == "interpreter":
        return _INTERPRETED
    if dtype == torch.float64:
        return _FLOAT64_GFX942 if kind == "gfx942" else _FLOAT64
    if dtype == torch.float32:
        return _FLOAT32
    return _BF16[kind] | (_BF16_CACHED.get(kind, {}) if cached else {})
