"""The most memory that training steps take, each in a process of its own.

    python benchmarks/memory.py LENGTH {plain,checkpointing,llama} THREADS STEPS

prints two numbers of bytes: the process' peak, and by how much it lies above the process with the
model made.
"""

import subprocess
import sys
from pathlib import Path

import torch

from litmegalodon.utils.allocator import keep_freed_memory
from subjects import CONFIG, Llama, count, megalodon, training_step

STEPS = 3
# What is said where memory cannot be had.
NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "MemoryError")


class DoesNotFit(Exception):
    """The step needs more memory than there is."""


def peak_of(length: int, mode: str = "plain", steps: int = STEPS) -> tuple[int, int]:
    """Peak of a fresh process that makes a few steps, and its growth over the model alone.

    Args:
        mode: `plain` or `checkpointing`, of the benchmark's Megalodon; `llama`, of its Llama.

    Raises:
        DoesNotFit: the process could not have the memory, or was killed for it.
    """
    arguments = (length, mode, torch.get_num_threads(), steps)
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode == -9 or any(text in done.stderr for text in NO_MEMORY):
        raise DoesNotFit
    if done.returncode:
        raise RuntimeError(f"{mode} at {length} tokens:\n{done.stderr}")
    peak, growth = map(int, done.stdout.split())
    return peak, growth


def status(name: str) -> int:
    """Bytes of an entry of this process' status, as VmRSS."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(name + ":")[1].split()[0])


def main(length: int, mode: str, threads: int, steps: int) -> None:
    """Measure this very process."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    model = megalodon(checkpointing=mode == "checkpointing")
    if mode == "llama":
        model = Llama(CONFIG, count(model))
    # The optimizer's state belongs to the model: a step on few tokens makes it.
    training_step(model, 64)()
    before = status("VmRSS")
    step = training_step(model, length)
    for _ in range(steps):
        step()
    peak = status("VmHWM")
    print(peak, peak - before)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
