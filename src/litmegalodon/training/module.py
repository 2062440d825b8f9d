"""A language model as Lightning trains and validates it."""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from litmegalodon.checkpoints.files import (
    check_same_model,
    damaged_is_refused,
    read_meta,
    read_state,
    refuse_damaged,
)
from litmegalodon.checkpoints.manifest import damage
from litmegalodon.data.packing import check_cutting
from litmegalodon.data.slots import Batch
from litmegalodon.evaluation.metrics import TokenLoss, bits_per_byte
from litmegalodon.models import ModelConfig
from litmegalodon.models.language_model import LanguageModel
from litmegalodon.parallel.parallelize import parallelize, shard_rows
from litmegalodon.training.lanes import LaneMemory

# What the network's tensors are named after in a checkpoint.
MODEL = "model."


class MegalodonModule(lightning.LightningModule):
    """A network with its loss, optimizer, schedule and metrics.

    A step's loss is all negative log-likelihoods over all valid tokens, of every rank and
    micro-batch. Logged after each optimizer step: train/loss, train/bpb (by the bytes a token of
    the held-out text), train/grad_norm (before clipping), train/lr, tokens (trained on so far, all
    ranks), tokens_per_second, data/utilisation (share of positions that hold a token of a
    document), data/left_out (places of the source that gave no document, where it is read as it
    comes); at a validation: val/loss, val/bpb, val/ppl. Lanes carry the model's state from batch to
    batch, its gradient cut there.

    Args:
        config: the network's sizes, which make it.
        optimizer: makes the optimizer from (name, parameter) pairs.
        scheduler: makes the schedule from the optimizer.
        compile: torch.compile each block.
        activation_checkpointing: keep only each block's input for the backward pass, and compute
            the block again there: less memory, a third more time.
        init_from: checkpoint to take the weights from.
        seed: of weights and dropout.
        impl: implementation of the operators.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        compile: bool = False,
        activation_checkpointing: bool = False,
        init_from: str | None = None,
        seed: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.compile_blocks, self.init_from, self.seed = compile, init_from, seed
        # In the checkpoint, for whoever loads it; the loggers get the whole composed config.
        self.save_hyperparameters({"config": config.to_dict(), "resume": {}}, logger=False)
        with torch.device("meta"):
            self.model: LanguageModel = config.build(impl)
        for block in self.model.layers:
            block.activation_checkpointing = activation_checkpointing
        self.val_loss = TokenLoss()
        self.lanes: LaneMemory | None = None
        # Takes the place of the test: anything with read(model, batch) and results(is_main).
        self.examiner: nn.Module | None = None
        # Decides whether a step is made: anything with admits(loss, norm, own_loss) and counts().
        self.guard: Any = None
        # Called with the state after a batch, where one wants to see it.
        self.watch: Callable[[Any], None] | None = None
        # Sums of the current step over its micro-batches: negative log-likelihood, valid tokens,
        # padding.
        self._step_sums: Tensor | None = None
        self._last_batch: Batch | None = None
        # What this process was asked, above zero to stop, and whether any was when the last step
        # was made; see callbacks.Interruptions.
        self.asked_to_stop, self.any_asked_to_stop = 0, False
        self._tokens_per_byte: float | None = None
        # Tokens trained on, over all ranks: in the steps made, and in the one being made.
        self._tokens = self._step_tokens = 0
        self._clock = time.perf_counter()

    def setup(self, stage: str) -> None:
        """Refuse answers that a head of few classes cannot give, before the network is made."""
        data = self.trainer.datamodule
        if data is not None and self.config.num_outputs < self.config.vocab_size:
            data.check_outputs(self.config.num_outputs)

    def configure_model(self) -> None:
        """Shard, compile and initialise the network, once."""
        if not self.model.embed.weight.is_meta:
            return
        if self.compile_blocks:
            for block in self.model.layers:
                block.compile()
        if self.device_mesh is not None:
            halved = getattr(self.trainer.strategy, "bf16_parameters", False)
            parallelize(self.model, self.device_mesh, halved)
        device = self.device if self._trainer is None else self.trainer.strategy.root_device
        self.model.to_empty(device=device)
        self.model.initialise(self.seed)
        data = None if self._trainer is None else self.trainer.datamodule
        if getattr(data, "carries_state", False) and self.trainer.state.fn == TrainerFn.FITTING:
            share = self.trainer.strategy.distributed_sampler_kwargs["num_replicas"]
            rows = data.batch_size // share
            check_cutting("lanes", data.seq_len, self.config.chunk_size)
            self.lanes = LaneMemory(
                self.config, rows, device, lambda value: shard_rows(value, self.device_mesh)
            )
        if self.init_from is not None:
            self._load_weights(self.init_from)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.model.named_parameters())
        # An optimizer's state brings these with it: other values would have no effect.
        chosen = getattr(self.make_optimizer, "keywords", {})
        kept = {f"model.optimizer.{name}": value for name, value in chosen.items()}
        kept["trainer.accumulate_grad_batches"] = self.trainer.accumulate_grad_batches
        # A list from a config file is a type of its own.
        plain = {k: v if isinstance(v, int | float | str) else list(v) for k, v in kept.items()}
        self.hparams["resume"] = plain
        schedule = {"scheduler": self.make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        # How many bytes a batch has is not known: as many a token as the held-out text.
        data = self.trainer.datamodule
        if data is not None and getattr(data, "val_bytes", 0):
            self._tokens_per_byte = data.val_targets / data.val_bytes
        self._clock = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout is a function of the seed, the place in the data and the rank: no random state to
        # restore.
        torch.manual_seed(_key(self.seed, int(batch["cursor"]), self.global_rank))
        batch, span = self.trainer.strategy.share(batch)
        state = None if self.lanes is None else self.lanes.state()
        nll, valid, state = self.model.loss(
            batch["tokens"], batch["targets"], state, resets=batch["resets"], span=span
        )
        if self.lanes is not None:
            self.lanes.keep(state)
        if self.watch is not None:
            self.watch(state)
        padding = batch["padding"].to(nll.device)
        sums = torch.stack([nll.detach().double(), valid.double(), padding.double()])
        self._step_sums = sums if self._step_sums is None else self._step_sums + sums
        self._last_batch = batch
        self._step_tokens += batch["tokens"].numel() * self.trainer.world_size
        # How many targets of the whole step are valid is not known yet: divide by the slots of this
        # batch, the end of the step corrects it.
        return nll / batch["targets"].numel()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step, note what was trained and log it."""
        lr = self.optimizers().param_groups[0]["lr"]
        super().optimizer_step(*args, **kwargs)
        read = int(self._last_batch["cursor"])
        if (data := self.trainer.datamodule) is not None:
            data.trained(read, self._last_batch.get("places"))
        before, self._clock = self._clock, time.perf_counter()
        self.log("tokens_per_second", self._step_tokens / (self._clock - before))
        self._tokens += self._step_tokens
        self._step_tokens = 0
        self.log("train/lr", lr)
        # float32, the default, is exact to 16.8 million only.
        self.log("tokens", torch.tensor(self._tokens, dtype=torch.float64))
        if self.trainer.global_step + 1 == self.trainer.max_steps:
            # Lightning validates where it is told to stop: the end is measured wherever it falls.
            self.trainer.should_stop = True

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Make the gradients those of the mean over all valid tokens of the step, and clip their
        global norm.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(
                f"trainer.gradient_clip_algorithm={gradient_clip_algorithm}: only norm is supported"
            )
        own = self._step_sums
        # One reduction, whose sum may be made in place: a word about stopping goes with it.
        sums = torch.cat([own, own.new_tensor([self.asked_to_stop])])
        nll, valid, padding, asked = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        self.any_asked_to_stop = asked > 0
        self._step_sums = None
        # FSDP has averaged over the ranks and Lightning over the micro-batches.
        averaged_over = self.trainer.world_size * self.trainer.accumulate_grad_batches
        scale = averaged_over * self._last_batch["targets"].numel() / max(valid, 1)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm) * scale
        if gradient_clip_val is not None:
            scale = scale * (gradient_clip_val / (norm + 1e-6)).clamp(max=1.0)
        loss = nll / max(valid, 1)
        if self._admits(loss, norm, own):
            shards = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
            torch._foreach_mul_(shards, scale)
        else:
            # torch's optimizers leave a parameter without a gradient alone, and its moments.
            self.zero_grad(set_to_none=True)
            if self.lanes is not None:
                self.lanes.mend()
        self.log("train/loss", loss, prog_bar=True)
        if self._tokens_per_byte is not None:
            self.log("train/bpb", bits_per_byte(loss, self._tokens_per_byte))
        self.log("train/grad_norm", norm)
        self.log("data/utilisation", 1.0 - padding / self._step_tokens)
        self._step_tokens -= int(padding)
        if (left_out := self._last_batch.get("left_out")) is not None:
            left_out = left_out.to(norm.device, torch.float64)
            self.log("data/left_out", self.trainer.strategy.reduce(left_out, reduce_op="sum"))

    def _admits(self, loss: float, norm: Tensor, own_sums: Tensor) -> bool:
        """Whether the guard lets the step be made; its word is the same on all ranks."""
        if self.guard is None:
            return True
        admitted = self.guard.admits(loss, float(norm), float(own_sums[0]))
        self.log_dict(self.guard.counts())
        return admitted

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        batch, span = self.trainer.strategy.share(batch)
        nll, valid, _ = self.model.loss(
            batch["tokens"], batch["targets"], resets=batch["resets"], span=span
        )
        self.val_loss.update(nll, valid)

    def on_validation_epoch_end(self) -> None:
        self._log_quality("val")

    def on_validation_end(self) -> None:
        # Validating does not count as training time.
        self._clock = time.perf_counter()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        if self.examiner is None:
            self.validation_step(batch, batch_idx)
        else:
            self.examiner.read(self.model, batch)

    def on_test_epoch_end(self) -> None:
        if self.examiner is None:
            self._log_quality("test")
        else:
            # Every rank has the sums of all: sync_dist averages equal values.
            self.log_dict(self.examiner.results(self.trainer.is_global_zero), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save amid the micro-batches of a step: no checkpoint holds their gradients."""
        if self._step_sums is not None:
            raise RuntimeError(
                "a checkpoint was asked for between the micro-batches of an optimizer step"
            )

        checkpoint["tokens"] = self._tokens

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._tokens = checkpoint["tokens"]

    def check_checkpoint(self, meta: Mapping[str, Any], path: Path) -> None:
        """Refuse to continue a checkpoint with settings that it was not made with.

        Raises:
            ValueError: another model; to train on, also another optimizer or accumulation, or no
                step left to train.
        """
        theirs, ours = meta["hyper_parameters"], self.hparams
        check_same_model(ours["config"], theirs["config"], f"ckpt_path={path}")
        # Before tensors are read: rows of other lanes have other shapes.
        if (data := self.trainer.datamodule) is not None:
            data.check(meta[type(data).__qualname__])
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        if "imported" in meta:
            raise ValueError(
                f"ckpt_path={path}: holds imported weights and no training to go on with; take them"
                " with init_from="
            )
        for name, value in ours["resume"].items():
            if (then := theirs["resume"].get(name, value)) != value:
                raise ValueError(
                    f"{name}={value}: the checkpoint was trained with {then}, which a resumed run "
                    "keeps; go back to it, or take only the weights with init_from="
                )
        if meta["global_step"] >= self.trainer.max_steps > 0:
            raise ValueError(
                f"trainer.max_steps={self.trainer.max_steps}: the checkpoint is at step "
                f"{meta['global_step']} already; set more, and model.scheduler.total_steps with it"
            )

    def _log_quality(self, split: str) -> None:
        # The metric has summed over the ranks; sync_dist averages equal values and keeps Lightning
        # quiet.
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log(f"{split}/loss", loss, prog_bar=True, sync_dist=True)
        self.log(f"{split}/ppl", loss.exp(), sync_dist=True)
        if (data := self.trainer.datamodule) is not None:
            tokens_per_byte = data.val_targets / data.val_bytes
            bpb = bits_per_byte(loss, tokens_per_byte)
            self.log(f"{split}/bpb", bpb, prog_bar=True, sync_dist=True)

    def _load_weights(self, path: str) -> None:
        """Take the weights of a checkpoint of the same shape."""
        setting = f"init_from={path}"
        meta = read_meta(path, setting)
        check_same_model(self.hparams["config"], meta["hyper_parameters"]["config"], setting)
        data = None if self._trainer is None else self.trainer.datamodule
        if data is not None and (trained_on := meta.get(type(data).__qualname__)):
            data.check_tokenizer(trained_on, setting)
        with damaged_is_refused(setting):
            alone = self._trainer is None
            wrong = damage(Path(path)) if alone else self.trainer.strategy.damage(path)
        refuse_damaged(setting, wrong)
        # Not what the other run remembered of its lanes.
        ours = get_model_state_dict(self)
        weights = {"state_dict": {n: ours[n] for n in ours if n.startswith(MODEL)}}
        with damaged_is_refused(setting):
            read_state(path, weights)
        self.model.load_state_dict(
            {name.removeprefix(MODEL): value for name, value in weights["state_dict"].items()}
        )


def _key(*numbers: int) -> int:
    """A 63-bit number that depends on all of these."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
