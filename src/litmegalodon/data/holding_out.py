"""Which documents are held out, by their names alone, where a source has no split of its own."""

from dataclasses import dataclass

from litmegalodon.data.documents import is_held_out

# Part of the documents that is held out by default.
FRACTION = 0.01


@dataclass(frozen=True)
class HoldOut:
    """Whether a document of a name is in a split; fraction None: whether it is anything."""

    split: str
    fraction: float | None

    def __call__(self, name: str) -> bool:
        if self.fraction is None:
            return True
        return is_held_out(name, self.fraction) == (self.split == "val")


def fraction_of(fraction: float | None, name: str, held_out: object) -> float | None:
    """`validation_fraction`, FRACTION where it is left out, None where the setting `name` says what
    is held out.

    Raises:
        ValueError: both are given, or the fraction leaves nothing to train on or nothing held out.
    """
    if held_out is not None:
        if fraction is not None:
            raise ValueError(
                f"data.source.validation_fraction={fraction}: has no effect with"
                f" data.source.{name}, which says what is held out; leave one of them out"
            )
        return None
    if fraction is None:
        return FRACTION
    check_fraction(fraction)
    return fraction


def check_fraction(fraction: float) -> None:
    """ValueError if validation_fraction leaves nothing to train on or nothing held out."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ValueError(
            f"data.source.validation_fraction={fraction}: must be a number above 0 and below 1"
        )
