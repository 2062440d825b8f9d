"""Training runs in this process, with batches whose loss, gradient or memory is not finite."""

import os
import signal
from pathlib import Path

import pytest
import torch

from callbacks_helpers import Killed
from config_helpers import composed
from litmegalodon.models import Megalodon, MegalodonState
from litmegalodon.runs.settings import check_settings
from litmegalodon.training.module import MegalodonModule
from runs import ROOT, last_checkpoint, metrics
from train import train

SETTINGS = (
    "experiment=debug",
    "extras.print_config=false",
    # Little text is read in no time.
    f"data.source.root={ROOT}/src/litmegalodon/utils",
    "data.source.validation_fraction=0.2",
    "trainer.limit_val_batches=1",
    "data.val_batch_size=2",
    "callbacks.report=null",
    "callbacks.best_checkpoint=null",
    "callbacks.progress=null",
    "trainer.accelerator=cpu",
    "model.scheduler.total_steps=16",
    "validate_every=100",
    "checkpoint_every=4",
)
ROWS = 4  # of a batch


class Poison:
    """Makes what follows from some samples NaN: batch 3 is the one that ends with sample 12.

    kind: `loss` (and all that follows), `gradient` alone, or `memory`, the loss and what lanes
    remember. The run is killed at the batch `dies_at`, and asked to stop at `asked_at`.
    """

    dies_at = asked_at = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, batches: set[int]) -> None:
        self.seen: list[int] = []
        self.batches = batches
        step, loss = MegalodonModule.training_step, Megalodon.loss
        now = [0]

        def training_step(module, batch, batch_idx):
            now[0] = int(batch["cursor"]) // ROWS
            self.seen.append(now[0])
            if now[0] == self.dies_at:
                raise Killed
            if now[0] == self.asked_at:
                os.kill(os.getpid(), signal.SIGTERM)
            made = step(module, batch, batch_idx)
            return made * torch.nan if kind == "gradient" and now[0] in batches else made

        def poisoned(model, *args, **kwargs):
            nll, valid, state = loss(model, *args, **kwargs)
            if not torch.is_grad_enabled() or now[0] not in batches or kind == "gradient":
                return nll, valid, state
            if kind == "memory":
                named = state.tensors()
                named["layers.0.h"] = named["layers.0.h"].clone()
                named["layers.0.h"][1] = torch.nan
                state = MegalodonState.from_tensors(named)
            return nll * torch.nan, valid, state

        monkeypatch.setattr(MegalodonModule, "training_step", training_step)
        monkeypatch.setattr(Megalodon, "loss", poisoned)


def trained(folder: Path, *settings: str, without: str = "none") -> Path:
    """A run in a folder, which it returns; `without` is how the default settings left out begin."""
    ours = [setting for setting in SETTINGS if not setting.startswith(without)]
    cfg = composed(*ours, *settings, folder=folder)
    check_settings(cfg)
    train(cfg)
    return folder / "run"


def rows(run) -> list[dict[str, str]]:
    """A run's metrics as written, without those of the machine."""
    machines = ("tokens_per_second", "mfu", "memory/process_gib")
    return [{k: v for k, v in row.items() if k not in machines} for row in metrics(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The network's tensors in a run's last checkpoint."""
    from litmegalodon.data import ByteTokenizer
    from litmegalodon.inference import load_model

    return load_model(last_checkpoint(run), "cpu", tokenizer=ByteTokenizer())[0].state_dict()
