"""Settings that have to be whole numbers."""

from typing import Any


def whole(setting: str, value: Any, least: int, purpose: str = "") -> int:
    """A whole number from `least` on; ValueError that names the setting where it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        shown = "null" if value is None else value
        raise ValueError(f"{setting}={shown}: must be a whole number, at least {least}{purpose}")
    return value
