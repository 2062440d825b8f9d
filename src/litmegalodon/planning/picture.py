"""Memory and traffic against the length of the context, beside ring attention on a Llama."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from litmegalodon.parallel.mesh import Degrees
from litmegalodon.planning import sizes
from litmegalodon.planning.devices import GIB
from litmegalodon.planning.plan import Run

MIB = 2**20
LENGTHS = [2**i for i in range(12, 23)]  # 4K to 4M tokens


@dataclass(frozen=True)
class Llama:
    """A Llama of as many layers, parameters and features as a run's model, and ring attention.

    All heads have keys and values of their own, as in Llama 2 7B. Its processes hold the same
    stretches of the same rows; each hands keys and values once around, in the backward pass their
    gradients too.
    """

    run: Run

    @property
    def hidden(self) -> float:
        """Width of the gated feed-forward part that makes the blocks as large as the model's."""
        dim = self.run.config.model_dim
        return (sizes.numel(sizes.block_shapes(self.run.config)) - 4 * dim * dim) / (3 * dim)

    def memory(self) -> float:
        """As `Run.memory` in all: only what a block saves is another."""
        c, share, ours = self.run.config, self.run.share, self.run.memory()
        # Input and the sum after attention; norms' outputs, q, k, v, attention; gate, up, product.
        products = 6 * c.model_dim + 3 * self.hidden
        token = 2 * share.residual * c.model_dim + share.product * products
        block = share.tokens * token
        saved = share.tokens * share.residual * c.model_dim if self.run.checkpointing else block
        working = block / 2 + (block if self.run.checkpointing else 0)
        # Keys and values in use, those under way, and their gradients.
        ring = 0.0
        if share.sharers > 1:
            ring = 4 * 2 * share.product * share.tokens * c.model_dim
        same = sum(v for k, v in ours.items() if k not in ("activations", "for the moment"))
        final = share.tokens * share.residual * c.model_dim
        return same + c.num_layers * saved + final + working + ring

    def traffic(self) -> float:
        """Keys and values forward, again backward with their gradients."""
        c, share = self.run.config, self.run.share
        once = 2 * share.product * share.tokens * c.model_dim * (share.sharers - 1)
        return self.run.accumulation * c.num_layers * 3 * once


def at(run: Run, length: int) -> Run:
    """The run with rows of another length: as many tokens in a batch as far as they can be, and a
    row over as many processes as leave each no more of it than it has tokens now, at most all.
    """
    world = run.processes // run.degrees.replicate
    chunk = 1
    while length // chunk > run.share.tokens and world % (2 * chunk) == 0:
        chunk *= 2
    if length % (chunk * run.config.attention_chunk):
        chunk = 1
    degrees = Degrees(run.degrees.replicate, world // chunk, chunk)
    rows = max(1, run.batch_size * run.length // length // degrees.readers) * degrees.readers
    return replace(run, degrees=degrees, length=length, batch_size=rows, measured=None)


def exchange(run: Run) -> float:
    """Bytes that a process sends to those that share its rows, in a step."""
    traffic = run.traffic()
    return traffic["chunk exchange, forward"] + traffic["chunk exchange, backward"]


def draw(path: Path, run: Run) -> None:
    """Draw two panels: memory of a process, and what it sends for the sake of sharing rows.

    Every point is of the run with rows of that length, see `at`.
    """
    runs = [at(run, length) for length in LENGTHS]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    memory, traffic = figure.subplots(1, 2)
    _panel(memory, runs, lambda r: r.total / GIB, lambda r: Llama(r).memory() / GIB)
    memory.set_ylabel("memory of a process, GiB")
    memory.set_ylim(bottom=0)
    sends = runs[0].traffic()
    sharding = (sends["FSDP all-gather"] + sends["FSDP reduce-scatter"]) / MIB
    if sharding:
        traffic.axhline(sharding, color="grey", ls="--", lw=1, label="sharded parameters, both")
    _panel(traffic, runs, lambda r: exchange(r) / MIB, lambda r: Llama(r).traffic() / MIB)
    if any(r.degrees.chunk > 1 for r in runs):
        traffic.set_yscale("log")
    else:
        traffic.set_title("no row is shared, nothing is sent for it", fontsize="medium")
    traffic.set_ylabel("sent by a process, MiB a step")
    checkpointing = "with" if run.checkpointing else "without"
    figure.suptitle(
        f"{_count(sizes.parameters(run.config))} parameters on {run.processes} "
        f"process{'es' * (run.processes > 1)}, "
        f"{checkpointing} activation checkpointing (computed, not measured)"
    )
    figure.savefig(path, dpi=150)


def _panel(axes, runs: list[Run], ours: Callable, llamas: Callable) -> None:
    for value, label in ((ours, "MEGALODON, chunk parallel"), (llamas, "Llama, ring attention")):
        points = [(r.length, value(r)) for r in runs]
        points = [(length, y) for length, y in points if y > 0]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlim(LENGTHS[0] / 1.3, LENGTHS[-1] * 1.3)
    axes.set_xticks(LENGTHS[::2], [_tokens(length) for length in LENGTHS[::2]])
    axes.set_xlabel("context, tokens")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def _tokens(length: int) -> str:
    return f"{length // 2**20}M" if length >= 2**20 else f"{length // 2**10}K"


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"
