"""A language model measured by its answers: whole ones, or the class of a sequence."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from litmegalodon.data.slots import Batch
from litmegalodon.data.store import IGNORED
from litmegalodon.evaluation.metrics import Answers
from litmegalodon.parallel.strategy import strategy_of
from litmegalodon.training.module import MegalodonModule


class AnswersModule(MegalodonModule):
    """A MegalodonModule that also counts right answers, for rows of `data.cutting=questions`.

    Logged at a validation beside the loss: val/accuracy, the share of rows whose targets are all
    the likeliest of the model's outputs. With `model.config.output_size` the number of classes and
    a single target in a row, its class, that is a classification head on the last token: a matrix
    [classes, D] on the output of the last norm, and its accuracy.

    Raises:
        ValueError: several processes share a row.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.val_answers = Answers(1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        batch, span = strategy_of(self.trainer).share(batch)
        if span is not None:
            raise ValueError(
                "trainer.strategy.chunk_parallel_size: answers are counted on whole rows; set 1"
            )
        logits, _ = self.model(batch["tokens"], resets=batch["resets"])
        targets = batch["targets"]
        nll = cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        counted = targets != IGNORED
        self.val_loss.update(nll, counted.sum())
        self.val_answers.update(0, logits.argmax(-1) == targets, counted)

    def _log_quality(self, split: str) -> None:
        super()._log_quality(split)
        _, right, _ = self.val_answers.compute()
        self.val_answers.reset()
        accuracy: Tensor = torch.atleast_1d(right)[0]
        self.log(f"{split}/accuracy", accuracy, prog_bar=True, sync_dist=True)
