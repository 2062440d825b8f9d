"""The sum of a function over a launch's programs, from a part of them.

How much a program moves and computes depends on its index in few ways, axis by axis:

- not at all, but perhaps for a few programs at either end (an edge, a slice that does more);
- in periods (chunk after chunk), the period a power of two, perhaps with a rest;
- any other way: all programs of the axis are then looked at. Where two axes are left (tiles of
  queries and keys under a diagonal), the sums over one of them are taken at six places of the
  other, on which they must be linear, or linear in every second or fourth place (tiles of unequal
  size); else all pairs are looked at.

That an axis is of the first two kinds is tried at programs in the corners, inside and at random
(from a fixed seed). That is evidence and no proof: a test compares with the sum over all programs.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

Index = tuple[int, int, int]
Counts = Counter[str]
# Indices along an axis and how often each of them counts.
Part = tuple[range, int]


class Sum:
    """Sums of `count` over grids of programs; `evaluated` programs were looked at."""

    def __init__(self, count: Callable[[Index], Counts]) -> None:
        self.count = count
        self.known: dict[Index, Counts] = {}
        self.random = random.Random(0)

    @property
    def evaluated(self) -> int:
        return len(self.known)

    def over(self, grid: Index) -> Counts:
        """The sum over all programs of a grid."""
        total: Counter[str] = Counter()
        for parts in itertools.product(*(self._parts(grid, axis) for axis in range(3))):
            times = 1
            for _, weight in parts:
                times *= weight
            for name, value in self._box([indices for indices, _ in parts]).items():
                total[name] += times * value
        return total

    def at(self, index: Sequence[int]) -> Counts:
        index = tuple(index)
        if index not in self.known:
            self.known[index] = self.count(index)
        return self.known[index]

    def _places(self, grid: Index, axis: int) -> Iterator[list[int]]:
        """Places to try an axis at: the other axes at their ends, inside and anywhere."""
        for part in (0.0, 1.0, 0.38, 0.62):
            yield [round(part * (n - 1)) for n in grid]
        if sum(n > 1 for a, n in enumerate(grid) if a != axis) > 1:
            yield [self.random.randrange(n) for n in grid]

    def _any(self, grid: Index, indices: range) -> list[int]:
        """Some indices at random; more where an axis is alone, since its places are all one."""
        alone = sum(n > 1 for n in grid) == 1
        return [self.random.choice(indices) for _ in range(8 if alone else 2)]

    def _line(self, place: list[int], axis: int, indices: Sequence[int]) -> list[Counts]:
        return [self.at((*place[:axis], i, *place[axis + 1 :])) for i in indices]

    def _parts(self, grid: Index, axis: int) -> list[Part]:
        n = grid[axis]
        if n < 4:
            same = all(
                len(set(map(_frozen, self._line(place, axis, range(n))))) == 1
                for place in self._places(grid, axis)
            )
            return [(range(1), n)] if same else [(range(n), 1)]
        first = last = inside = True
        for place in self._places(grid, axis):
            tried = [1, n - 2, *self._any(grid, range(1, n - 1))]
            middle, *others = self._line(place, axis, tried)
            inside = inside and all(other == middle for other in others)
            if not inside:
                break
            ends = self._line(place, axis, (0, n - 1))
            first, last = first and ends[0] == middle, last and ends[1] == middle
        if inside:
            parts = [(range(1, 2), n - 2 + first + last)]
            parts += [] if first else [(range(1), 1)]
            return parts + ([] if last else [(range(n - 1, n), 1)])
        for ends in (1 << k for k in range(1, n.bit_length() - 2)):
            if self._is_uniform(grid, axis, range(ends, n - ends)):
                middle = (range(ends, ends + 1), n - 2 * ends)
                return [(range(ends), 1), middle, (range(n - ends, n), 1)]
        for period in (1 << k for k in range(3, n.bit_length() - 1)):
            if self._is_periodic(grid, axis, period):
                whole = n // period
                return [(range(period), whole), (range(whole * period, n), 1)]
        return [(range(n), 1)]

    def _is_uniform(self, grid: Index, axis: int, indices: range) -> bool:
        # A diagonal crosses half an axis within a quarter of the other: no wider gaps than that.
        for part in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
            place = [round(part * (n - 1)) for n in grid]
            tried = [indices[0], indices[-1], *self._any(grid, indices)]
            first, *others = self._line(place, axis, tried)
            if any(other != first for other in others):
                return False
        return True

    def _is_periodic(self, grid: Index, axis: int, period: int) -> bool:
        times = grid[axis] // period
        for place in self._places(grid, axis):
            for start in (0, 1, period - 1, *self._any(grid, range(period))):
                indices = [start + k * period for k in (0, 1, times - 1)]
                first, *others = self._line(place, axis, indices)
                if any(other != first for other in others):
                    return False
        return True

    def _box(self, axes: list[range]) -> Counts:
        """The sum over a product of indices, in which no axis may be left out."""
        long = sorted((a for a in range(3) if len(axes[a]) > 16), key=lambda a: len(axes[a]))
        if len(long) == 2:
            longest = long[1]
            for stride in (1, 2, 4):
                lines = [axes[longest][i::stride] for i in range(stride)]
                sums = [self._linear(axes, longest, line) for line in lines]
                if None not in sums:
                    return _total(sums)
        return _total(self.at(index) for index in itertools.product(*axes))

    def _linear(self, axes: list[range], axis: int, line: range) -> Counts | None:
        """The sum over a line of an axis, if the sums over the other axes are linear on it."""

        def over_others(i: int) -> Counts:
            return _total(
                self.at(index)
                for index in itertools.product(*axes[:axis], (line[i],), *axes[axis + 1 :])
            )

        n = len(line)
        first, last = over_others(0), over_others(n - 1)
        for i in (1, n - 2, self.random.randrange(2, n - 2), self.random.randrange(2, n - 2)):
            actual = over_others(i)
            for name in first | last | actual:
                if actual[name] * (n - 1) != first[name] * (n - 1 - i) + last[name] * i:
                    return None
        return Counter({name: (first[name] + last[name]) * n // 2 for name in first | last})


def _frozen(counts: Counts) -> frozenset:
    return frozenset(counts.items())


def _total(many) -> Counts:
    total: Counter[str] = Counter()
    for counts in many:
        total.update(counts)
    return total
