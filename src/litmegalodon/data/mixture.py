"""Several sources in one, each with its share of the tokens."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

from litmegalodon.data.documents import Shard, Source, sum_if_known

# Samples after which the shares of a mixture are met exactly.
ROUND = 1024


class MixtureSource:
    """Sources by name, and for each its weight: its share of the tokens that are trained on.

    Held out are the held-out documents of all of them, whatever the weights. A source that is used
    up begins its next epoch, whatever the others do.
    ValueError where names do not match or a weight is not above 0.
    """

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float]) -> None:
        if not sources:
            raise ValueError("data.source.sources: is empty; name at least one source")
        if set(sources) != set(weights):
            raise ValueError(
                f"data.source.weights={dict(weights)}: needs one number for each of"
                f" {', '.join(sources)}"
            )
        for name, weight in weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (number and 0 < weight < math.inf):
                raise ValueError(
                    f"data.source.weights.{name}={weight}: must be a number above 0; leave the"
                    " source out instead"
                )
        for name, weight in weights.items():
            if weight / sum(weights.values()) * ROUND < 1:
                raise ValueError(
                    f"data.source.weights.{name}={weight}: must be at least 1/{ROUND} of their sum"
                )
        self.sources = dict(sources)
        self.weights = {name: float(weights[name]) for name in sources}

    @property
    def fingerprint(self) -> str:
        parts = [(n, s.fingerprint, self.weights[n]) for n, s in self.sources.items()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def file_digests(self) -> dict[str, str]:
        """Of the sources that are made of files, each name behind its source's."""
        return {
            f"{name}: {file}": digest
            for name, source in self.sources.items()
            for file, digest in getattr(source, "file_digests", {}).items()
        }

    @property
    def left_out(self) -> dict[str, int]:
        counts = [source.left_out for source in self.sources.values()]
        return {name: sum(count[name] for count in counts) for name in ("files", "bytes")}

    @property
    def num_bytes(self) -> int | None:
        return sum_if_known(source.num_bytes for source in self.sources.values())

    def shards(self, split: str) -> list[Shard]:
        return [shard for source in self.sources.values() for shard in source.shards(split)]


def parts_of(source: Source) -> list[tuple[Source, float]]:
    """The sources that a source mixes, each with its weight: itself alone if it mixes none."""
    if not isinstance(source, MixtureSource):
        return [(source, 1.0)]
    return [
        (part, weight * source.weights[name])
        for name, inner in source.sources.items()
        for part, weight in _shares(inner)
    ]


def _shares(source: Source) -> list[tuple[Source, float]]:
    parts = parts_of(source)
    total = sum(weight for _, weight in parts)
    return [(part, weight / total) for part, weight in parts]


def part_at(index: int, weights: tuple[float, ...]) -> tuple[int, int]:
    """Which part sample `index` is of, and how many samples of that part come before it.

    Every ROUND samples hold each part's share, spread evenly.
    """
    if len(weights) == 1:
        return 0, index
    parts, before, quotas = _round(weights)
    rounds, place = divmod(index, ROUND)
    part = parts[place]
    return part, rounds * quotas[part] + before[place]


@lru_cache(maxsize=16)
def _round(weights: tuple[float, ...]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """The part of each of ROUND samples, how many of the part come before, and each part's number
    of samples: its share, rounded by the largest remainders.
    """
    shares = [ROUND * weight / sum(weights) for weight in weights]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda p: quotas[p] - shares[p])
    for part in by_remainder[: ROUND - sum(quotas)]:
        quotas[part] += 1
    # Sample k of a part with quota q stands at (k + 1/2) / q of the round.
    order = sorted(((k + 0.5) / q, p, k) for p, q in enumerate(quotas) for k in range(q))
    return [p for _, p, _ in order], [k for _, _, k in order], quotas
