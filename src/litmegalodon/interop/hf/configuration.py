"""A network's config in transformers' form: the same fields, and the ids that generation needs."""

from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from litmegalodon.interop.exported import MODEL_TYPE
from litmegalodon.models import MegalodonConfig as OwnConfig


class MegalodonConfig(PreTrainedConfig):
    """Sizes and switches of `litmegalodon.models.MegalodonConfig`, whose rules hold.

    `num_hidden_layers`, `hidden_size` and `num_attention_heads` are other names for fields.

    Raises:
        ValueError: a field's value, with its name and the fix.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "model_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
    }

    vocab_size: int = 264
    num_layers: int = 4
    model_dim: int = 192
    z_dim: int = 64
    value_dim: int = 384
    num_heads: int = 1
    ffn_hidden_dim: int = 384
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
    use_cache: bool = True
    bos_token_id: int | None = 256
    eos_token_id: int | list[int] | None = 257
    pad_token_id: int | None = 257
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # One switch: their name for it follows ours.
        self.tie_word_embeddings = self.share_emb
        self.own()
        super().__post_init__(**kwargs)

    def own(self) -> OwnConfig:
        """The config that the network is built from."""
        return OwnConfig(**{field.name: getattr(self, field.name) for field in fields(OwnConfig)})
