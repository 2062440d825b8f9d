"""A tiny model that Lightning trains in milliseconds, and the run around it."""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import nn
from torch.nn import functional as F

from litmegalodon.checkpoints import META
from litmegalodon.data import ByteTokenizer, Document, ListSource, TextDataModule
from litmegalodon.training.callbacks import BestCheckpoint, LastCheckpoint
from litmegalodon.training.csv_logger import MetricsCSVLogger

SEQ_LEN, BATCH = 8, 2


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` stops it."""


class Bigrams(nn.Module):
    """Logits from the current token alone; the state counts tokens."""

    def __init__(self):
        super().__init__()
        # Small enough that PyTorch starts no threads.
        self.table, self.head = nn.Embedding(258, 4), nn.Linear(4, 258)
        for i, weight in enumerate((self.table.weight, self.head.weight, self.head.bias)):
            nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(i))

    def forward(self, tokens, state=None, resets=None, last_only=False):
        return self.head(self.table(tokens)), (state or 0) + tokens.shape[1]


class Standin(LightningModule):
    """Logs what the real module logs; validation results by optimizer step can be given."""

    def __init__(self, bpb_by_step=None):
        super().__init__()
        self.model = Bigrams()
        self.bpb_by_step = bpb_by_step or {}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)

    def training_step(self, batch, batch_idx):
        self.batch = batch
        return self._loss(batch)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        cursor = int(self.batch["cursor"])
        self.trainer.datamodule.trained(cursor)
        self.log("train/loss", self._loss(self.batch).detach())
        self.log("train/lr", 0.5)
        self.log("tokens", float(cursor * SEQ_LEN))
        self.log("tokens_per_second", 1234.0)

    def validation_step(self, batch, batch_idx):
        loss = self._loss(batch)
        bpb = self.bpb_by_step.get(self.trainer.global_step, loss / 0.6931)
        self.log_dict({"val/loss": loss, "val/bpb": bpb, "val/ppl": loss.exp()}, batch_size=1)

    def _loss(self, batch):
        logits, _ = self.model(batch["tokens"])
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


def datamodule():
    text = bytes(range(97, 123)) * 40
    source = ListSource(
        [Document("a", text), Document("b", text[::-1])], [Document("held", text[3:300])]
    )
    return TextDataModule(source, ByteTokenizer(), seq_len=SEQ_LEN, batch_size=BATCH)


class FolderCheckpoints(TorchCheckpointIO):
    """Checkpoints as folders that two files complete, as the project's own strategy writes them."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, Path(path) / META)
        (Path(path) / ".metadata").touch()

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return super().load_checkpoint(Path(path) / META, map_location, weights_only)


def fit(folder, max_steps, every=2, ckpt_path=None, callbacks=(), module=None, keep=1, **settings):
    """Train in `folder` as an entry point would, and return the trainer."""
    trainer = Trainer(
        **{
            "max_steps": max_steps,
            "max_epochs": -1,
            "accelerator": "cpu",
            "devices": 1,
            "logger": MetricsCSVLogger(folder),
            "plugins": [FolderCheckpoints()],
            "callbacks": [
                LastCheckpoint(folder / "checkpoints", every, keep),
                BestCheckpoint(folder / "checkpoints"),
                *callbacks,
            ],
            "log_every_n_steps": 1,
            "check_val_every_n_epoch": None,
            "val_check_interval": 2,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "use_distributed_sampler": False,
            **settings,
        }
    )
    trainer.fit(module or Standin(), datamodule=datamodule(), ckpt_path=ckpt_path)
    return trainer


def checkpoints(folder, kind=""):
    return sorted(path.name for path in (folder / "checkpoints").glob(f"{kind}*"))
