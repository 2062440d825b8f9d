"""Texts made on demand: random ones to time training on, and tasks that need a memory.

    random    RANDOM                                             all is predicted
    copy      ORIGINAL newline [filler newline]                  | ORIGINAL
    recall    key value newline ... [filler newline] key         | value of that key
    passkey   filler The pass key is NUMBER. filler question     | NUMBER

What stands before the bar is the prompt, which is read and not predicted. The distance of a task is
the number of bytes from the first byte of what is to be recalled to the first byte of the answer.
All is ASCII, so that bytes are characters for any tokenizer.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from litmegalodon.data.documents import SPLITS, Document
from litmegalodon.data.on_demand import OnDemandSource
from litmegalodon.utils.ranges import whole

# 64 of the printable characters, so that a random text holds 6 bits a byte; 16 that make words.
SYMBOLS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
LETTERS = b"bcdfghjklmnprstv"

FILLER = (
    b"A boat went down the river past the mill. Rain fell on the roofs of the town. Somebody swept"
    b" the stairs before noon. The baker sold his last loaf and shut the door.\n"
)

KEY, VALUE = 6, 4
# A line of a key and its value.
PAIR = KEY + 1 + VALUE + 1

DIGITS = 5
FACT = b"The pass key is "
AFTER_FACT = b". Keep it in mind.\n"
QUESTION = b"\nWhat was the pass key? The pass key is "


@dataclass(frozen=True)
class Task:
    """A task at a length: the distances that fit, and how to make one.

    `make(draw, length, distance)` gives (prompt, answer), `length` bytes together; `draw(n)` gives
    n random bytes. Without a `nearest` and `farthest` the task has no distance.
    """

    make: Callable[["Draw", int, int], tuple[bytes, bytes]]
    nearest: Callable[[int], int] | None = None
    farthest: Callable[[int], int] | None = None
    least_length: int = 1


class Draw:
    """Random bytes that are a function of a label alone, on any machine and version of Python."""

    def __init__(self, label: str) -> None:
        self._label = label.encode()
        self._count = 0

    def __call__(self, number: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(b"%d %s" % (self._count, self._label)).digest(number)

    def below(self, bound: int) -> int:
        """A whole number from 0, below `bound`."""
        return int.from_bytes(self(16), "little") % bound

    def of(self, symbols: bytes, number: int) -> bytes:
        """`number` of the symbols, of which there are a power of two, each as likely."""
        table = (symbols * 256)[:256]
        return self(number).translate(table)


def question(
    task: str, length: int, distance: int | None = None, seed: int = 0, index: int = 0
) -> tuple[bytes, bytes]:
    """(prompt, answer) number `index` of a task, `length` bytes together, at a distance in bytes.

    Without a distance `copy` takes the longest text and the others draw one. ValueError as
    `SyntheticSource` raises it.
    """
    source = SyntheticSource(task, length, distance=distance, seed=seed)
    return source.example("question", index)


class SyntheticSource(OnDemandSource):
    """Documents of `length` bytes of a task: random, copy, recall or passkey.

    Document i of a split is a function of (seed, split, i), made when it is asked for.
    `distance` is that of all documents; null draws one for each, but for `copy`, whose distance and
    length give that of the copied text: there null is the longest. ValueError that names the
    setting, with the nearest distance where one does not fit.
    """

    def __init__(
        self,
        task: str,
        length: int,
        documents: int = 10000,
        val_documents: int = 100,
        distance: int | None = None,
        seed: int = 0,
    ) -> None:
        if task not in TASKS:
            names = list(TASKS)
            raise ValueError(
                f"data.source.task={task}: must be {', '.join(names[:-1])} or {names[-1]}"
            )
        self.task, self.distance = task, distance
        self.length = whole(
            "data.source.length", length, TASKS[task].least_length, f" for the task {task}"
        )
        self.documents = whole("data.source.documents", documents, 1)
        self.val_documents = whole("data.source.val_documents", val_documents, 1)
        self.seed = whole("data.source.seed", seed, 0)
        if distance is not None:
            self._check_distance(distance)

    def document(self, split: str, index: int) -> Document:
        """Document `index` of a split, from 0."""
        prompt, answer = self.example(split, index)
        return Document(f"{split}/{index}", answer, prompt)

    def example(self, split: str, index: int) -> tuple[bytes, bytes]:
        """(prompt, answer) number `index` of a split."""
        draw = Draw(f"{self.task} {self.seed} {split} {index}")
        task, distance = TASKS[self.task], self.distance
        if distance is None and task.nearest is not None and task.farthest is not None:
            low, high = task.nearest(self.length), task.farthest(self.length)
            distance = low if self.task == "copy" else low + draw.below(high - low + 1)
        return task.make(draw, self.length, distance or 0)

    @cached_property
    def fingerprint(self) -> str:
        """Of the settings, and of a document of each split: the way they are made may change."""
        settings = (self.task, self.length, self.documents, self.val_documents)
        digest = hashlib.sha256(repr((*settings, self.distance, self.seed)).encode())
        for split in SPLITS:
            digest.update(b"".join(self.example(split, 0)))
        return digest.hexdigest()[:16]

    @property
    def num_bytes(self) -> int:
        return self.length * (self.documents + self.val_documents)

    def _check_distance(self, distance: int) -> None:
        task = TASKS[self.task]
        if task.nearest is None or task.farthest is None:
            raise ValueError(
                f"data.source.distance={distance}: the task {self.task} has none; set null"
            )
        low, high = task.nearest(self.length), task.farthest(self.length)
        whole("data.source.distance", distance, 1)
        if not low <= distance <= high:
            raise ValueError(
                f"data.source.distance={distance}: does not fit documents of"
                f" data.source.length={self.length}; the nearest that does is"
                f" {min(max(distance, low), high)}"
            )


def _random(draw: Draw, length: int, distance: int) -> tuple[bytes, bytes]:
    return b"", draw.of(SYMBOLS, length)


def _copy(draw: Draw, length: int, distance: int) -> tuple[bytes, bytes]:
    original = draw.of(SYMBOLS, length - distance)
    gap = distance - len(original) - 1
    return original + b"\n" + _line(gap), original


def _recall(draw: Draw, length: int, distance: int) -> tuple[bytes, bytes]:
    # The asked pair is followed by whole pairs, filler, and its key once more.
    after, rest = divmod(distance - VALUE - 1 - KEY - 1, PAIR)
    before, start = divmod(length - VALUE - distance - KEY - 1, PAIR)
    keys = _distinct(draw, before + 1 + after)
    values = draw.of(LETTERS, VALUE * len(keys))
    pairs = [b"%s %s\n" % (key, values[VALUE * i : VALUE * (i + 1)]) for i, key in enumerate(keys)]
    asked = values[VALUE * before : VALUE * (before + 1)]
    prompt = _line(start) + b"".join(pairs) + _line(rest) + keys[before] + b" "
    return prompt, asked


def _passkey(draw: Draw, length: int, distance: int) -> tuple[bytes, bytes]:
    number = b"%d" % (10 ** (DIGITS - 1) + draw.below(9 * 10 ** (DIGITS - 1)))
    gap = distance - DIGITS - len(AFTER_FACT) - len(QUESTION)
    start = length - DIGITS - distance - len(FACT)
    before, between = _line(start), _filler(gap, draw.below(len(FILLER)))
    return before + FACT + number + AFTER_FACT + between + QUESTION, number


def _distinct(draw: Draw, number: int) -> list[bytes]:
    """`number` different keys in random order."""
    keys: dict[bytes, None] = {}
    while len(keys) < number:
        letters = draw.of(LETTERS, KEY * (number - len(keys)))
        keys |= dict.fromkeys(letters[i : i + KEY] for i in range(0, len(letters), KEY))
    return list(keys)


def _line(number: int) -> bytes:
    """`number` bytes of filler that end a line, if any."""
    return _filler(number - 1) + b"\n" if number > 0 else b""


def _filler(number: int, start: int = 0) -> bytes:
    text = FILLER[start:] + FILLER * (number // len(FILLER) + 1)
    return text[:number]


_RECALL_NEAREST = VALUE + 1 + KEY + 1
_PASSKEY_NEAREST = DIGITS + len(AFTER_FACT) + len(QUESTION)

TASKS = {
    "random": Task(_random),
    # As many bytes of the original as fit: the original, a newline and the copy.
    "copy": Task(
        _copy,
        nearest=lambda length: length // 2 + 1,
        farthest=lambda length: length - 1,
        least_length=3,
    ),
    "recall": Task(
        _recall,
        nearest=lambda length: _RECALL_NEAREST,
        farthest=lambda length: length - VALUE - KEY - 1,
        least_length=_RECALL_NEAREST + VALUE + KEY + 1,
    ),
    "passkey": Task(
        _passkey,
        nearest=lambda length: _PASSKEY_NEAREST,
        farthest=lambda length: length - DIGITS - len(FACT),
        least_length=_PASSKEY_NEAREST + DIGITS + len(FACT),
    ),
}
