"""A look inside the network every so many steps, for all loggers, and a picture of its memory."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from litmegalodon.training import insight
from litmegalodon.training.loggers import log_distributions, log_picture, log_scalars

PICTURE = "memory.png"


class Monitor(Callback):
    """Log what the network is like after the first optimizer step and then every `every_n_steps`.

    Norms of weights and of gradients (before clipping, as train/grad_norm) by kind of parameter;
    half-lives and frequencies of the moving averages, in tokens and turns a token; what the
    timestep norms saw; share of the arithmetic that the machine is measured to do at most (mfu);
    memory. At a validation also histograms of half-lives and frequencies, and `memory.png` in
    `dirpath`. What a network does not have is left out.

    The module calls its attribute `watch`, where one is set, with the state after a batch.
    """

    def __init__(self, dirpath: str | os.PathLike[str], every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"callbacks.monitor.every_n_steps={every_n_steps}: must be at least 1; "
                "callbacks.monitor=null logs none of it"
            )
        self.dirpath = Path(dirpath)
        self.every_n_steps = every_n_steps
        self._step = 0
        self._peak = 0.0
        self._norms: dict[str, Tensor] = {}
        # Half-lives before the first step, drawn beside what they have become.
        self._at_start: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """The half-lives that the run began with."""
        return {"at_start": self._at_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over those of the run that is resumed."""
        self._at_start = state_dict["at_start"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what the machine can do at most."""
        self._step = trainer.global_step
        if not trainer.loggers:
            return
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        device = trainer.strategy.root_device
        peak = torch.tensor(insight.measured_peak(device, dtype), dtype=torch.float64)
        self._peak = float(trainer.strategy.reduce(peak.to(device), reduce_op="sum"))
        if not self._at_start:
            self._at_start = [layer.half_life.float() for layer in _memories(pl_module)]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ask for the state after a batch that ends a step to be logged."""
        # Of other norms the state has a place that stays as it was.
        has = getattr(pl_module.model.config, "norm", None) == "timestep"
        due = has and trainer.loggers and self._is_due(trainer.global_step + 1)
        pl_module.watch = self._watch if due else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log, if the step that this batch ended is one to log."""
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if stepped and trainer.loggers and self._is_due(self._step):
            log_scalars(trainer, self._figures(trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Histograms and the picture."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.loggers:
            return
        # Of all processes, as they share the parameters.
        layers = _memories(pl_module)
        if not layers or not trainer.is_global_zero:
            return
        values = {}
        for number, layer in enumerate(layers):
            values[f"cema_log10_half_life/layer_{number}"] = layer.half_life.log10()
            if layer.frequency is not None:
                values[f"cema_frequency/layer_{number}"] = layer.frequency
        log_distributions(trainer, values)
        # Takes a second to import.
        from litmegalodon.training.memory_picture import draw

        self.dirpath.mkdir(parents=True, exist_ok=True)
        draw(self.dirpath / PICTURE, layers, self._at_start, trainer.global_step)
        log_picture(trainer, "memory", self.dirpath / PICTURE)

    def _is_due(self, step: int) -> bool:
        return step == 1 or step % self.every_n_steps == 0

    def _watch(self, state: Any) -> None:
        self._norms = insight.norm_statistics(state)

    def _figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        model, strategy, world = pl_module.model, trainer.strategy, trainer.world_size
        device = strategy.root_device

        def total(value: Tensor) -> Tensor:
            return strategy.reduce(value.to(device), reduce_op="sum")

        named = list(model.named_parameters())
        weights = insight.squared_norms(named, world, total)
        gradients = [(name, p.grad) for name, p in named if p.grad is not None]
        clipped = insight.squared_norms(gradients, world, total)
        # The step has been made with clipped gradients: all by the same factor.
        norm = float(trainer.callback_metrics.get("train/grad_norm", float("nan")))
        after = sum(clipped.values()) ** 0.5
        factor = norm / after if after > 0 and norm == norm else 1.0
        present = {insight.kind_of(name) for name, _ in named}
        figures = {f"weight_norm/{k}": v**0.5 for k, v in weights.items() if k in present}
        figures |= {f"grad_norm/{k}": factor * v**0.5 for k, v in clipped.items() if k in present}
        figures |= insight.quantiles(_memories(pl_module))
        if self._norms:
            means = total(torch.stack(list(self._norms.values()))) / world
            figures |= dict(zip(self._norms, means.tolist(), strict=True))
            self._norms = {}
        speed = float(trainer.callback_metrics.get("tokens_per_second", 0.0))
        length = getattr(trainer.datamodule, "seq_len", None)
        if speed and length and self._peak:
            figures["mfu"] = speed * insight.flops_per_token(model, length) / self._peak
        used = insight.memory_use(device)
        if used:
            most = torch.tensor(list(used.values()), dtype=torch.float64, device=device)
            most = strategy.reduce(most, reduce_op="max")
            figures |= dict(zip(used, most.tolist(), strict=True))
        return figures


def _memories(pl_module: LightningModule) -> list[insight.Memory]:
    return insight.memories(pl_module.model)
