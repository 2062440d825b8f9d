"""The sum of a function over a launch's programs, from a few of them.

How much a program moves and computes depends on its index in few ways: not at all, linearly (keys
before a query), linearly but from chunk to chunk anew, in steps (tiles of unequal size), or the
first or last program differs. A box of programs on which the counts are multilinear in the index
sums to its volume times the mean of its corners. So boxes are divided until they are.

Whether a box is multilinear or periodic is tried at a few programs inside it, drawn from a fixed
seed: that is evidence, not proof. A test compares with the sum over all programs for every way
named above.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

Index = tuple[int, int, int]
Counts = Counter[str]
# (first, step, number) along each axis
Box = tuple[tuple[int, int, int], ...]


class Sum:
    """Sums of `count` over boxes of programs; `evaluated` programs were looked at."""

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
        boxes = [(1, tuple((0, 1, n) for n in grid))]
        while boxes:
            times, box = boxes.pop()
            if all(self._agrees(box, place) for place in self._places(box)):
                for name, value in self._multilinear_sum(box).items():
                    total[name] += times * value
            else:
                boxes.extend((times * more, part) for more, part in self._divided(box))
        return total

    def at(self, index: Index) -> Counts:
        if index not in self.known:
            self.known[index] = self.count(index)
        return self.known[index]

    def _places(self, box: Box) -> Iterator[Index]:
        """Places in a box at which to try it: on lines along each long axis, and anywhere."""
        long = [axis for axis, (_, _, n) in enumerate(box) if n > 2]
        for axis in long:
            n = box[axis][2]
            inside = self.random.randrange(1, n - 1)
            for p, end in ((1, 1), (n - 2, 1), (1, 0), (inside, self.random.randrange(2))):
                place = [end * (m - 1) for _, _, m in box]
                place[axis] = p
                yield tuple(place)
        for _ in range(3 if long else 0):
            yield tuple(self.random.randrange(n) for _, _, n in box)

    def _agrees(self, box: Box, place: Index) -> bool:
        """Whether the counts at a place are those that the corners around it give."""
        expected: dict[str, Fraction] = {}
        for corner in itertools.product((0, 1), repeat=3):
            weight = Fraction(1)
            for end, p, (_, _, n) in zip(corner, place, box, strict=True):
                part = Fraction(p, n - 1) if n > 1 else Fraction(0)
                weight *= part if end else 1 - part
            if weight:
                for name, value in self.at(self._index(box, corner)).items():
                    expected[name] = expected.get(name, Fraction(0)) + weight * value
        actual = self._at_place(box, place)
        return all(actual[name] == expected.get(name, 0) for name in actual.keys() | expected)

    def _at_place(self, box: Box, place: Sequence[int]) -> Counts:
        return self.at(tuple(f + p * step for p, (f, step, _) in zip(place, box, strict=True)))

    def _multilinear_sum(self, box: Box) -> Counts:
        volume = 1
        for _, _, n in box:
            volume *= n
        corners = list(itertools.product((0, 1), repeat=3))
        total: Counter[str] = Counter()
        for corner in corners:
            total.update(self.at(self._index(box, corner)))
        for name, value in total.items():
            total[name], rest = divmod(value * volume, len(corners))
            assert rest == 0, f"{name} is not multilinear over {box}"
        return total

    def _divided(self, box: Box) -> list[tuple[int, Box]]:
        """A box in parts, each with how often it counts.

        It is divided along an axis on which it fails, or else the longest.
        """
        failing = [axis for axis in range(3) if not self._line_agrees(box, axis)]
        for axis in failing:
            first, step, n = box[axis]
            for cut in (1, n - 1):
                parts = self._along(
                    box, axis, (first, step, cut), (first + cut * step, step, n - cut)
                )
                if n > 4 and all(self._line_agrees(part, axis) for _, part in parts):
                    return parts
        axis = failing[0] if failing else max(range(3), key=lambda a: box[a][2])
        first, step, n = box[axis]
        for period in (1 << k for k in range(3, n.bit_length() - 1)):
            if n % period == 0 and self._is_periodic(box, axis, period):
                [(_, part)] = self._along(box, axis, (first, step, period))
                return [(n // period, part)]
        # Steps of a few programs each show as a line in every second, fourth or eighth program.
        for stride in (2, 4, 8):
            if n < 4 * stride:
                break
            lines = [
                (first + i * step, stride * step, (n - i + stride - 1) // stride)
                for i in range(stride)
            ]
            parts = self._along(box, axis, *lines)
            if all(self._line_agrees(part, axis) for _, part in parts):
                return parts
        # Chunks hold a power of two programs.
        cut = 1 << (n - 1).bit_length() - 1
        return self._along(box, axis, (first, step, cut), (first + cut * step, step, n - cut))

    @staticmethod
    def _along(box: Box, axis: int, *lines: tuple[int, int, int]) -> list[tuple[int, Box]]:
        return [(1, (*box[:axis], line, *box[axis + 1 :])) for line in lines]

    def _is_periodic(self, box: Box, axis: int, period: int) -> bool:
        n = box[axis][2]
        # The last program of a period and the first of the next one, then any.
        starts = [period - 1, 0, *(self.random.randrange(period) for _ in range(4))]
        for start in starts:
            place = [self.random.randrange(m) for _, _, m in box]
            found = []
            for times in (0, 1, self.random.randrange(1, n // period)):
                place[axis] = start + times * period
                found.append(self._at_place(box, place))
            if found[0] != found[1] or found[0] != found[2]:
                return False
        return True

    def _line_agrees(self, box: Box, axis: int) -> bool:
        n = box[axis][2]
        if n <= 2:
            return True
        tried = {1, n - 2, self.random.randrange(1, n - 1), self.random.randrange(1, n - 1)}
        places = [[0, 0, 0] for _ in tried]
        for place, p in zip(places, sorted(tried), strict=True):
            place[axis] = p
        return all(self._agrees(box, tuple(place)) for place in places)

    @staticmethod
    def _index(box: Box, corner: tuple[int, ...]) -> Index:
        return tuple(
            first + step * (n - 1) * end for end, (first, step, n) in zip(corner, box, strict=True)
        )
