"""An evaluation as the last act of a training run."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from litmegalodon.data.attached import data_of
from litmegalodon.models.language_model import network_of
from litmegalodon.utils.printing import say, short_path


class AtEnd(Callback):
    """When training ends, examine the model as `src/eval.py` would examine its last checkpoint.

    Args:
        examiner: an evaluation that reads text of its own, as `Recall`: with `loader(tokenizer,
            trainer)`, `read(model, batch)` and `results(is_main)`.
    """

    def __init__(self, examiner: Any) -> None:
        self.examiner = examiner

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Examine; after the final checkpoint is saved, so that nothing here can cost a run."""
        examiner, model = self.examiner.to(trainer.strategy.root_device), network_of(pl_module)
        data = data_of(trainer)
        assert data is not None
        loader = examiner.loader(data.tokenizer, trainer)
        model.eval()
        with trainer.precision_plugin.forward_context():
            for batch in loader:
                examiner.read(model, trainer.strategy.batch_to_device(batch))
        for name, value in examiner.results(trainer.is_global_zero).items():
            say(f"{name:20} {float(value):.6g}")
        for name in examiner.outputs:
            say(f"written: {short_path(examiner.dirpath / name)}")
