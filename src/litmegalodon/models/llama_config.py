"""The shape of the baseline, a Llama; imports nothing heavy."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from litmegalodon.models.model_config import ModelConfig

if TYPE_CHECKING:
    from litmegalodon.models.llama import Llama


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Sizes of a Llama; names as in MegalodonConfig, so that one setting means one thing.

    Attributes:
        vocab_size: number of token ids.
        num_layers: number of blocks.
        model_dim: D, width of the residual stream.
        num_heads: H, attention heads, of D / H features.
        ffn_hidden_dim: hidden width of the gated feed-forward network.
        num_kv_heads: heads of keys and values, which groups of query heads share; None: H.
        norm_eps: added to every mean square before its root.
        rope_base: base of rotary frequencies; None is 10,000.
        share_emb: use the embedding matrix as output matrix.
        attention_dropout: of attention's weights.
        init_std: of the normal distribution that every matrix is drawn from.
        output_size: number of outputs; -1 is vocab_size.

    Raises:
        ValueError: a field's value, with its name and the fix.
    """

    kind: ClassVar[str] = "llama"
    # Attention goes back to the first token of a document.
    chunk_size: ClassVar[None] = None

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    ffn_hidden_dim: int
    num_kv_heads: int | None = None
    norm_eps: float = 1e-5
    rope_base: float | None = None
    share_emb: bool = False
    attention_dropout: float = 0.0
    init_std: float = 0.02
    output_size: int = -1

    def __post_init__(self) -> None:
        self._check_types()
        sizes = ("vocab_size", "num_layers", "model_dim", "num_heads", "ffn_hidden_dim")
        self._check_at_least_one(*sizes)
        self._check_divides("model_dim", "num_heads")
        if (self.model_dim // self.num_heads) % 2:
            self._refuse(
                "num_heads",
                f"gives {self.model_dim // self.num_heads} features a head, and rotary positions "
                "need an even number",
            )
        kv_heads = self.num_kv_heads
        if kv_heads is not None and (kv_heads < 1 or self.num_heads % kv_heads):
            self._refuse("num_kv_heads", f"must divide num_heads={self.num_heads}, or be null")
        self._check_common()
        if not 0.0 < self.init_std < float("inf"):
            self._refuse("init_std", "must be above 0, for example 0.02")
        self._check_outputs()

    def build(self, impl: str = "auto") -> "Llama":
        """See `ModelConfig.build`."""
        self.check_impl(impl)
        from litmegalodon.models.llama import Llama

        return Llama(self)

    def check_impl(self, impl: str) -> None:
        """See `ModelConfig.check_impl`; also where transformers is not installed."""
        if impl != "auto":
            raise ValueError(f"model.impl={impl}: a Llama has no choice of operators; set auto")
        if find_spec("transformers") is None:
            raise ValueError(
                "model=llama: is transformers' Llama, which is not installed; "
                "pip install 'litmegalodon[hf]'"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, with what tells them from a Megalodon's."""
        return {"kind": self.kind} | super().to_dict()
