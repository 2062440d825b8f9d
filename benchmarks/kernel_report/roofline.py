"""How long a device would take at best, and what the report demands.

A roofline is an estimate: the largest of the times that one resource at its peak would need, the
others being free. No time here was measured.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from litmegalodon.planning import devices
from litmegalodon.planning.devices import Device

# The devices by what their kernels are compiled for.
DEVICES = {"sm_80": devices.DEVICES["a100"], "sm_90": devices.DEVICES["h100"]}
DEVICES |= {"gfx942": devices.DEVICES["mi300x"]}

# Bytes of shared memory that one program can have.
SHARED = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}

RECURRENT = ("cema", "timestep_norm")
# Bytes moved over the least possible, by direction.
MOVED_LIMIT = {"forward": 1.75, "backward": 2.75}
# The recurrent operators' part of the block's matrix products, at this shape on this target.
SHARE_LIMIT = 0.08
SHARE_SHAPE, SHARE_TARGET = "7B", "sm_90"


def limits(counts: Mapping[str, int], device: Device) -> dict[str, float]:
    """Seconds that each resource alone would need."""
    moved = counts.get("load", 0) + counts.get("store", 0)
    times = {"bytes": moved / device.bandwidth}
    times |= {kind: counts.get(kind, 0) / peak for kind, peak in device.peaks.items()}
    return times


def seconds(counts: Mapping[str, int], device: Device) -> float:
    return max(limits(counts, device).values())


def failures(report: Mapping[str, Any]) -> Iterator[str]:
    """What does not hold, one sentence each."""
    for one in report["passes"]:
        where = f"{one['operator']} {one['direction']} {one['shape']} {one['target']}"
        for kernel in one["kernels"]:
            yield from _of_kernel(f"{where} {kernel['name']}", one, kernel)
        if one["operator"] == "chunk_attention" and one["tensor_cores"]:
            names = [k for k in one["kernels"] if k["tensor_core"] or k["failure"]]
            if not names:
                yield f"{where}: no kernel has tensor-core instructions"
        if one["operator"] in RECURRENT and one["counted"]:
            limit = MOVED_LIMIT[one["direction"]]
            if one["ratio"] > limit:
                yield f"{where}: moves {one['ratio']:.2f}x the least possible, limit {limit}x"
    for block in report["blocks"]:
        asked = (block["shape"], block["target"]) == (SHARE_SHAPE, SHARE_TARGET)
        if asked and block["share"] > SHARE_LIMIT:
            yield (
                f"{' + '.join(RECURRENT)} {block['direction']} {block['shape']} on "
                f"{block['device']}: {block['share']:.1%} of the block's matrix products, "
                f"limit {SHARE_LIMIT:.0%}"
            )


def _of_kernel(where: str, one: Mapping[str, Any], kernel: Mapping[str, Any]) -> Iterator[str]:
    if kernel["failure"]:
        yield f"{where}: does not compile: {' '.join(kernel['failure'].split())[:300]}"
        return
    if kernel["spills"]:
        yield f"{where}: spills {kernel['spills']}"
    shared = SHARED[one["target"]]
    if kernel["shared"] > shared:
        yield f"{where}: {kernel['shared']:,} bytes of shared memory, the target has {shared:,}"
    attention = one["operator"] == "chunk_attention" and one["tensor_cores"]
    if attention and kernel["products"] and not kernel["tensor_core"]:
        yield f"{where}: products without tensor-core instructions"
