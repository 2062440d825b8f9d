"""Reading and writing at any length, beside a Llama of transformers with its keys and values kept.

A text of a million random tokens is read once, in pieces as `inference.Reader` does, and the states
on the way are kept: writing is timed from there, always over a whole chunk, since a step takes a
little longer the fuller the chunk is. The Llama reads in one call; what it has read before it
writes is filled in with random numbers, which take it as long as real ones.
"""

import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from litmegalodon.inference.text_state import advance
from litmegalodon.models import Megalodon, MegalodonState
from measure import RESULTS, Figure, paired, seconds_of
from memory import status
from subjects import CONFIG, Llama, count, megalodon

MILLION, PIECE, CHUNK = 1_000_000, 4096, CONFIG.chunk_size
# Where writing is timed, and how many tokens the Llama writes at a time.
NEAR, WRITTEN = 1000, 16
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "inference.png"
MIB = 2**20


@torch.no_grad()
def inference(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """Reading and writing: speed at every length, memory, times a Llama's speed."""
    million, long, longest = (lengths[key] for key in ("million", "long", "longest"))
    ours = megalodon().eval().requires_grad_(False)
    theirs = Llama(CONFIG, count(ours)).eval().requires_grad_(False)
    tokens = torch.randint(CONFIG.vocab_size, (1, million), generator=_seeded())
    near, far = (max(0, n - CHUNK // 2) for n in (min(NEAR, million // 4), million))
    stops = sorted({near, lengths["short"], long, longest, far} - {0})
    states, seconds, memory = read(ours, tokens, stops)
    curves: dict[str, dict[str, dict[int, float]]] = {"read": {}, "written": {}}
    curves["read"]["Megalodon"] = {n: n / spent for n, spent in seconds.items()}

    ends = list(seconds)
    spent = [(seconds[b] - seconds[a]) / (b - a) for a, b in pairwise(ends) if b - a == PIECE]
    quarter = max(1, len(spent) // 4)
    first, last = (statistics.median(u) for u in (spent[:quarter], spent[-quarter:]))
    name = f"reading a token, last quarter of {million:,} against the first"
    yield Figure(name, last / first, must=1.1, seconds={"subject": last, "other": first})
    yield Figure("process's memory, last quarter against the second", memory, must=1.01)

    steps = min(CHUNK, million // 1000)
    sizes = {n: largest_state(ours, states[n], steps) for n in (near, far)}
    yield Figure("a text's state", sizes[far] / MIB, "MiB")
    yield Figure(f"state around {million:,} against {NEAR:,}", sizes[far] / sizes[near], must=1.01)
    there, here = (writing(ours, states[n], steps) for n in (far, near))
    name = f"writing a token around {million:,} against {NEAR:,}"
    figure = paired(name, there, here, pairs, must=1.05)
    yield figure
    written = curves["written"]["Megalodon"] = {
        near: figure.seconds["other"] / steps,
        million: figure.seconds["subject"] / steps,
    }

    beside = curves["read"]["Llama"] = {}
    for n, must in ((lengths["short"], None), (long, None), (long * 2, 5)):
        # Half a minute a time at 32,768 tokens.
        figure = paired(
            f"reading {n:,} tokens, times faster than the Llama",
            lambda n=n: read(ours, tokens[:, :n], []),
            lambda n=n: theirs.model(input_ids=tokens[:, :n], use_cache=True),
            pairs if n < long else min(pairs, 2),
            must=must,
            higher_is_better=True,
        )
        beside[n] = n / figure.seconds["other"]
        yield figure

    beside = curves["written"]["Llama"] = {}
    for n, must in ((near, None), (lengths["short"], 1), (long, None), (longest, 3)):
        cache, write = fastest_writing(theirs, n, pairs)
        figure = paired(
            f"writing after {n:,} tokens, times faster than the Llama, {cache} cache",
            writing(ours, states[n], steps),
            write,
            pairs,
            per=(steps, WRITTEN),
            must=must,
            higher_is_better=True,
        )
        beside[n] = figure.seconds["other"] / WRITTEN
        written[n] = figure.seconds["subject"] / steps
        yield figure
    kept = 2 * CONFIG.num_layers * CONFIG.model_dim * 4 * longest
    yield Figure(f"the Llama's keys and values of {longest:,} tokens", kept / MIB, "MiB")
    draw(curves, PICTURE if million == MILLION else RESULTS / "cpu-part.png")


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def read(
    model: Megalodon, tokens: Tensor, stops: list[int]
) -> tuple[dict[int, MegalodonState], dict[int, float], float]:
    """Read tokens [1, L] in pieces.

    Returns:
        the states after `stops` tokens, seconds spent until the end of each piece, and the median
        of the process' memory in the last quarter of the pieces over that in the second, when all
        but the last of the states are kept.
    """
    total = tokens.shape[1]
    edges = sorted({0, *range(PIECE, total, PIECE), total, *(n for n in stops if n < total)})
    states, spent, resident = {}, {}, []
    state, seconds = None, 0.0

    def one(a: int, b: int) -> None:
        nonlocal state
        _, state = advance(model, tokens[:, a:b], state)

    for a, b in pairwise(edges):
        seconds += seconds_of(lambda a=a, b=b: one(a, b))
        spent[b] = seconds
        resident.append(status("VmRSS"))
        if b in stops:
            states[b] = state
    quarter = max(1, len(resident) // 4)
    second = resident[quarter : 2 * quarter] or resident
    grown = statistics.median(resident[-quarter:]) / statistics.median(second)
    return states, spent, grown


def writing(model: Megalodon, state: MegalodonState, steps: int) -> Callable[[], None]:
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


def draw(curves: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
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
        axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(path, dpi=120)
