"""The Lightning strategy of every run, from one process to many: FSDP2, sharded checkpoints."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from litmegalodon.utils.checkpoint_files import damaged_is_refused, read_meta

PARTIAL, DOOMED = ".partial", ".deleted"


class ShardedStrategy(ModelParallelStrategy):
    """Data parallelism with sharded parameters over all processes.

    A checkpoint is a directory that is complete or absent: it is written under another name and
    renamed at the end, and renamed before it is deleted.

    Args:
        timeout_minutes: how long a process waits for another one before the run is given up.
    """

    def __init__(self, timeout_minutes: float = 30.0) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))

    def setup_environment(self) -> None:
        """Start the process group and lay the processes out as a mesh with the one axis `data`."""
        self._setup_distributed()
        self._device_mesh = init_device_mesh(
            self.root_device.type, (self.world_size,), mesh_dim_names=("data",)
        )
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Number of data-parallel ranks, and which of them this process is."""
        data = self.device_mesh["data"]
        return {"num_replicas": data.size(), "rank": data.get_local_rank()}

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
