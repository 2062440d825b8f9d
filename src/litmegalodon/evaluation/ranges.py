"""Settings of an evaluation that have to be whole numbers."""

from typing import Any

from litmegalodon.utils.ranges import whole


def check_whole(least: int, **settings: Any) -> None:
    """ValueError for settings of the group evaluation that are no whole numbers from `least` on."""
    for name, value in settings.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            whole(f"evaluation.{name}", number, least)
