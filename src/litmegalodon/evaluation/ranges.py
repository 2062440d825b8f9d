"""Settings of an evaluation that have to be whole numbers."""

from typing import Any


def check_whole(least: int, **settings: Any) -> None:
    """ValueError for settings of the group evaluation that are no whole numbers from `least` on."""
    for name, value in settings.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(
                    f"evaluation.{name}={'null' if number is None else number}: must be a whole"
                    f" number, at least {least}"
                )
