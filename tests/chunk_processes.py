"""What one, two and four processes compute, for test_chunk_parallel.py: one start, many cases.

`python tests/chunk_processes.py FOLDER` writes FOLDER/<processes>.pt, a dictionary of results by
case. Python and torch start once: the processes are forks.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor.debug import CommDebugMode

from chunk_training import ROWS, SAVED, STEPS, rows, set_hard, trained
from hard import hard_config, hard_model
from litmegalodon.models import Megalodon
from litmegalodon.models.span import Span
from litmegalodon.parallel.exchange import ChunkGroup
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.parallel.parallelize import build_mesh, parallelize

MESHES = {
    1: {"1": Degrees(1, 1, 1)},
    2: {"2 data": Degrees(1, 2, 1), "2 chunk": Degrees(1, 1, 2)},
    4: {
        "2 data x 2 chunk": Degrees(1, 2, 2),
        "4 chunk": Degrees(1, 1, 4),
        "replicate 2 x 2 chunk": Degrees(2, 1, 2),
    },
}
# Meshes that go on from a checkpoint of 2 data x 2 chunk.
CONTINUED = {
    1: MESHES[1],
    2: MESHES[2],
    4: {"2 data x 2 chunk": Degrees(1, 2, 2), "4 chunk": Degrees(1, 1, 4)},
}
ASYNC, SYNC = "async.ckpt", "sync.ckpt"


class Row:
    """A model of which every process has all, and its stretch of `rows`."""

    def __init__(self, group: ChunkGroup, batch: dict[str, torch.Tensor]):
        self.group = group
        self.span = Span(group, batch["resets"])
        self.part = {k: self.span.part(v) for k, v in batch.items() if v.dim()}

    def loss(self, model: Megalodon, state=None):
        p = self.part
        return model.loss(p["tokens"], p["targets"], state, p["resets"], self.span)


def checkpointed(model: Megalodon, on: bool) -> Megalodon:
    for block in model.layers:
        block.activation_checkpointing = on
    return model


def sharded(mesh, **changes) -> Megalodon:
    with torch.device("meta"):
        model = Megalodon(hard_config(**changes)).double()
    parallelize(model, mesh).to_empty(device="cpu")
    set_hard(model)
    return model.train()


def exchanges(mesh, group: ChunkGroup) -> dict:
    """Collectives of a forward and a backward pass, by checkpointing; those of the group alone."""
    counted = {}
    for on in (False, True):
        model = checkpointed(hard_model(hard_config(num_layers=3)).train(), on)
        row = Row(group, rows(0))
        with CommDebugMode() as mode:
            nll, _, _ = row.loss(model)
            forward = counts(mode)
            nll.backward()
            both = counts(mode)
        grads = {n: p.grad for n, p in model.named_parameters()}
        counted[on] = {"forward": forward, "both": both, "gradients": grads}
        # All that a sharded step sends, whoever asks for it.
        model = checkpointed(sharded(mesh, num_layers=3), on)
        with CommDebugMode() as mode:
            row.loss(model)[0].backward()
        counted[on]["sharded"] = counts(mode)
    return counted


def counts(mode: CommDebugMode) -> dict[str, int]:
    return {str(name): number for name, number in mode.get_comm_counts().items()}


class Weighing:
    """An exchange that notes the bytes of what this process sends."""

    def __init__(self, group: ChunkGroup):
        self.group, self.rank, self.size, self.sent = group, group.rank, group.size, []

    def start(self, local):
        self.sent.append(local.numel() * local.element_size())
        return self.group.start(local)


def sent(group: ChunkGroup) -> dict[int, list[int]]:
    """Bytes of each message of a forward pass, by the rows' length."""
    model, bytes_sent = hard_model(hard_config(), torch.float32), {}
    for length in (64, 128):
        weighing = Weighing(group)
        Row(weighing, rows(0, length)).loss(model)
        bytes_sent[length] = weighing.sent
    return bytes_sent


def isolated(group: ChunkGroup) -> dict:
    """Whether losses, states and gradients of documents keep every bit beside a poisoned one."""
    poison, kept = 31, {}
    model = hard_model(hard_config(vocab_size=poison + 1)).train()
    batch = rows(0)
    numbers = batch["resets"].long().cumsum(1)

    def run(tokens, clean):
        embedded = []
        hook = model.embed.register_forward_hook(lambda *args: embedded.append(args[-1]))
        targets = torch.where(clean, batch["targets"], -100)
        row = Row(group, batch | {"tokens": tokens, "targets": targets})
        nll, _, end = row.loss(model)
        hook.remove()
        (grad,) = torch.autograd.grad(nll, embedded)
        last = clean[:, -1]
        states = [v[last] for v in end.tensors().values()]
        return [nll.detach(), grad[row.span.part(clean)], *states]

    for value in (torch.nan, 1e30):
        with torch.no_grad():
            model.embed.weight[poison] = value
        for row, number in ((0, 1), (0, 4), (0, 5), (0, 7), (1, 0), (1, 1), (3, 0), (3, 3)):
            where = numbers == number
            where[torch.arange(ROWS) != row] = False
            assert where.any()
            want = run(batch["tokens"], ~where)
            got = run(torch.where(where, poison, batch["tokens"]), ~where)
            same = all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
            everywhere = [None] * group.size
            dist.all_gather_object(everywhere, same)
            kept[value, row, number] = everywhere
    return kept


def carried(group: ChunkGroup) -> dict:
    """Two rows after one another, the second continuing the first: here, and in one process."""
    model, results = hard_model(hard_config()).train(), {}
    for name in ("shared", "alone"):
        state, total = None, 0.0
        for seed in (0, 1):
            batch = rows(seed)
            batch["resets"][2] = False
            batch["resets"][:, 0] = False
            if name == "shared":
                nll, _, state = Row(group, batch).loss(model, state)
            else:
                nll, _, state = model.loss(
                    batch["tokens"], batch["targets"], state, batch["resets"]
                )
            state = state.detach()
            total = total + nll
        model.zero_grad()
        total.backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        total = total.detach()
        if name == "shared":
            for value in (total, *grads.values()):
                dist.all_reduce(value)
        states = [None] * group.size
        dist.all_gather_object(states, state.tensors())
        results[name] = {"nll": total, "gradients": grads, "states": states}
    return results


def compiled(group: ChunkGroup) -> dict:
    """Gradients of a block that torch.compile has followed, and of one that it has not."""
    results = {}
    for name in ("plain", "compiled"):
        model = hard_model(hard_config(num_layers=1)).train()
        if name == "compiled":
            # What matters is what is followed, not what is made of it.
            model.layers[0].compile(backend="eager")
        Row(group, rows(0)).loss(model)[0].backward()
        results[name] = {n: p.grad for n, p in model.named_parameters()}
    return results


def delayed(mesh, group: ChunkGroup) -> dict[str, float]:
    """Seconds of a step of eight layers, the shortest of two, without and with a delay of 2 s in
    the first layer of one process.
    """
    model = sharded(mesh, num_layers=8)
    row = Row(group, rows(0))

    def step() -> float:
        dist.barrier()
        begin = time.monotonic()
        row.loss(model)[0].backward()
        dist.barrier()
        return time.monotonic() - begin

    step()
    plain = min(step(), step())
    if group.rank == 1:
        model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(2))
    return {"plain": plain, "delayed": min(step(), step())}


def work(rank: int, world: int, folder: Path) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    rendezvous = f"file://{folder}/rendezvous-{world}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    results = {}
    for name, degrees in MESHES[world].items():
        for dtype, steps in ((torch.float64, STEPS), (torch.float32, 1)):
            results[name, dtype] = trained(degrees, dtype, steps)
    for name, degrees in CONTINUED[world].items():
        if world == 4 and not folder.joinpath(ASYNC).exists():
            saving = MESHES[4]["2 data x 2 chunk"]
            results["saved"] = trained(saving, torch.float64, STEPS, save=folder / ASYNC)
            trained(saving, torch.float64, SAVED, save=folder / SYNC, async_save=False)
        results["continued", name] = trained(degrees, torch.float64, STEPS, load=folder / ASYNC)
    if world == 2:
        results["compiled"] = compiled(ChunkGroup(build_mesh("cpu", Degrees(1, 1, 2))["chunk"]))
    if world == 4:
        mesh = build_mesh("cpu", Degrees(1, 1, 4))
        group = ChunkGroup(mesh["chunk"])
        results["exchanges"] = exchanges(mesh, group)
        results["sent"] = sent(group)
        results["isolated"] = isolated(group)
        results["carried"] = carried(group)
        results["delayed"] = delayed(mesh, group)
    if rank == 0:
        torch.save(results, folder / f"{world}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    # Four processes first: their checkpoint is continued by fewer.
    for world in reversed(MESHES):
        arguments = (world, Path(sys.argv[1]))
        mp.start_processes(work, arguments, nprocs=world, start_method="fork")
