"""What a process of a run holds, sends and computes in an optimizer step; no torch imported."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from litmegalodon.models.config import MegalodonConfig
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.planning import sizes
from litmegalodon.planning.devices import Device
from litmegalodon.planning.sizes import FLOAT32, FLOAT64, Share

# Part of a device's memory that fragments, the driver and the collectives' buffers take.
RESERVE = 0.1
# Of the blocks' parameters two are gathered at a time, the one in use and the one that is next, and
# of their gradients two are whole, the one computed and the one under way.
GATHERED = 2


class Elements(NamedTuple):
    """Numbers of a sharded model's elements.

    Attributes:
        held: by the process that holds most.
        block, block_bf16: that a process sends where a block is gathered, and those of them that
            may be sent in bfloat16.
        root, root_bf16: the same of what is outside of the blocks.
    """

    held: int
    block: int
    block_bf16: int
    root: int
    root_bf16: int


@dataclass(frozen=True)
class Run:
    """The settings of a run that decide what it takes.

    Attributes:
        degrees: the mesh.
        batch_size: rows of a micro-batch over all processes.
        length: tokens in a row.
        accumulation: micro-batches in an optimizer step.
        bf16: matrix products in bfloat16.
        bf16_parameters: the matrices of linear layers gathered in bfloat16.
        triton: operators on a GPU.
        machine: processes of one machine.
        measured: `elements`, as a sharded model has them; by formula without it.
    """

    config: MegalodonConfig
    degrees: Degrees
    batch_size: int
    length: int
    accumulation: int = 1
    checkpointing: bool = False
    bf16: bool = False
    bf16_parameters: bool = False
    triton: bool = False
    machine: int = 1
    measured: Elements | None = None

    @property
    def processes(self) -> int:
        return self.degrees.readers * self.degrees.chunk

    @property
    def shards(self) -> int:
        """Processes that parameters are divided over."""
        return self.degrees.data * self.degrees.chunk

    @property
    def tokens(self) -> int:
        """Of an optimizer step, over all processes."""
        return self.batch_size * self.length * self.accumulation

    @property
    def share(self) -> Share:
        return Share(
            rows=-(-self.batch_size // self.degrees.readers),
            length=-(-self.length // self.degrees.chunk),
            sharers=self.degrees.chunk,
            product=2 if self.bf16 else FLOAT32,
            triton=self.triton,
        )

    @cached_property
    def elements(self) -> Elements:
        if self.measured is not None:
            return self.measured
        c, shards, halved = self.config, self.shards, self.bf16_parameters
        block, root = (sizes.shard(f(c), shards) for f in (sizes.block_shapes, sizes.root_shapes))
        linear, head = (
            sizes.shard(f(c), shards) if halved else 0
            for f in (sizes.linear_shapes, sizes.head_shapes)
        )
        return Elements(c.num_layers * block + root, block, linear, root, head)

    @property
    def _gathered(self) -> tuple[int, int]:
        """Bytes that a process sends where a block is gathered, and where the rest is."""
        _, block, block_bf16, root, root_bf16 = self.elements
        return FLOAT32 * block - 2 * block_bf16, FLOAT32 * root - 2 * root_bf16

    # memory

    def memory(self) -> dict[str, int]:
        """Bytes of the process that holds most, by what for."""
        config, share = self.config, self.share
        held, block, _, root, _ = self.elements
        block_bytes, root_bytes = self._gathered
        gathered = self.shards * (root_bytes + GATHERED * block_bytes)
        gradients = FLOAT32 * self.shards * (root + GATHERED * block)
        working = sizes.block_working(config, share, self.checkpointing)
        whole = self.accumulation > 1 and FLOAT32 * sizes.parameters(config)
        return {
            "parameters": FLOAT32 * held,
            "gradients": FLOAT32 * held,
            "optimizer": 2 * FLOAT32 * held,
            "gathered parameters and gradients": gathered + gradients,
            # Unreduced until the last micro-batch.
            "gradients of earlier micro-batches": int(whole),
            "activations": sizes.activations(config, share, self.checkpointing),
            "logits and loss": sizes.loss_saved(config, share),
            # The loss has ended before the blocks' backward passes begin.
            "for the moment": max(working, sizes.loss_working(config, share)),
        }

    @property
    def total(self) -> int:
        return sum(self.memory().values())

    def fits(self, device: Device) -> bool:
        return self.total <= (1 - RESERVE) * device.memory

    # traffic

    def traffic(self) -> dict[str, float]:
        """Bytes that a process sends in an optimizer step, by collective, as a ring sends them."""
        c, (_, block, _, root, _) = self.config, self.elements
        layers, (replicas, _, sharers), shards = c.num_layers, self.degrees, self.shards
        # Blocks are gathered for each pass, the rest stays from the forward pass on.
        block_bytes, root_bytes = self._gathered
        gathered = (2 * layers * block_bytes + root_bytes) * (shards - 1)
        reduced = FLOAT32 * (layers * block + root)
        statistics, states = sizes.message(c, self.share.rows)
        exchanged = (layers * (statistics + states) + statistics) * (sharers - 1)
        parameters = layers * len(sizes.block_shapes(c)) + len(sizes.root_shapes(c))
        return {
            "FSDP all-gather": self.accumulation * gathered,
            "FSDP reduce-scatter": reduced * (shards - 1),
            "replicas' all-reduce": reduced * _all_reduce(replicas),
            "chunk exchange, forward": self.accumulation * exchanged,
            "chunk exchange, backward": self.accumulation * exchanged,
            # Each parameter's norm; negative log-likelihood, valid tokens, padding, who is asked to
            # stop.
            "norm and counts": FLOAT32 * parameters * _all_reduce(shards)
            + 4 * FLOAT64 * _all_reduce(self.processes),
        }

    # time

    def seconds(self, device: Device, efficiency: float, links: float) -> dict[str, float]:
        """An estimate of a step's time, in parts: arithmetic at part of the peak, traffic at part
        of the links' speed. Sharding's traffic runs beside the arithmetic, that of chunks does not.

        Args:
            efficiency: part of the device's bfloat16 (without `bf16` TF32) peak.
            links: part of the links' peak.
        """
        kind = "dot bf16" if self.bf16 else "dot tf32"
        _, done = sizes.step_flops(self.config, self.length, self.checkpointing)
        arithmetic = done * self.tokens / self.processes / device.peaks[kind] / efficiency
        sent = self.traffic()
        near = self.machine
        sharding = sent["FSDP all-gather"] + sent["FSDP reduce-scatter"]
        times = {
            "arithmetic": arithmetic,
            "sharding": sharding / (links * self._speed(device, self.shards, near))
            + sent["replicas' all-reduce"] / (links * self._copies_speed(device)),
            "exchange": (sent["chunk exchange, forward"] + sent["chunk exchange, backward"])
            / (links * self._speed(device, self.degrees.chunk, near)),
        }
        times["step"] = max(times["arithmetic"], times["sharding"]) + times["exchange"]
        return times

    def _speed(self, device: Device, processes: int, machine: int) -> float:
        """Bytes a second of a ring over neighbours: as many enter a machine as it has cards."""
        if processes <= machine:
            return device.near
        return min(device.near, device.far * max(1, machine))

    def _copies_speed(self, device: Device) -> float:
        return device.near if self.processes <= self.machine else device.far

    def sharing(self, chunk: int) -> "Run":
        """The same run over the same processes with another number of them to a row.

        Raises:
            ValueError: that can't be, and why.
        """
        c, replicas = self.config, self.degrees.replicate
        world = self.processes // replicas
        if world % chunk:
            raise ValueError(f"{world} processes are not groups of {chunk}")
        degrees = Degrees(replicas, world // chunk, chunk)
        if chunk > 1 and self.length % (chunk * c.attention_chunk):
            raise ValueError(
                f"rows of {self.length:,} tokens are not {chunk} stretches of whole chunks"
            )
        if self.batch_size % degrees.readers:
            raise ValueError(
                f"{self.batch_size:,} rows do not divide over {degrees.readers:,} groups"
            )
        return replace(self, degrees=degrees)

    def smallest(self, device: Device, most: int = 2**14) -> "Run | None":
        """The run over the fewest processes, a power of two, that fits, sharing rows among as few
        as possible; None if none of at most `most` does.
        """
        for world in (2**i for i in range(most.bit_length())):
            run = replace(self, degrees=Degrees(1, world, 1), measured=None)
            for chunk in (2**i for i in range(world.bit_length())):
                with suppress(ValueError):
                    if (fitting := run.sharing(chunk)).fits(device):
                        return fitting
        return None


def _all_reduce(processes: int) -> float:
    return 2 * (processes - 1) / processes
