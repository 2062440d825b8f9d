"""Chunk parallelism on CPU processes: python benchmarks/scaling.py [--steps 2] [--shrink N]

A training step on one row of 16K to 128K tokens, shared by 1, 2 and 4 processes over gloo, a thread
each. Prints a table and writes benchmarks/results/scaling.json. For each process: its CPU time, the
bytes that it saves for the backward pass, those that it sends. Where there are fewer cores than
processes, the wall time shows what they take together, not what more machines would save.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from litmegalodon.models import Megalodon
from litmegalodon.models.span import Span
from litmegalodon.parallel.exchange import ChunkGroup
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.parallel.parallelize import build_mesh, parallelize
from litmegalodon.utils.allocator import keep_freed_memory
from measure import RESULTS, machine
from saved_tensors import counting
from subjects import CONFIG

LENGTHS = (16384, 32768, 65536, 131072)
SHARERS = (1, 2, 4)
# The benchmark's model with half the layers and narrower, so that all of it takes minutes.
SMALL = replace(CONFIG, num_layers=2, model_dim=128, value_dim=256, ffn_hidden_dim=256)
MB = 1e6


class Counting(ChunkGroup):
    """An exchange that adds up what this process sends, as a ring sends it, both ways."""

    sent = 0

    def start(self, local: Tensor):
        once = local.numel() * local.element_size() * (self.size - 1)
        self.sent += 2 * once
        return super().start(local)


def work(rank: int, sharers: int, length: int, steps: int, folder: str) -> None:
    """One process of a step's measurement; writes its figures into the folder."""
    # States are among what a block returns; nothing changes them in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    os.environ |= {"LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    keep_freed_memory()
    rendezvous = f"file://{folder}/rendezvous-{sharers}-{length}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=sharers)
    mesh = build_mesh("cpu", Degrees(1, 1, sharers))
    with torch.device("meta"):
        model = Megalodon(SMALL)
    parallelize(model, mesh).to_empty(device="cpu")
    model.initialise(0)
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
    tokens = torch.randint(
        0, SMALL.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)
    )
    resets = torch.zeros(1, length, dtype=torch.bool)
    group = Counting(mesh["chunk"])

    def step() -> int:
        """Make a step; bytes that its forward pass saved."""
        span = Span(group, resets) if sharers > 1 else None
        part = tokens if span is None else span.part(tokens)
        begun = resets if span is None else span.part(resets)
        with counting(model) as saved:
            nll, _, _ = model.loss(part, part, resets=begun, span=span)
        kept = saved.bytes
        del saved
        (nll / length).backward()
        optimizer.step()
        optimizer.zero_grad()
        return kept

    # The first one makes the optimizer's state and touches the memory.
    step()
    group.sent = 0
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        kept = step()
    cpu = (time.process_time() - cpu) / steps
    dist.barrier()
    wall = (time.perf_counter() - wall) / steps
    figures = {"cpu": cpu, "wall": wall, "saved": kept, "sent": group.sent / steps}
    Path(folder, f"{sharers}-{length}-{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


def measure(sharers: int, length: int, steps: int, folder: str) -> dict[str, float]:
    """The figures of the process that has most of each."""
    arguments = (sharers, length, steps, folder)
    mp.start_processes(work, arguments, nprocs=sharers, start_method="fork")
    paths = [Path(folder, f"{sharers}-{length}-{rank}.json") for rank in range(sharers)]
    figures = [json.loads(path.read_text()) for path in paths]
    return {name: max(f[name] for f in figures) for name in figures[0]}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2, help="measured steps each (2)")
    parser.add_argument("--shrink", type=int, default=1, help="divide every length, for a try (1)")
    asked = parser.parse_args()
    if min(asked.steps, asked.shrink) < 1:
        parser.error("--steps and --shrink: must be at least 1")
    chunk = SMALL.chunk_size * SHARERS[-1]
    lengths = [max(chunk, n // asked.shrink // chunk * chunk) for n in LENGTHS]
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"cores: {os.cpu_count()}; a thread a process; figures of the process with most")
    print("| tokens | processes | CPU s | of one's | saved MB | of one's | sent KB | wall s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for length in dict.fromkeys(lengths):
            for sharers in SHARERS:
                figures = measure(sharers, length, asked.steps, folder)
                if sharers == 1:
                    alone = figures
                rows.append({"length": length, "processes": sharers} | figures)
                print(
                    f"| {length:,} | {sharers} | {figures['cpu']:.2f} |"
                    f" {figures['cpu'] / alone['cpu']:.2f} | {figures['saved'] / MB:.0f} |"
                    f" {figures['saved'] / alone['saved']:.2f} | {figures['sent'] / 1e3:.0f} |"
                    f" {figures['wall']:.2f} |",
                    flush=True,
                )
    settings = {"steps": asked.steps, "model": SMALL.to_dict(), "cores": os.cpu_count()}
    path = RESULTS / ("scaling.json" if asked.shrink == 1 else "scaling-part.json")
    text = json.dumps({"machine": machine(), "settings": settings, "figures": rows}, indent=1)
    path.write_text(text + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
