"""Peaks of GPUs, from their makers' data sheets; imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass

GB, GIB = 1e9, 2**30


@dataclass(frozen=True)
class Device:
    """A GPU's peaks: bytes a second, and operations a second by kind.

    A multiply-add is two operations. `special` are exponentials, roots and quotients, 16 a clock
    and multiprocessor (AMD: compute unit); float32 outside products runs on the ordinary units.
    Products of bfloat16 and TF32 run on tensor cores, dense.

    Attributes:
        memory: bytes.
        near: bytes a second that it sends to the others of its machine (NVLink, Infinity Fabric).
        far: bytes a second of its own network card, as such machines usually have one a GPU.
    """

    name: str
    bandwidth: float
    peaks: Mapping[str, float]
    memory: float
    near: float
    far: float


def _device(name, bandwidth, fp32, fp64, special, bf16, tf32, memory, near, far) -> Device:
    """Terabytes and 10^12 operations a second; memory in GiB, links in gigabytes a second."""
    peaks = {"fp32": fp32, "fp64": fp64, "special": special, "dot bf16": bf16, "dot tf32": tf32}
    peaks = {kind: peak * 1e12 for kind, peak in peaks.items()}
    return Device(name, bandwidth * 1e12, peaks, memory * GIB, near * GB, far * GB)


# SXM boards and AMD's OAM; `special` from units and clock; cards of 200 or 400 gigabits a second.
DEVICES = {
    "a100": _device("A100 80GB", 2.039, 19.5, 9.7, 2.4, 312, 156, 80, 300, 25),
    "h100": _device("H100 80GB", 3.35, 66.9, 33.5, 4.2, 989.4, 494.7, 80, 450, 50),
    "mi300x": _device("MI300X", 5.3, 163.4, 81.7, 10.2, 1307.4, 653.7, 192, 448, 50),
}
