"""Training of a hard model on the same rows by any mesh of processes, for chunk_processes.py."""

from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader

from hard import hard_config, hard_model, hard_tokens
from litmegalodon.models import Megalodon
from litmegalodon.parallel import ChunkParallelStrategy
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.training import MegalodonModule
from litmegalodon.training.optimizer import adamw
from litmegalodon.training.schedule import warmup_schedule

ROWS, LENGTH = 4, 128
# Two processes share a row at 64, four at 32, 64 and 96 too.
RESETS = (
    (0, 31, 32, 33, 63, 64, 127),
    (64,),
    (),
    (40, 41, 65, 95, 97),
)
STEPS = 10
# The step of a checkpoint that is gone on from.
SAVED = 4


def rows(seed: int, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """A micro-batch: processes have different numbers of valid targets, one of them none."""
    tokens, targets = (hard_tokens(hard_config(), ROWS, length, seed + i) for i in (0, 1000))
    resets = torch.zeros(ROWS, length, dtype=torch.bool)
    for row, places in enumerate(RESETS):
        resets[row, [p for p in places if p < length]] = True
    targets[:, 32:64] = -100
    targets[0, :50] = targets[3, 100:] = -100
    counts = {"cursor": torch.tensor(seed), "padding": torch.tensor(0)}
    return {"tokens": tokens, "targets": targets, "resets": resets} | counts


class HardRows(LightningDataModule):
    """The same rows whatever the number of processes; each batch goes on from the one before."""

    seq_len, batch_size, val_bytes, val_targets, carries_state = LENGTH, ROWS, 1, 1, True

    def __init__(self, first: int = 0):
        super().__init__()
        # The first micro-batch.
        self.first = first

    def state_dict(self) -> dict:
        return {"length": LENGTH}

    def check(self, state: dict) -> None:
        assert state == self.state_dict()

    def batches(self, seeds) -> DataLoader:
        kwargs = self.trainer.distributed_sampler_kwargs
        # In order, as the rows of lanes are.
        share = ROWS // kwargs["num_replicas"]
        mine = slice(kwargs["rank"] * share, (kwargs["rank"] + 1) * share)
        batches = [rows(seed) for seed in seeds]
        batches = [{k: v[mine] if v.dim() else v for k, v in b.items()} for b in batches]
        return DataLoader(batches, batch_size=None)

    def train_dataloader(self) -> DataLoader:
        return self.batches(range(self.first, self.first + 2 * STEPS))

    def val_dataloader(self) -> DataLoader:
        return self.batches([500])

    def trained(self, cursor: int, places: None) -> None:
        pass


class HardModule(MegalodonModule):
    """With hard parameters; notes the first step's gradients."""

    def __init__(self, dtype: torch.dtype):
        optimizer = partial(adamw, lr=1e-3)
        schedule = partial(warmup_schedule, kind="constant", warmup_steps=0, total_steps=STEPS)
        super().__init__(hard_config(), optimizer, schedule)
        self.model.to(dtype)
        self.gradients = {}
        self.losses = {}

    def configure_model(self) -> None:
        if self.model.embed.weight.is_meta:
            super().configure_model()
            set_hard(self.model)

    def configure_gradient_clipping(self, *args, **kwargs) -> None:
        sums = self.trainer.strategy.reduce(self._step_sums.clone(), reduce_op="sum")
        self.losses[self.trainer.global_step + 1] = float(sums[0] / sums[1])
        super().configure_gradient_clipping(*args, **kwargs)
        if not self.gradients:
            self.gradients = whole({n: p.grad for n, p in self.model.named_parameters()})
            logged = self.trainer.callback_metrics
            self.first = {name: logged[f"train/{name}"] for name in ("loss", "grad_norm")}


def set_hard(model: Megalodon) -> None:
    """Give a sharded model the hard parameters."""
    values = dict(hard_model(model.config).named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = values[name].to(p.dtype)
            p.copy_(distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None))


def whole(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone()
        for k, v in named.items()
    }


class Saving(Callback):
    """Saves once, after the step SAVED."""

    def __init__(self, path: Path):
        self.path, self.saved = path, False

    def on_train_batch_end(self, trainer: Trainer, *_) -> None:
        if trainer.global_step == SAVED and not self.saved:
            self.saved = True
            trainer.save_checkpoint(self.path)


def trained(
    degrees: Degrees,
    dtype: torch.dtype,
    steps: int,
    save: Path | None = None,
    load: Path | None = None,
    async_save: bool = True,
) -> dict:
    """The first step's loss, clipped gradients and their norm before; after all steps weights and
    val/loss; the losses of all steps.
    """
    module = HardModule(dtype)
    trainer = Trainer(
        accelerator="cpu",
        devices=degrees.readers * degrees.chunk,
        strategy=ChunkParallelStrategy(
            degrees.chunk, degrees.data, degrees.replicate, async_save=async_save
        ),
        callbacks=[Saving(save)] if save else [],
        max_steps=steps,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        limit_val_batches=1,
        val_check_interval=2 * steps,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, HardRows(2 * SAVED if load else 0), ckpt_path=load)
    weights = whole(dict(module.model.named_parameters()))
    val_loss = trainer.callback_metrics["val/loss"]
    found = {"gradients": module.gradients, "weights": weights, "val": val_loss}
    return module.first | found | {"losses": module.losses}
