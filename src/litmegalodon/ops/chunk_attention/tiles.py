"""Tile sizes of chunk attention's kernels, by what a device has: chosen so that nothing spills.

An accumulator of 32,768 float32 values, 8 warps, is all that the registers of one multiprocessor
carry beside the scores. Forward and dV spend them on W columns of v (the wider, the fewer programs
make the same scores again), dQ and dK on z columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor

from litmegalodon.ops.launch import INTERPRETED, Config

# Bytes of shared memory that a program of the device may have, and how it multiplies.
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942", "small", "interpreter")

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
    """Which of TARGETS a device is nearest to."""
    if _assumed is not None:
        return _assumed
    if INTERPRETED:
        return "interpreter"
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    memory = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    if memory < 160 * 1024:
        return "small"
    return {8: "sm_80", 9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def grid_tile(target: str, dtype: torch.dtype) -> tuple[int, int]:
    """Queries and keys of the tiles in which the backward pass leaves P and dS.

    Tiles of the kernels that read them must divide these.
    """
    if target == "interpreter":
        return 32, 32
    return 64, 64


def configs(kernel: str, v: Tensor, cached: bool) -> tuple[Config, ...]:
    """Candidate configurations, the default first.

    Args:
        kernel: forward, weights, query, key.
        v: [B, L, H, columns], what its slices are cut of.
        cached: whether there is an incoming cache.
    """
    where = target(v.device)
    if where == "interpreter":
        tiles = {
            "forward": {"M": 16, "N": 16, "W": 16},
            "weights": {"M": 32, "N": 32, "W": 16},
            "query": {"M": 16, "N": 16},
            "key": {"M": 16, "N": 16, "W": 16},
            "rotate": {"T": 16},
            "delta": {"T": 16, "W": 16},
        }
        return (Config(tiles[kernel]),)
    if kernel in ("rotate", "delta"):
        return (Config({"T": 16} | ({"W": 256} if kernel == "delta" else {})),)
    tiles = {"M": 64, "N": 64}
    if kernel != "query":
        tiles["W"] = min(64, max(16, triton.next_power_of_2(v.shape[-1])))
    return (Config(tiles, num_warps=8, num_stages=2),)
