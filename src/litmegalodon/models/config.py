"""The shape of a MEGALODON; imports nothing heavy, to refuse a setting before torch is loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from litmegalodon.models.model_config import ModelConfig

if TYPE_CHECKING:
    from litmegalodon.models.megalodon import Megalodon

INIT_MODES = ("he", "bert", "xavier", "gaussian", "none")
# What may take the place of a part of the paper's, for ablations; the paper's is first.
SWITCHES = {
    "ema": ("complex", "real"),
    "norm": ("timestep", "layer", "rms"),
    "residual": ("two_hop", "plain"),
    "attention": ("normalised", "plain"),
}
# Tokens of a chunk that no row fills.
WHOLE_ROW = 2**30
# Above this many logits (256 MiB in float32) the loss is computed without holding them all.
MAX_LOGITS = 2**26


@dataclass(frozen=True)
class MegalodonConfig(ModelConfig):
    """Sizes and switches of the network; names as in the released reference.

    Attributes:
        vocab_size: number of token ids.
        num_layers: number of blocks.
        model_dim: D, width of the residual stream.
        z_dim: width of the shared representation of queries and keys, over all heads.
        value_dim: width of values and of the gate, over all heads.
        num_heads: H, attention heads.
        ffn_hidden_dim: hidden width of the feed-forward network.
        cema_ndim: N, complex states a channel, at most 32.
        chunk_size: C, tokens that attend to one another; None: all of a row, whose memory then
            grows with every token.
        norm_num_groups: G, groups of features that TimestepNorm normalises together.
        norm_affine: learn weights of RMSNorm and bias and weights of LayerNorm (TimestepNorm always
            does).
        norm_eps: added to every variance or mean square before its root.
        rope_base: base of rotary frequencies; None is 10,000.
        swiglu: gate the feed-forward network by a third matrix.
        rescale_nffn: scale the feed-forward output by a learnt vector that starts at 0.1 *
            0.5^layer.
        scale_emb: multiply embeddings by sqrt(D).
        share_emb: use the embedding matrix as output matrix.
        output_size: number of outputs; -1 is vocab_size.
        dropout: on embeddings and on what a block adds to the residual stream.
        hidden_dropout: inside a block.
        attention_dropout: DropKey, the probability that a (query, key) pair is hidden.
        init_mode: how weight matrices start: he, bert, xavier, gaussian or none.
        ema: complex, or real: no rotation (theta = 0) and real output weights, as in Mega.
        norm: before a block's moving average and before the output matrix: timestep, or layer or
            rms, which normalise each token by itself.
        residual: what the feed-forward output is added to: two_hop, the block's input, or plain,
            attention's output.
        attention: queries and keys from a representation that is normalised, or plain, as in Mega:
            through silu, scores divided by sqrt(z).

    Raises:
        ValueError: a field's value, with its name and the fix.
    """

    kind: ClassVar[str] = "megalodon"

    vocab_size: int
    num_layers: int
    model_dim: int
    z_dim: int
    value_dim: int
    num_heads: int
    ffn_hidden_dim: int
    cema_ndim: int = 16
    chunk_size: int | None = 2048
    norm_num_groups: int = 32
    norm_affine: bool = True
    norm_eps: float = 1e-5
    rope_base: float | None = None
    swiglu: bool = False
    rescale_nffn: bool = False
    scale_emb: bool = False
    share_emb: bool = False
    output_size: int = -1
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    init_mode: str = "he"
    ema: str = "complex"
    norm: str = "timestep"
    residual: str = "two_hop"
    attention: str = "normalised"

    def __post_init__(self) -> None:
        self._check_types()
        self._check_at_least_one(
            "vocab_size",
            "num_layers",
            "model_dim",
            "z_dim",
            "value_dim",
            "num_heads",
            "ffn_hidden_dim",
            "cema_ndim",
            "chunk_size",
            "norm_num_groups",
        )
        for name in ("z_dim", "value_dim"):
            self._check_divides(name, "num_heads")
        self._check_divides("model_dim", "norm_num_groups")
        if self.model_dim == self.norm_num_groups:
            self._refuse(
                "norm_num_groups",
                "gives groups of one feature, whose first variance is 0; "
                f"at most {self.model_dim // 2}",
            )
        if (self.z_dim // self.num_heads) % 2:
            self._refuse(
                "z_dim",
                f"gives {self.z_dim // self.num_heads} features a head, and rotary positions need "
                f"an even number; use a multiple of {2 * self.num_heads}",
            )
        if self.cema_ndim > 32:
            self._refuse("cema_ndim", "must be at most 32")
        self._check_common()
        self._check_outputs()
        for name in ("dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                self._refuse(name, "must be at least 0 and below 1")
        self._check_choice("init_mode", INIT_MODES)
        for name, choices in SWITCHES.items():
            self._check_choice(name, choices)

    def build(self, impl: str = "auto") -> "Megalodon":
        """See `ModelConfig.build`."""
        from litmegalodon.models.megalodon import Megalodon

        return Megalodon(self, impl)

    @property
    def attention_chunk(self) -> int:
        """C as a number, also where attention reaches over whole rows."""
        return self.chunk_size or WHOLE_ROW
