"""A plan as text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from litmegalodon.planning import sizes
from litmegalodon.planning.devices import GB, GIB, Device
from litmegalodon.planning.plan import RESERVE, Run

MB = 1e6
# The whole report is one table: names, then a column for each number of processes to a row.
NAME, COLUMN = 44, 12


def report(run: Run, device: Device, efficiency: float, links: float) -> Iterator[str]:
    """The lines of a plan.

    Args:
        efficiency, links: as `Run.seconds` takes them.
    """
    runs, refused = alternatives(run)
    yield from _heading(run, device)
    yield ""
    yield _row("processes to a row (chunk_parallel_size)", [str(r.degrees.chunk) for r in runs])
    yield _row("data_parallel_size", [str(r.degrees.data) for r in runs])
    yield _row("tokens of a micro-batch on a process", [f"{r.share.tokens:,}" for r in runs])
    yield ""
    yield "memory of the process that holds most, GiB"
    yield from _table([dict[str, float](r.memory()) for r in runs], GIB)
    yield _row("  in all", [f"{r.total / GIB:.2f}" for r in runs])
    other = [replace(r, checkpointing=not r.checkpointing) for r in runs]
    name = f"  in all {'without' if run.checkpointing else 'with'} activation checkpointing"
    yield _row(name, [f"{r.total / GIB:.2f}" for r in other])
    yield _row(f"  fits {device.name}", [_yes(r.fits(device)) for r in runs])
    yield ""
    yield "sent by a process in an optimizer step, MB"
    yield from _table([r.traffic() for r in runs], MB)
    yield ""
    yield f"time, an estimate: {efficiency:.0%} of the peak, {links:.0%} of the links' speed"
    times = [r.seconds(device, efficiency, links) for r in runs]
    yield from _table(times, 1, "{:.4f}", suffix=", s")
    rates = [r.tokens / r.processes / t["step"] for r, t in zip(runs, times, strict=True)]
    yield _row("  tokens/s/GPU", [f"{rate:,.0f}" for rate in rates])
    yield ""
    yield from refused
    yield from _verdict(run, device)


def alternatives(run: Run) -> tuple[list[Run], list[str]]:
    """The run with 1, 2, 4, ... processes to a row and as asked, and why the missing ones can't be.

    FSDP shards over all of them, so what was measured of one holds for all.
    """
    most = max(run.degrees.chunk, run.length // run.config.attention_chunk)
    doubled = {2**i for i in range(most.bit_length()) if 2**i <= run.processes}
    runs, refused = [], []
    for chunk in sorted(doubled | {run.degrees.chunk}):
        try:
            runs.append(run.sharing(chunk))
        except ValueError as error:
            refused.append(f"chunk_parallel_size={chunk} can't be: {error}")
    return runs, refused


def _heading(run: Run, device: Device) -> Iterator[str]:
    model_flops, done = sizes.step_flops(run.config, run.length, run.checkpointing)
    mesh = " x ".join(f"{n} {name}" for name, n in run.degrees._asdict().items())
    yield f"model: {sizes.parameters(run.config):,} parameters"
    yield f"mesh: {run.processes:,} x {device.name} as {mesh}, {run.machine} to a machine"
    micro = f" in {run.accumulation} micro-batches" if run.accumulation > 1 else ""
    yield (
        f"step: {run.batch_size:,} rows of {run.length:,} tokens, {run.tokens:,} tokens{micro},"
        f" {'bfloat16' if run.bf16 else 'float32'} products"
    )
    again = f", {done / GB:.2f} with blocks computed again" if done > model_flops else ""
    yield f"arithmetic: {model_flops / GB:.2f} GFLOP a token forward and backward{again}"


def _verdict(run: Run, device: Device) -> Iterator[str]:
    limit = (1 - RESERVE) * device.memory / GIB
    kept = f"{limit:.1f} GiB, {RESERVE:.0%} of its memory kept free"
    if run.fits(device):
        yield f"It fits: {run.total / GIB:.1f} of {kept}."
    else:
        yield f"It does not fit: {run.total / GIB:.1f} GiB, and {device.name} has {kept}."
    small = run.smallest(device)
    if small is None:
        yield "No mesh of up to 16,384 processes holds these settings: take fewer rows in a batch."
        return
    processes = "1 process" if small.processes == 1 else f"{small.processes:,} processes"
    yield (
        f"The smallest mesh that holds these settings: {processes}, "
        f"trainer.strategy.chunk_parallel_size={small.degrees.chunk} "
        f"({small.total / GIB:.1f} GiB each)."
    )


def _table(
    columns: Sequence[dict[str, float]], unit: float, form: str = "{:,.2f}", suffix: str = ""
) -> Iterator[str]:
    """A row for each name that any column has something of."""
    for name in columns[0]:
        values = [column[name] / unit for column in columns]
        if any(values):
            yield _row(f"  {name}{suffix}", map(_formatter(form), values))


def _formatter(form: str) -> Callable[[float], str]:
    # So small that nothing would be left of it.
    return lambda value: form.format(value) if value >= 0.005 or not value else f"{value:.1e}"


def _row(name: str, values) -> str:
    return f"{name:<{NAME}}" + "".join(f"{value:>{COLUMN}}" for value in values)


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"
