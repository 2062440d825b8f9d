"""What the configurations of all models share; imports nothing heavy, to refuse a setting before
torch is loaded.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from litmegalodon.models.language_model import LanguageModel


class ModelConfig:
    """Base of frozen dataclasses that say how a model is made.

    Attributes:
        kind: name of the architecture.
        vocab_size: number of token ids.
        chunk_size: tokens on whose grid a row can be cut between calls and processes; None where
            every token attends to all of its row.
        share_emb: use the embedding matrix as output matrix.
        output_size: width of the logits; -1 is vocab_size.
    """

    kind: ClassVar[str]
    vocab_size: int
    chunk_size: int | None
    share_emb: bool
    output_size: int

    def build(self, impl: str = "auto") -> LanguageModel:
        """The network; see `LanguageModel`.

        Raises:
            ValueError: an implementation that it does not have, or a package that is missing.
        """
        raise NotImplementedError

    def check_impl(self, impl: str) -> None:
        """ValueError where the model has no such implementation."""

    @property
    def num_outputs(self) -> int:
        """Width of the logits."""
        return self.vocab_size if self.output_size == -1 else self.output_size

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, enough for `litmegalodon.models.config_of`."""
        return asdict(self)

    def _refuse(self, name: str, why: str) -> None:
        raise ValueError(f"model.config.{name}={getattr(self, name)}: {why}")

    def _check_types(self) -> None:
        for field in fields(self):
            self._check_type(field.name, field.type)

    def _check_type(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        if kind is bool:
            good, noun = isinstance(value, bool), "true or false"
        elif kind in (int, int | None):
            optional = kind is not int and value is None
            good = optional or (isinstance(value, int) and not isinstance(value, bool))
            noun = "a whole number" if kind is int else "a whole number or null"
        elif kind is str:
            good, noun = isinstance(value, str), "a word"
        else:
            optional = kind is not float and value is None
            number = isinstance(value, int | float) and not isinstance(value, bool)
            good, noun = optional or number, "a number"
        if not good:
            self._refuse(name, f"must be {noun}")

    def _check_at_least_one(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                self._refuse(name, "must be at least 1")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            self._refuse(name, f"must be one of {', '.join(choices)}")

    def _check_divides(self, name: str, divisor: str) -> None:
        value, parts = getattr(self, name), getattr(self, divisor)
        if value % parts:
            nearest = max(1, round(value / parts)) * parts
            self._refuse(name, f"must be a multiple of {divisor}={parts}; the nearest is {nearest}")

    def _check_outputs(self) -> None:
        if self.output_size != -1 and self.output_size < 1:
            self._refuse("output_size", "must be at least 1, or -1 for vocab_size")
        if self.share_emb and self.output_size not in (-1, self.vocab_size):
            self._refuse(
                "output_size", "must be -1 with share_emb=true, which ties it to vocab_size"
            )

    def _check_common(self) -> None:
        """Ranges of what all models have."""
        eps, base = self.norm_eps, self.rope_base
        if not 0.0 < eps < 1.0:
            self._refuse("norm_eps", "must be between 0 and 1, for example 1e-5")
        if base is not None and not 1.0 < base < float("inf"):
            self._refuse("rope_base", "must be above 1, for example 10000, or null")
        if not 0.0 <= self.attention_dropout < 1.0:
            self._refuse("attention_dropout", "must be at least 0 and below 1")
