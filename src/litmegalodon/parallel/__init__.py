"""Many processes: which share what (`mesh`), how a model is sharded, and the Lightning strategy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litmegalodon.parallel.strategy import ChunkParallelStrategy

__all__ = ["ChunkParallelStrategy"]


def __getattr__(name: str) -> Any:
    # Settings are checked through `mesh` before torch is imported, which takes seconds.
    if name == "ChunkParallelStrategy":
        from litmegalodon.parallel.strategy import ChunkParallelStrategy

        return ChunkParallelStrategy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
