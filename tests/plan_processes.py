"""What 2 x 2 processes measure of a training step, for test_plan.py.

`python tests/plan_processes.py FOLDER` writes FOLDER/<case>.pt, a list over the processes, and
FOLDER/peaks.pt.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import LightningDataModule, Trainer
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from litmegalodon.models import Megalodon, MegalodonConfig
from litmegalodon.parallel import ChunkParallelStrategy
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.parallel.parallelize import build_mesh, parallelize
from litmegalodon.training import MegalodonModule
from litmegalodon.training.optimizer import adamw
from litmegalodon.training.schedule import warmup_schedule
from saved_tensors import counting

CONFIG = MegalodonConfig(
    vocab_size=264,
    num_layers=3,
    model_dim=128,
    z_dim=48,
    value_dim=320,
    num_heads=2,
    ffn_hidden_dim=200,
    chunk_size=128,
    norm_num_groups=4,
    swiglu=True,
)
WORLD, ROWS, LENGTH = 4, 4, 1024


class Case(NamedTuple):
    """Settings whose figures are compared."""

    degrees: Degrees
    accumulation: int
    checkpointing: bool
    bf16: bool = False
    bf16_parameters: bool = False


CASES = {
    "plain": Case(Degrees(1, 2, 2), 1, False),
    "checkpointing": Case(Degrees(1, 2, 2), 2, True),
    "replicas": Case(Degrees(2, 1, 2), 1, False),
    "bf16-mixed": Case(Degrees(1, 2, 2), 1, False, bf16=True),
    "bf16 parameters": Case(Degrees(1, 2, 2), 2, True, bf16=True, bf16_parameters=True),
}


class Rows(LightningDataModule):
    """Any rows: what is counted does not depend on what they hold."""

    seq_len, batch_size, val_bytes, val_targets = LENGTH, ROWS, 1, 1

    def train_dataloader(self) -> DataLoader:
        share = ROWS // self.trainer.distributed_sampler_kwargs["num_replicas"]
        tokens = torch.randint(0, 256, (share, LENGTH), generator=torch.Generator().manual_seed(0))
        resets = torch.zeros(share, LENGTH, dtype=torch.bool)
        resets[:, [0, LENGTH // 3]] = True
        counts = {"cursor": torch.tensor(0), "padding": torch.tensor(0)}
        batch = {"tokens": tokens, "targets": tokens, "resets": resets} | counts
        return DataLoader([batch] * 8, batch_size=None)

    def trained(self, cursor: int, places: None) -> None:
        pass


class Traffic(TorchDispatchMode):
    """Bytes that this process sends of each kind of collective, as a ring sends them."""

    def __init__(self):
        super().__init__()
        self.sent: dict[str, float] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            # It comes back with what that sends.
            return NotImplemented
        name = func._schema.name
        if name in RINGS:
            tensor, group, factor = RINGS[name](args)
            size = group.size()
            moved = factor * (size - 1) * tensor.numel() * tensor.element_size() / size
            self.sent[name] = self.sent.get(name, 0) + moved
        else:
            assert not name.startswith(("c10d", "_c10d")) or name in SILENT, name
        return func(*args, **(kwargs or {}))


def _group(name: str) -> dist.ProcessGroup:
    return torch._C._distributed_c10d._resolve_process_group(name)


class _Times:
    """A tensor of all processes, told by one process's."""

    def __init__(self, tensor: torch.Tensor, times: int):
        self.times, self.tensor = times, tensor

    def numel(self) -> int:
        return self.tensor.numel() * self.times

    def element_size(self) -> int:
        return self.tensor.element_size()


# By name of the operator: the tensor of all processes, their group, and how often a ring sends it.
RINGS = {
    "c10d::_allgather_base_": lambda a: (a[0], _boxed(a[2]), 1),
    "c10d::_reduce_scatter_base_": lambda a: (a[1], _boxed(a[2]), 1),
    "c10d::allreduce_": lambda a: (a[0][0], _boxed(a[1]), 2),
    "_c10d_functional::all_gather_into_tensor": lambda a: (_Times(a[0], a[1]), _group(a[2]), 1),
    "_c10d_functional::reduce_scatter_tensor": lambda a: (a[0], _group(a[3]), 1),
    "_c10d_functional::all_reduce": lambda a: (a[0], _group(a[2]), 2),
}
SILENT = {
    "_c10d_functional::wait_tensor",
    "_c10d_functional::_wrap_tensor_autograd",
    "c10d::barrier",
}


def _boxed(group) -> dist.ProcessGroup:
    return group if isinstance(group, dist.ProcessGroup) else dist.ProcessGroup.unbox(group)


class Measured(MegalodonModule):
    """Notes what the second optimizer step sends, holds and saves."""

    def __init__(self, checkpointing: bool):
        optimizer = partial(adamw, lr=1e-3)
        schedule = partial(warmup_schedule, kind="constant", warmup_steps=0, total_steps=3)
        super().__init__(CONFIG, optimizer, schedule, activation_checkpointing=checkpointing)
        self.figures = {}
        self.traffic = Traffic()

    def training_loss(self) -> float:
        return self.trainer.callback_metrics["train/loss"].item()

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        if batch_idx == self.trainer.accumulate_grad_batches:
            self.traffic.__enter__()
        if batch_idx == 1:
            self.figures["unreduced"] = held(unreduced(self.model))

    def training_step(self, batch, batch_idx: int):
        with counting(self.model) as saved:
            loss = super().training_step(batch, batch_idx)
        self.figures["activations"] = saved.bytes
        return loss

    def configure_gradient_clipping(self, *args, **kwargs) -> None:
        super().configure_gradient_clipping(*args, **kwargs)
        self.figures["gradients"] = held(p.grad for p in self.model.parameters())
        self.figures.setdefault("losses", []).append(self.training_loss())

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        if batch_idx + 1 == 2 * self.trainer.accumulate_grad_batches:
            self.traffic.__exit__(None, None, None)
            self.figures["traffic"] = self.traffic.sent
            self.figures["parameters"] = held(self.model.parameters())
            states = self.trainer.optimizers[0].state.values()
            self.figures["optimizer"] = held(v for state in states for v in state.values())


def held(tensors) -> int:
    """Bytes that this process holds of tensors, of sharded ones its share."""
    locals_ = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in locals_)


def unreduced(model) -> Iterator[torch.Tensor]:
    """Gradients that wait for the last micro-batch."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for p in module._get_fsdp_state()._fsdp_param_group.fsdp_params:
                waiting = p.unsharded_accumulated_grad
                if waiting is None and hasattr(p, "_unsharded_param"):
                    waiting = p._unsharded_param.grad
                if waiting is not None:
                    yield waiting


def peak(checkpointing: bool) -> int:
    """The most bytes that a step takes on this process, as torch's own tracker counts them.

    It follows forward passes only: the loss is computed outside of the model, from all logits.
    """
    with torch.device("meta"):
        model = Megalodon(CONFIG)
    for block in model.layers:
        block.activation_checkpointing = checkpointing
    parallelize(model, build_mesh("cpu", Degrees(1, WORLD, 1))).to_empty(device="cpu")
    model.initialise(0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.zeros(1, LENGTH, dtype=torch.long)

    def step() -> None:
        logits, _ = model.train()(tokens)
        cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    # The first one makes the optimizer's state.
    step()
    tracker = FSDPMemTracker(model, optimizer)
    with tracker:
        step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def work(rank: int, folder: Path) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    for name, case in CASES.items():
        module = Measured(case.checkpointing)
        trainer = Trainer(
            accelerator="cpu",
            devices=WORLD,
            strategy=ChunkParallelStrategy(
                *reversed(case.degrees), bf16_parameters=case.bf16_parameters
            ),
            precision="bf16-mixed" if case.bf16 else "32-true",
            max_steps=2,
            accumulate_grad_batches=case.accumulation,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, Rows())
        figures = [None] * WORLD
        dist.all_gather_object(figures, module.figures)
        if rank == 0:
            torch.save(figures, folder / f"{name}.pt")
    peaks = {checkpointing: peak(checkpointing) for checkpointing in (False, True)}
    if rank == 0:
        torch.save(peaks, folder / "peaks.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(work, (Path(sys.argv[1]),), nprocs=WORLD, start_method="fork")
