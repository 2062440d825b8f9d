"""The Lightning strategy of every run, from one process to many: FSDP2, sharded checkpoints."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed import DistNetworkError
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from litmegalodon.checkpoints import META, is_complete, older
from litmegalodon.checkpoints.files import (
    damaged_is_refused,
    read_meta,
    read_state,
    refuse_damaged,
)
from litmegalodon.checkpoints.manifest import MANIFEST, damaged_file
from litmegalodon.data.attached import data_of
from litmegalodon.models.span import Span
from litmegalodon.parallel.checkpoint_storage import remove
from litmegalodon.parallel.checkpoint_writing import CheckpointWriter
from litmegalodon.parallel.exchange import ChunkGroup
from litmegalodon.parallel.mesh import resolve
from litmegalodon.parallel.parallelize import build_mesh


class ChunkParallelStrategy(ModelParallelStrategy):
    """Sharded parameters over all processes, which read different rows or share them.

    A checkpoint is a directory that is complete or absent: see `checkpoint_writing`.

    Args:
        chunk_parallel_size: processes that share each row, a stretch of whole chunks to each.
        data_parallel_size: such groups, each with rows of its own, that share the parameters; -1:
            as many as there are.
        replicate_size: copies of all that, to gather parameters from near processes only.
        timeout_minutes: how long a process waits for another one before the run is given up.
        async_save: training goes on while a checkpoint is written, which takes memory for a copy.
        failed_saves: so many saves in a row may fail before the run ends.
        bf16_parameters: gather the matrices of linear layers in bfloat16; see `parallelize`.
    """

    def __init__(
        self,
        chunk_parallel_size: int = 1,
        data_parallel_size: int = -1,
        replicate_size: int = 1,
        timeout_minutes: float = 30.0,
        async_save: bool = True,
        failed_saves: int = 2,
        bf16_parameters: bool = False,
    ) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
        self.bf16_parameters = bf16_parameters
        self._asked = (replicate_size, data_parallel_size, chunk_parallel_size)
        self._async_save, self._failed_saves = async_save, failed_saves
        self._writer: CheckpointWriter | None = None
        self._then: dict[str, Callable[[Path], None]] = {}
        # Where the checkpoint to load is damaged, an older one beside it will do.
        self.may_be_older = False
        # The one that was: a damaged one's place may have been taken.
        self.loaded: Path | None = None

    def setup_environment(self) -> None:
        """Start the process group and lay the processes out as a mesh.

        Raises:
            ValueError: the processes can't share the data module's rows so.
        """
        try:
            self._setup_distributed()
        except DistNetworkError:
            # A process alone takes a free port, which another program may have taken since.
            if self.world_size > 1:
                raise
            self.cluster_environment = LightningEnvironment()
            os.environ.pop("MASTER_PORT", None)
            self._setup_distributed()
        module = self.lightning_module
        assert module is not None
        degrees = resolve(
            self.world_size, *self._asked, module.config.chunk_size, row_lengths(module.trainer)
        )
        self._device_mesh = build_mesh(self.root_device.type, degrees)
        self._chunk_group = ChunkGroup(self._device_mesh["chunk"])
        module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Number of groups of processes that read rows of their own, and which one this is in."""
        replicate, data = (self.device_mesh[name] for name in ("replicate", "data"))
        rank = replicate.get_local_rank() * data.size() + data.get_local_rank()
        return {"num_replicas": replicate.size() * data.size(), "rank": rank}

    def share(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Span | None]:
        """This process's stretch of a batch's rows and its connection with the others; none if it
        reads whole rows.
        """
        if self._chunk_group.size == 1:
            return batch, None
        span = Span(self._chunk_group, batch["resets"])
        parts = {name: span.part(batch[name]) for name in ("tokens", "targets", "resets")}
        # Counts over whole rows, which are summed over all processes: one of a group tells them.
        told = {name: batch[name] for name in ("padding", "left_out") if name in batch}
        if span.rank > 0:
            told = {name: torch.zeros_like(count) for name, count in told.items()}
        return batch | parts | told, span

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep gradients unreduced during a micro-batch that does not end a step."""
        modules = [m for m in self.lightning_module.modules() if isinstance(m, FSDPModule)]
        for module in modules:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in modules:
                module.set_requires_gradient_sync(True, recurse=False)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Make a step, after which a checkpoint is another one than before it."""
        if self._writer is not None:
            self._writer.changed()
        return super().optimizer_step(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The model's tensors where they are: who saves them copies them."""
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's tensors where they are."""
        return get_optimizer_state_dict(self.model, getattr(optimizer, "_optimizer", optimizer))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint directory; it appears under its name only once it is whole.

        While training runs, `async_save` lets it go on as soon as the tensors are copied.

        Raises:
            SaveError: more saves in a row than may have failed.
        """
        path = Path(self.broadcast(filepath))
        state = {"state_dict": checkpoint.pop("state_dict")}
        for i, optimizer in enumerate(checkpoint.pop("optimizer_states", [])):
            state[f"optimizer_{i}"] = optimizer
        rest = io.BytesIO()
        if self.is_global_zero:
            torch.save(checkpoint, rest)
        trainer = self.lightning_module.trainer
        training = trainer.state.fn == TrainerFn.FITTING
        wait = not (training and trainer.state.status == TrainerStatus.RUNNING)
        then = self._then.pop(str(path), None)
        self.writer.save(path, state, rest.getvalue(), [then] if then else [], wait)
        if wait:
            self.finish_saving()

    def when_saved(self, filepath: str | Path, then: Callable[[Path], None]) -> None:
        """What the first process does once the checkpoint is complete that is saved next."""
        self._then[str(Path(filepath))] = then

    def finish_saving(self) -> None:
        """Wait until all checkpoints are written.

        Raises:
            SaveError: the last one was not.
        """
        if self._writer is not None:
            self._writer.finish()

    def settle_saving(self) -> None:
        """Wait until all checkpoints are written or have failed.

        Raises:
            SaveError: more in a row than may have failed.
        """
        if self._writer is not None:
            self._writer.wait()

    def is_saving(self, filepath: str | Path) -> bool:
        """Whether a checkpoint is on its way."""
        return self._writer is not None and self._writer.is_writing(Path(filepath))

    def on_exception(self, exception: BaseException) -> None:
        """Let the checkpoint that is on its way be written, on Ctrl-C too."""
        self.give_up_saving()
        super().on_exception(exception)

    def give_up_saving(self) -> None:
        """Wait for what all processes have begun to write, and leave the rest."""
        if self._writer is not None:
            self._writer.give_up()

    def teardown(self) -> None:
        """Wait for checkpoints on their way, whoever saved them."""
        self.finish_saving()
        if self._writer is not None:
            self._writer.close()
        super().teardown()

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Delete a checkpoint so that no moment shows a damaged one under its name."""
        if self.is_global_zero and Path(filepath).exists():
            remove(Path(filepath))

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors into the model and optimizer in place and return the rest.

        All files are read before anything is used, each by one of the processes.

        Raises:
            ValueError: it is no complete checkpoint, or damaged, or of a model of another shape.
        """
        self.writer.wait()
        self.writer.changed()
        path = Path(self.broadcast(checkpoint_path))
        check = self.lightning_module.check_checkpoint
        verified = not self.may_be_older or (path / MANIFEST).is_file()
        if not is_complete(path) or (verified and damaged_file(path, META) is None):
            # Before all is read: it may not suit.
            check(read_meta(path, f"ckpt_path={path}"), path)
        path = self._undamaged(path)
        setting = f"ckpt_path={path}"
        meta = read_meta(path, setting)
        check(meta, path)
        with damaged_is_refused(setting):
            self._load_tensors(path)
        self.loaded = path
        return meta

    def _load_tensors(self, path: Path) -> None:
        # Lightning's own way unpickles a checkpoint's description freely.
        model = {"state_dict": get_model_state_dict(self.model)}
        read_state(path, model)
        self.model.load_state_dict(model["state_dict"])
        for i, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{i}"
            state = {name: get_optimizer_state_dict(self.model, optimizer)}
            read_state(path, state)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state[name])

    def damage(self, path: str | Path) -> str | None:
        """What is wrong with a checkpoint, found by all processes together; None: nothing."""
        return self.writer.damage(Path(path))

    @property
    def writer(self) -> CheckpointWriter:
        """What writes this run's checkpoints; made by all processes together."""
        if self._writer is None:
            self._writer = CheckpointWriter(
                self._async_save, self._failed_saves, self._timeout, self.root_device
            )
        return self._writer

    def _undamaged(self, path: Path) -> Path:
        """The checkpoint, or where `may_be_older` the newest whole one of its folder."""
        others = self.broadcast(older(path) if self.is_global_zero else [])
        setting, found = f"ckpt_path={path}", []
        for candidate in (path, *others):
            wrong = self.damage(candidate)
            if self.may_be_older and wrong is None:
                wrong = _lost_manifest(candidate, others)
            if wrong is None:
                break
            found.append(f"{candidate} is damaged: {wrong}")
            if not self.may_be_older:
                refuse_damaged(setting, wrong, *(f"the one before it, {p}" for p in others[:1]))
        else:
            raise ValueError(f"{setting}: {'; '.join(found)}; no older one there is whole")
        for said in found:
            rank_zero_info(f"{said}; training goes on from {candidate}")
        return candidate


def strategy_of(trainer: Trainer) -> ChunkParallelStrategy:
    """The strategy of a run of this project, which has no other."""
    return cast(ChunkParallelStrategy, trainer.strategy)


def _lost_manifest(path: Path, others: list[Path]) -> str | None:
    """What is wrong with a checkpoint that can't be verified where others beside it can."""
    if (path / MANIFEST).is_file() or not any((other / MANIFEST).is_file() for other in others):
        return None
    return f"{MANIFEST} is missing"


def row_lengths(trainer: Trainer) -> dict[str, int]:
    """Tokens in the rows that the trainer reads, by the setting of the data that says so."""
    names = ("seq_len", "val_seq_len")
    if trainer.state.fn != TrainerFn.FITTING:
        names = names[1:]
    data = data_of(trainer)
    return {f"data.{name}": getattr(data, name) for name in names if hasattr(data, name)}
