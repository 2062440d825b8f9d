"""Reading and writing at any length, beside a Llama of transformers with its keys and values kept.

A text of a million random tokens is read once, in pieces as `inference.Reader` does, and the states
on the way are kept: reading on and writing are timed from there, all taken in turn. Writing is over
a whole chunk, since a step takes a little longer the fuller the chunk is. The Llama reads in one
call; what it has read before it writes is filled in with random numbers, which take it as long as
real ones.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from litmegalodon.inference.text_state import advance
from litmegalodon.models import Megalodon, MegalodonState
from measure import RESULTS, Figure, compared, paired, rounds, seconds_of
from memory import status
from subjects import CONFIG, Llama, count, megalodon

MILLION, PIECE, CHUNK = 1_000_000, 4096, CONFIG.chunk_size
# Where writing is timed, and how many tokens the Llama writes at a time.
NEAR, WRITTEN = 1000, 16
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "inference.png"
MIB = 2**20
# By what is done and by which model: tokens read a second, or seconds a token written, by place.
Curves = dict[str, dict[str, dict[int, float]]]


@torch.no_grad()
def inference(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """Reading and writing: speed at every length, memory, times a Llama's speed."""
    million, short, long, longest = (lengths[k] for k in ("million", "short", "long", "longest"))
    ours = megalodon().eval().requires_grad_(False)
    theirs = Llama(CONFIG, count(ours)).eval().requires_grad_(False)
    tokens = torch.randint(CONFIG.vocab_size, (1, million), generator=_seeded())
    near, far = (n - min(CHUNK, million // 64) // 2 for n in (min(NEAR, million // 8), million))
    states, seconds, memory = read(ours, tokens, sorted({near, short, long, longest, far}))
    name = f"process's memory, last quarter of {million:,} against the second"
    yield Figure(name, memory, must=1.01, seconds={"reading": seconds})

    curves: Curves = {"read": {}, "written": {}}
    some = tokens[:, : 2 * PIECE if million == MILLION else 64]
    spent = rounds({n: lambda s=s: read(ours, some, [], s) for n, s in states.items()}, pairs)
    curves["read"]["Megalodon"] = {
        n: some.shape[1] / statistics.median(times) for n, times in spent.items()
    }
    name = f"reading a token after {far:,} tokens against after {near:,}"
    yield compared(name, spent[far], spent[near], must=1.05)
    yield from reading(pairs, ours, theirs, tokens, (short, long, 2 * long), curves)

    steps = min(CHUNK, million // 1000)
    sizes = {n: largest_state(ours, states[n], steps) for n in (near, far)}
    yield Figure("a text's state", sizes[far] / MIB, "MiB")
    yield Figure(
        f"largest state after {far:,} tokens against after {near:,}",
        sizes[far] / sizes[near],
        must=1.01,
    )
    yield from writing(pairs, ours, theirs, states, (near, far), steps, curves)
    kept = 2 * CONFIG.num_layers * CONFIG.model_dim * 4 * longest
    yield Figure(f"the Llama's keys and values of {longest:,} tokens", kept / MIB, "MiB")
    draw(curves, PICTURE if million == MILLION else RESULTS / "cpu-part.png")


def reading(
    pairs: int,
    ours: Megalodon,
    theirs: Llama,
    tokens: Tensor,
    lengths: Sequence[int],
    curves: Curves,
) -> Iterator[Figure]:
    """Whole texts beside the Llama, the longest but twice: it takes it half a minute a time."""
    beside = curves["read"]["Llama"] = {}
    for n in lengths:
        longest = n == lengths[-1]
        figure = paired(
            f"reading {n:,} tokens, times faster than the Llama",
            lambda n=n: read(ours, tokens[:, :n], []),
            lambda n=n: theirs.model(input_ids=tokens[:, :n], use_cache=True),
            min(pairs, 2) if longest else pairs,
            must=5 if longest else None,
            higher_is_better=True,
        )
        beside[n] = n / figure.seconds["other"]
        yield figure


def writing(
    pairs: int,
    ours: Megalodon,
    theirs: Llama,
    states: dict[int, MegalodonState],
    ends: tuple[int, int],
    steps: int,
    curves: Curves,
) -> Iterator[Figure]:
    """Steps from every state, and the Llama's after as many tokens, all taken in turn."""
    runs = {("Megalodon", n): steps_from(ours, state, steps) for n, state in states.items()}
    (near, far), caches = ends, {}
    for n in states:
        if n != far:
            caches[n], runs["Llama", n] = fastest_writing(theirs, n, pairs)
    spent = rounds(runs, pairs)
    for (name, n), times in spent.items():
        per = steps if name == "Megalodon" else WRITTEN
        curves["written"].setdefault(name, {})[n] = statistics.median(times) / per
    name = f"writing a chunk after {far:,} tokens against after {near:,}"
    yield compared(name, spent["Megalodon", far], spent["Megalodon", near], must=1.05)
    for n, cache in caches.items():
        yield compared(
            f"writing after {n:,} tokens, times faster than the Llama, {cache} cache",
            spent["Megalodon", n],
            spent["Llama", n],
            per=(steps, WRITTEN),
            must={4096: 1, 65536: 3}.get(n),
            higher_is_better=True,
        )


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def read(
    model: Megalodon, tokens: Tensor, stops: Sequence[int], state: MegalodonState | None = None
) -> tuple[dict[int, MegalodonState], float, float]:
    """Read tokens [1, L] in pieces.

    Returns:
        the states after `stops` tokens, seconds, and the median of the process' memory in the last
        quarter of the pieces over that in the second, when all but the last of the states are kept.
    """
    total = tokens.shape[1]
    edges = sorted({0, *range(PIECE, total, PIECE), total, *stops})
    states, resident = {}, []
    began = time.perf_counter()
    for a, b in pairwise(edges):
        _, state = advance(model, tokens[:, a:b], state)
        resident.append(status("VmRSS"))
        if b in stops:
            states[b] = state
    spent = time.perf_counter() - began
    quarter = len(resident) // 4
    second = resident[quarter : 2 * quarter] or resident
    return states, spent, statistics.median(resident[3 * quarter :]) / statistics.median(second)


def steps_from(model: Megalodon, state: MegalodonState, steps: int) -> Callable[[], None]:
    """Steps by one token, each from the state that the one before left."""
    tokens = torch.randint(CONFIG.vocab_size, (steps, 1, 1), generator=_seeded())

    def run() -> None:
        now = state
        for token in tokens:
            logits, now = advance(model, token, now)
            logits.argmax()

    return run


def largest_state(model: Megalodon, state: MegalodonState, steps: int) -> int:
    """Bytes of the state over so many steps at the most, room that it keeps included."""
    most, token = 0, torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(steps):
        _, state = advance(model, token, state)
        most = max(most, sum(u.untyped_storage().nbytes() for u in state.tensors().values()))
    return most


def fastest_writing(model: Llama, read: int, pairs: int) -> tuple[str, Callable[[], None]]:
    """The faster of transformers' two caches after so many tokens, and its writing."""
    from transformers import DynamicCache, StaticCache

    config = model.model.config
    # A warming run each, then those of the pairs and their own.
    room = WRITTEN * (pairs + 3)
    caches = {
        "dynamic": DynamicCache(config=config),
        "static": StaticCache(config=config, max_cache_len=read + room),
    }
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    runs = {}
    for name, cache in caches.items():
        keys = torch.randn(1, heads, read, size, generator=_seeded())
        for layer in range(config.num_hidden_layers):
            place = {"cache_position": torch.arange(read)}
            cache.update(keys.clone(), keys.clone(), layer, place)
        runs[name] = _llama_writing(model, cache)
        runs[name]()
    seconds = {name: seconds_of(run) for name, run in runs.items()}
    best = min(seconds, key=seconds.get)
    return best, runs[best]


def _llama_writing(model: Llama, cache) -> Callable[[], None]:
    tokens = torch.randint(CONFIG.vocab_size, (WRITTEN, 1, 1), generator=_seeded())

    def run() -> None:
        for token in tokens:
            hidden = model.model(input_ids=token, past_key_values=cache, use_cache=True)
            model.output(hidden.last_hidden_state).argmax()

    return run


def draw(curves: Curves, path: Path) -> None:
    """Tokens read a second and milliseconds a token written, against the length of the text."""
    picture = Picture(figsize=(9, 3.6), layout="constrained")
    panels = zip(
        picture.subplots(1, 2),
        ("read", "written"),
        ("tokens read a second", "milliseconds a token written"),
        (1, 1000),
        strict=True,
    )
    for axes, kind, label, unit in panels:
        for name, curve in curves[kind].items():
            places = sorted(curve)
            style = {"color": "C0" if name == "Megalodon" else "C1", "marker": "o", "markersize": 3}
            axes.plot(places, [unit * curve[n] for n in places], label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel="tokens of the text", ylabel=label)
        axes.yaxis.set_major_formatter("{x:,.4g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_ylim(axes.get_ylim()[0] / 2, axes.get_ylim()[1] * 2)
        axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(path, dpi=120)
