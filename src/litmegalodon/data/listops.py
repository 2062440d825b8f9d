"""ListOps of the Long Range Arena (arXiv 2011.04006): nested lists of digits and what they come to.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]      5

The rules are those of the published generator, `lra_benchmarks/data/listops.py`: a place is a list
with probability 1/4, above the greatest depth, else a digit; a list has 2 to `max_args` arguments
and one of four operators, each as likely; what is kept is longer than `min_length` and shorter than
`max_length`, a list counting its operator and its end. There are no parentheses, which the arena
takes out before its models read.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import cached_property

from litmegalodon.data.documents import SPLITS, Document
from litmegalodon.data.on_demand import OnDemandSource
from litmegalodon.utils.ranges import whole

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
SYMBOLS = (*map(str, range(10)), *OPERATORS, END)
# Probability of a list.
LIST = 0.25


class ListOpsSource(OnDemandSource):
    """Sequences to be classified: the prompt is a list, the text its value, one digit.

    Sequence i of a split is a function of (seed, split, i), made when it is asked for. Two may be
    equal, where the generator of the arena leaves the second out: with the arena's lengths that
    does not happen. ValueError that names the setting.
    """

    def __init__(
        self,
        documents: int = 96000,
        val_documents: int = 2000,
        min_length: int = 500,
        max_length: int = 2000,
        max_depth: int = 10,
        max_args: int = 10,
        seed: int = 0,
    ) -> None:
        self.documents = whole("data.source.documents", documents, 1)
        self.val_documents = whole("data.source.val_documents", val_documents, 1)
        self.min_length = whole("data.source.min_length", min_length, 0)
        self.max_length = whole("data.source.max_length", max_length, 6)
        self.max_depth = whole("data.source.max_depth", max_depth, 2)
        self.max_args = whole("data.source.max_args", max_args, 2)
        self.seed = whole("data.source.seed", seed, 0)
        if max_length < min_length + 5:
            raise ValueError(
                f"data.source.max_length={max_length}: must be at least 5 above"
                f" data.source.min_length={min_length}; set {min_length + 5} or more"
            )
        # All lists full, down to the greatest depth.
        longest = 1
        for _ in range(max_depth - 1):
            longest = 2 + max_args * longest
        if longest <= min_length:
            raise ValueError(
                f"data.source.min_length={min_length}: data.source.max_depth={max_depth} and"
                f" data.source.max_args={max_args} give {longest} symbols at most; set less"
            )

    def document(self, split: str, index: int) -> Document:
        """Sequence `index` of a split, from 0."""
        symbols = self.symbols(split, index)
        return Document(f"{split}/{index}", b"%d" % value_of(symbols), " ".join(symbols).encode())

    def symbols(self, split: str, index: int) -> list[str]:
        """The same without its value."""
        label = f"listops {self.seed} {split} {index}"
        # The one number that Python promises to draw alike in all versions is random()'s.
        draw = random.Random(hashlib.sha256(label.encode()).digest()).random
        while True:
            found = self._tree(draw)
            if found is not None and len(found) > self.min_length:
                return found

    def _tree(self, draw: Callable[[], float]) -> list[str] | None:
        """A list or a digit; None where it becomes too long."""
        symbols: list[str] = []
        # Arguments that each open list still waits for.
        open_lists: list[int] = []
        # Symbols that are sure to come: an end of each list, an argument of each that waits.
        owed = 1
        while owed:
            if open_lists and not open_lists[-1]:
                open_lists.pop()
                symbols.append(END)
                owed -= 1
                continue
            if open_lists:
                open_lists[-1] -= 1
            owed -= 1
            if len(open_lists) < self.max_depth - 1 and draw() <= LIST:
                arguments = 2 + int(draw() * (self.max_args - 1))
                symbols.append(OPERATORS[int(draw() * len(OPERATORS))])
                open_lists.append(arguments)
                owed += arguments + 1
            else:
                symbols.append(SYMBOLS[int(draw() * 10)])
            if len(symbols) + owed >= self.max_length:
                return None
        return symbols

    @cached_property
    def fingerprint(self) -> str:
        """Of the settings, and of a sequence of each split: the way they are made may change."""
        splits = (self.documents, self.val_documents)
        lengths = (self.min_length, self.max_length)
        settings = (*splits, *lengths, self.max_depth, self.max_args, self.seed)
        digest = hashlib.sha256(repr(settings).encode())
        for split in SPLITS:
            digest.update(self.document(split, 0).prompt)
        return digest.hexdigest()[:16]

    @property
    def num_bytes(self) -> int:
        # Most symbols are a digit and a space.
        mean = (self.min_length + self.max_length) * 3 // 2
        return mean * (self.documents + self.val_documents)


def value_of(symbols: Sequence[str]) -> int:
    """What a list comes to; the median of an even number of values is rounded down."""
    # Operators of the open lists, and the values that each has so far.
    open_lists: list[tuple[str, list[int]]] = [("", [])]
    for symbol in symbols:
        if symbol in OPERATORS:
            open_lists.append((symbol, []))
            continue
        value = _applied(*open_lists.pop()) if symbol == END else int(symbol)
        open_lists[-1][1].append(value)
    return open_lists[0][1][0]


def _applied(operator: str, values: list[int]) -> int:
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    if operator == "[SM":
        return sum(values) % 10
    ordered, middle = sorted(values), len(values) // 2
    return (ordered[middle] + ordered[-1 - middle]) // 2
