"""Which processes share what; imports nothing heavy, to refuse a setting before torch is loaded.

Processes form a grid of replicate x data x chunk. Those along `chunk` read stretches of the same
rows, those along `data` other rows, and parameters are sharded over both. `replicate` copies of all
that read other rows again.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Degrees(NamedTuple):
    """Sizes of the mesh's axes, slowest first: neighbours share rows."""

    replicate: int
    data: int
    chunk: int

    @property
    def readers(self) -> int:
        """Groups of processes that read rows of their own."""
        return self.replicate * self.data


def resolve(
    world_size: int,
    replicate_size: int,
    data_parallel_size: int,
    chunk_parallel_size: int,
    chunk_size: int | None,
    lengths: Mapping[str, int],
) -> Degrees:
    """The mesh that degrees ask for; a degree of -1 is what the others leave.

    Args:
        world_size: number of processes.
        chunk_size: tokens that attention sees at once; None: whole rows, which are not shared.
        lengths: tokens in a row, by the setting that says so; each process's stretch of it must be
            whole chunks.

    Raises:
        ValueError: the degrees do not make up the world size, or a row can't be shared so.
    """
    asked = Degrees(replicate_size, data_parallel_size, chunk_parallel_size)
    known = math.prod(d for d in asked if d != -1)
    if any(d != -1 and d < 1 for d in asked):
        reason = "each must be at least 1, or -1 for what the others leave"
    elif asked.count(-1) > 1:
        reason = "only one of them can be -1"
    elif world_size % known or (-1 not in asked and known != world_size):
        reason = f"they do not make up {world_size} processes"
    else:
        degrees = Degrees(*(world_size // known if d == -1 else d for d in asked))
        if chunk_size is None and degrees.chunk > 1:
            raise ValueError(
                f"trainer.strategy.chunk_parallel_size={chunk_parallel_size}: a model without "
                "model.config.chunk_size attends to whole rows, which processes can't share; set 1"
            )
        short = [name for name in lengths if not _shares(lengths[name], degrees.chunk, chunk_size)]
        if not short:
            return degrees
        reason = (
            f"{short[0]} over chunk_parallel_size={degrees.chunk} processes must be whole chunks, "
            f"so a multiple of {degrees.chunk * chunk_size}"
        )
    nearest = _nearest(asked, world_size, chunk_size, lengths)
    rows = ", ".join(f"{name}={length}" for name, length in lengths.items())
    raise ValueError(
        f"trainer.strategy: {_named(asked)} over {world_size} processes with {rows} and "
        f"model.config.chunk_size={chunk_size}: {reason}; the nearest setting that works is "
        f"{_named(nearest)}"
    )


def _shares(length: int, chunk_parallel_size: int, chunk_size: int | None) -> bool:
    if chunk_parallel_size == 1 or chunk_size is None:
        return chunk_parallel_size == 1
    return length % (chunk_parallel_size * chunk_size) == 0


def _nearest(
    asked: Degrees, world_size: int, chunk_size: int | None, lengths: Mapping[str, int]
) -> Degrees:
    """The mesh that works and differs least, by factors, from the degrees that were asked for."""
    divisors = [d for d in range(1, world_size + 1) if world_size % d == 0]
    meshes = [
        Degrees(replicate, world_size // chunk // replicate, chunk)
        for chunk in divisors
        if all(_shares(length, chunk, chunk_size) for length in lengths.values())
        for replicate in divisors
        if world_size // chunk % replicate == 0
    ]

    def distance(mesh: Degrees) -> tuple[float, int, int]:
        pairs = ((a, m) for a, m in zip(asked, mesh, strict=True) if a > 0)
        factors = sum(abs(math.log(m / a)) for a, m in pairs)
        # Of equally near ones the one with the fewest copies of the parameters, then of messages.
        return round(factors, 6), mesh.replicate, mesh.chunk

    return min(meshes, key=distance)


def _named(mesh: Degrees) -> str:
    return (
        f"replicate_size={mesh.replicate} x data_parallel_size={mesh.data} x "
        f"chunk_parallel_size={mesh.chunk}"
    )
