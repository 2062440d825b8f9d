"""The most memory that training steps take, each in a process of its own.

    python benchmarks/memory.py LENGTH {plain,checkpointing} THREADS

prints two numbers of bytes: the process' peak, and by how much it lies above the process with the
model made.
"""

import subprocess
import sys
from pathlib import Path

import torch

from litmegalodon.utils.allocator import keep_freed_memory
from subjects import megalodon, training_step

STEPS = 3


def peak_of(length: int, checkpointing: bool) -> tuple[int, int]:
    """Peak of a fresh process that makes a few steps, and its growth over the model alone."""
    mode = "checkpointing" if checkpointing else "plain"
    done = subprocess.run(
        [sys.executable, __file__, str(length), mode, str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, growth = map(int, done.stdout.split())
    return peak, growth


def status(name: str) -> int:
    """Bytes of an entry of this process' status, as VmRSS."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(name + ":")[1].split()[0])


def main(length: int, mode: str, threads: int) -> None:
    """Measure this very process."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    model = megalodon(checkpointing=mode == "checkpointing")
    # The optimizer's state belongs to the model: a step on few tokens makes it.
    training_step(model, 64)()
    before = status("VmRSS")
    step = training_step(model, length)
    for _ in range(STEPS):
        step()
    peak = status("VmHWM")
    print(peak, peak - before)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
