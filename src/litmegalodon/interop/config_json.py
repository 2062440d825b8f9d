"""The network's config from a config.json, other people's or an export's."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from litmegalodon.models import MegalodonConfig

# No tensor's shape tells them: a default in their place would be another function, silently.
_UNTOLD = {"chunk_size", "norm_num_groups", "norm_eps"}


def config_from(found: Mapping[str, Any], place: str) -> MegalodonConfig:
    """The config of these fields; what is no field of ours is left out.

    Args:
        place: where they were found, for messages.

    Raises:
        ValueError: a field is missing or out of range.
    """
    own = fields(MegalodonConfig)
    needed = {field.name for field in own if field.default is MISSING} | _UNTOLD
    if lacking := sorted(needed - found.keys()):
        raise ValueError(f"{place} lacks {', '.join(lacking)}, which the model cannot do without")
    try:
        return MegalodonConfig(**{f.name: found[f.name] for f in own if f.name in found})
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
