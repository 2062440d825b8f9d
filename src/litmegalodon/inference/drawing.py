"""How text is drawn: settings that are checked before torch is imported, which takes seconds."""

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Any

# A longer list, or a longer string in it, is a file that was given by mistake.
MOST_STOPS, LONGEST_STOP = 64, 1000


@dataclass(frozen=True)
class Drawing:
    """How the next token is drawn from softmax(logits / temperature).

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_k: keep the k likeliest tokens; None keeps all.
        top_p: of these, keep the fewest whose probabilities sum to at least p.
        min_p: of these, keep those at least min_p times as likely as the likeliest.
        repetition_penalty: before all that, positive logits of tokens drawn not long ago are
            divided by it and negative ones multiplied (CTRL, arXiv 1909.05858); 1 changes nothing.
        prefix: put before a setting's name in messages.

    Raises:
        ValueError: a setting is out of range.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    prefix: InitVar[str] = ""

    def __post_init__(self, prefix: str) -> None:
        for name, is_good, rule in (
            (
                "temperature",
                _is_number(self.temperature) and self.temperature >= 0,
                "must be 0 (always the likeliest token) or more",
            ),
            (
                "top_k",
                self.top_k is None or (_is_whole(self.top_k) and self.top_k >= 1),
                "must be a whole number, at least 1, or null for all tokens",
            ),
            (
                "top_p",
                self.top_p is None or (_is_number(self.top_p) and 0 < self.top_p <= 1),
                "must be above 0 and at most 1, or null for all tokens",
            ),
            (
                "min_p",
                self.min_p is None or (_is_number(self.min_p) and 0 <= self.min_p <= 1),
                "must be at least 0 and at most 1, or null for all tokens",
            ),
            (
                "repetition_penalty",
                _is_number(self.repetition_penalty) and self.repetition_penalty > 0,
                "must be above 0, and 1 to change nothing",
            ),
        ):
            if not is_good:
                raise ValueError(f"{prefix}{name}={getattr(self, name)}: {rule}")


def check_stops(stops: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings, one or many, as a tuple.

    Raises:
        ValueError: one is no text, empty or too long, or there are too many.
    """
    stops = (stops,) if isinstance(stops, str) else tuple(stops)
    if len(stops) > MOST_STOPS:
        raise ValueError(f"stop: has {len(stops):,} strings; give at most {MOST_STOPS}")
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise ValueError(f"stop={stop}: must be a text of at least one character")
        if len(stop) > LONGEST_STOP:
            raise ValueError(
                f"stop={stop[:20]}...: has {len(stop):,} characters; give at most {LONGEST_STOP:,}"
            )
    return stops


def _is_number(value: Any) -> bool:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return good and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
