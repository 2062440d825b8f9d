"""Of which kind the value of a setting is."""

import math
import re
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf


def is_text(may_be_null: bool) -> Callable[[Any], bool]:
    """Whether a value is text, or null where it may be."""
    return lambda value: isinstance(value, str) or (may_be_null and value is None)


def is_whole(least: int) -> Callable[[Any], bool]:
    """Whether a value is a whole number, at least so high."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(low: float, high: float, closed: bool) -> Callable[[Any], bool]:
    """Whether a value is a number between two, the lower one included where `closed`."""

    def is_good(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (low <= value if closed else low < value) and value <= high and value < math.inf

    return is_good


def is_amount(value: Any) -> bool:
    """A whole number from 1, or a float in (0, 1]."""
    return is_whole(1)(value) or (isinstance(value, float) and 0 < value <= 1)


def is_flag_or(word: str, value: Any) -> bool:
    """Whether a value is true, false or a word."""
    return isinstance(value, bool) or value == word


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return OmegaConf.is_list(value) and all(isinstance(item, str) for item in value)


def is_time(value: Any) -> bool:
    """Whether a value is a time as days:hours:minutes:seconds."""
    return isinstance(value, str) and re.fullmatch(r"\d+(:\d\d){3}", value) is not None


def are_betas(value: Any) -> bool:
    """Whether a value is Adam's two."""
    in_range = is_number(0, 1, closed=True)
    return (
        OmegaConf.is_list(value) and len(value) == 2 and all(in_range(b) and b < 1 for b in value)
    )
