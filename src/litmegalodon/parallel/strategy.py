"""The Lightning strategy of every run, from one process to many: FSDP2, sharded checkpoints."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.fsdp import FSDPModule

from litmegalodon.models.span import Span
from litmegalodon.parallel.exchange import ChunkGroup
from litmegalodon.parallel.mesh import resolve
from litmegalodon.parallel.parallelize import build_mesh
from litmegalodon.utils.checkpoint_files import damaged_is_refused, read_meta

PARTIAL, DOOMED = ".partial", ".deleted"


class ChunkParallelStrategy(ModelParallelStrategy):
    """Sharded parameters over all processes, which read different rows or share them.

    A checkpoint is a directory that is complete or absent: it is written under another name and
    renamed at the end, and renamed before it is deleted.

    Args:
        chunk_parallel_size: processes that share each row, a stretch of whole chunks to each.
        data_parallel_size: such groups, each with rows of its own, that share the parameters; -1:
            as many as there are.
        replicate_size: copies of all that, to gather parameters from near processes only.
        timeout_minutes: how long a process waits for another one before the run is given up.
        bf16_parameters: gather the matrices of linear layers in bfloat16; see `parallelize`.
    """

    def __init__(
        self,
        chunk_parallel_size: int = 1,
        data_parallel_size: int = -1,
        replicate_size: int = 1,
        timeout_minutes: float = 30.0,
        bf16_parameters: bool = False,
    ) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
        self.bf16_parameters = bf16_parameters
        self._asked = (replicate_size, data_parallel_size, chunk_parallel_size)

    def setup_environment(self) -> None:
        """Start the process group and lay the processes out as a mesh.

        Raises:
            ValueError: the processes can't share the data module's rows so.
        """
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

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint directory; it appears under its name only once it is whole."""
        path = Path(self.broadcast(filepath))
        partial = path.with_name(path.name + PARTIAL)
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        with interrupts_as_themselves():
            super().save_checkpoint(checkpoint, partial, storage_options)
        self.barrier()
        if self.is_global_zero:
            self.remove_checkpoint(path)
            partial.rename(path)
        self.barrier()

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Delete a checkpoint so that no moment shows a damaged one under its name."""
        path = Path(filepath)
        if self.is_global_zero and path.exists():
            doomed = path.with_name(path.name + DOOMED)
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors into the model and optimizer in place and return the rest.

        Raises:
            ValueError: it is no complete checkpoint, or of a model of another shape.
        """
        path = Path(self.broadcast(checkpoint_path))
        setting = f"ckpt_path={path}"
        self.lightning_module.check_checkpoint(read_meta(path, setting), path)
        with damaged_is_refused(setting):
            return super().load_checkpoint(path, weights_only=True)


def row_lengths(trainer: Trainer) -> dict[str, int]:
    """Tokens in the rows that the trainer reads, by the setting of the data that says so."""
    names = ("seq_len", "val_seq_len")
    if trainer.state.fn != TrainerFn.FITTING:
        names = names[1:]
    data = trainer.datamodule
    return {f"data.{name}": getattr(data, name) for name in names if hasattr(data, name)}


@contextmanager
def interrupts_as_themselves() -> Iterator[None]:
    """Raise KeyboardInterrupt where torch wraps the one that came amid a checkpoint's writing."""
    try:
        yield
    except CheckpointException as error:
        # failures: by rank, an exception and where it was raised
        if any(isinstance(failure[0], KeyboardInterrupt) for failure in error.failures.values()):
            raise KeyboardInterrupt from error
        raise
