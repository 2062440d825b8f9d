"""The CPU benchmark: make bench, or python benchmarks/cpu.py [--pairs 7] [--only NAME ...]

One process, alternating pairs; prints a table and writes benchmarks/results/cpu.json. It reports
and fails nothing.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from data import data
from efficiency import efficiency
from inference import MILLION, inference
from litmegalodon.ops import cema, chunk_attention, timestep_norm
from litmegalodon.utils.allocator import keep_freed_memory
from measure import Figure, heading, machine, paired, row, save
from memory import peak_of
from overhead import overhead
from subjects import (
    CONFIG,
    Llama,
    cema_by_fft,
    count,
    megalodon,
    products_of_a_step,
    training_step,
)

GIB = 2**30


def against_llama(pairs: int, lengths: dict[str, int], dtype: torch.dtype) -> Iterator[Figure]:
    """Steps beside a Llama of the same size."""
    ours = megalodon()
    theirs = Llama(CONFIG, count(ours))
    print(f"parameters: Megalodon {count(ours):,}, Llama {count(theirs):,}")
    name = str(dtype).removeprefix("torch.")
    must = {torch.float32: (0.65, 0.25), torch.bfloat16: (0.70, 0.25)}[dtype]
    for i, key in enumerate(("short", "long")):
        yield paired(
            f"step against Llama, {name}, L = {lengths[key]:,}",
            training_step(ours, lengths[key], dtype),
            training_step(theirs, lengths[key], dtype),
            pairs,
            must=must[i],
            aim=(0.5, 0.18)[i],
        )


def llama(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """Training steps against a Llama's, float32 and, where the CPU multiplies it, bfloat16."""
    yield from against_llama(pairs, lengths, torch.float32)
    if has_bfloat16():
        yield from against_llama(pairs, lengths, torch.bfloat16)


def step(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """A training step against its own products, precision, documents and length."""
    short, long, longest = (lengths[key] for key in ("short", "long", "longest"))
    plain = {n: training_step(megalodon(), n) for n in (short, long, longest)}
    for n, must, aim in ((long, 1.7, 1.25), (short, None, None)):
        name = f"step against its own matrix products, L = {n:,}"
        yield paired(name, plain[n], products_of_a_step(n), pairs, must=must, aim=aim)
    for n in (short, long):
        if has_bfloat16():
            name = f"bf16-mixed step against float32, L = {n:,}"
            halves = training_step(megalodon(), n, torch.bfloat16)
            yield paired(name, halves, plain[n], pairs, must=0.8, aim=0.6)
    for n in (short, long):
        name = f"step with a document every 1,000 tokens, L = {n:,}"
        packed = training_step(megalodon(), n, documents=True)
        yield paired(name, packed, plain[n], pairs, must=1.15, aim=1.05)
    name = f"step time a token, L = {longest:,} against {short:,}"
    per = (longest, short)
    yield paired(name, plain[longest], plain[short], pairs, per=per, must=1.15, aim=1.0)


def operators(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """Each operator forward and backward against its reference loop, CEMA against its FFT form."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    def parameters(dim: int) -> list[Tensor]:
        n = CONFIG.cema_ndim
        return [draw(dim, n, 1), draw(dim, n, 1), draw(dim, 1, 1), draw(dim, n, 2), draw(dim, 1)]

    long, dim, length = lengths["operators"], 512, lengths["reference"]
    inputs = [draw(1, long, dim), *parameters(dim)]
    yield paired(
        f"CEMA against its FFT form, times faster, D {dim}, L = {long:,}",
        both_ways(lambda *t: cema(*t)[0], inputs),
        both_ways(cema_by_fft, inputs),
        pairs,
        must=12,
        aim=25,
        higher_is_better=True,
    )

    def norm(x: Tensor, weight: Tensor, bias: Tensor, impl: str) -> tuple:
        return timestep_norm(x, weight, bias, 8, 1e-5, impl=impl)

    def attention(q: Tensor, k: Tensor, v: Tensor, impl: str) -> tuple:
        return chunk_attention(q, k, v, chunk_size=512, impl=impl)

    x, head = (1, length, 256), (1, length, 1)
    for name, function, inputs in (
        ("CEMA", cema, [draw(*x), *parameters(256)]),
        ("TimestepNorm", norm, [draw(*x), draw(256), draw(256)]),
        ("chunk attention", attention, [draw(*head, 64), draw(*head, 64), draw(*head, 512)]),
    ):
        fast, loop = (
            both_ways(lambda *t, f=function, i=impl: f(*t, impl=i)[0], inputs)
            for impl in ("torch", "reference")
        )
        label = f"{name} against its reference loop, times faster, L = {length:,}"
        yield paired(label, fast, loop, pairs, higher_is_better=True)


def both_ways(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    """A call forward and back."""

    def run() -> None:
        out = function(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return run


def memory(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """Peaks of processes of their own."""
    long, longest = lengths["long"], lengths["longest"]
    peak, _ = peak_of(long)
    yield Figure(f"peak of the process, L = {long:,}", peak / GIB, "GiB", 2.5, 1.8)
    _, most = peak_of(longest, "checkpointing")
    name = f"peak above the model, L = {longest:,}, checkpointing"
    yield Figure(name, most / GIB, "GiB", 4.0, 2.0)
    _, half = peak_of(longest // 2, "checkpointing")
    yield Figure(f"that peak over twice the one at L = {longest // 2:,}", most / (2 * half))


def has_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products; without them it only imitates them, slowly."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


SECTIONS = {
    "llama": llama,
    "step": step,
    "operators": operators,
    "memory": memory,
    "data": data,
    "inference": inference,
    "overhead": overhead,
    "efficiency": efficiency,
}
# What is measured where nothing is asked for: `efficiency` takes as long as all of that.
USUAL = [name for name in SECTIONS if name != "efficiency"]
LENGTHS = {
    "short": 4096,
    "long": 16384,
    "longest": 65536,
    "million": MILLION,
    "operators": 8192,
    "reference": 1024,
}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs a figure (7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=USUAL)
    parser.add_argument("--shrink", type=int, default=1, help="divide every length, for a try (1)")
    asked = parser.parse_args()
    if min(asked.pairs, asked.threads, asked.shrink) < 1:
        parser.error("--pairs, --threads and --shrink: must be at least 1")
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    lengths = {name: max(64, n // asked.shrink) for name, n in LENGTHS.items()}
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if not has_bfloat16():
        print("this CPU has no bfloat16 products: figures in bfloat16 are left out")
    print(heading())
    figures = []
    for name in asked.only:
        for figure in SECTIONS[name](asked.pairs, lengths):
            if asked.shrink > 1:
                # The bounds are for the real lengths.
                figure.must = figure.aim = None
            print(row(figure), flush=True)
            figures.append(figure)
    settings = {"pairs": asked.pairs, "model": CONFIG.to_dict(), "lengths": lengths}
    whole = asked.shrink == 1 and asked.only == USUAL
    name = f"cpu-{asked.only[0]}" if asked.shrink == 1 and len(asked.only) == 1 else "cpu-part"
    path = save("cpu" if whole else name, settings, figures)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
