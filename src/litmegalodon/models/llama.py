"""The baseline: a Llama made of the layers of transformers, in the place of a Megalodon.

Embedding, blocks, norm and head are transformers' own. What is ours is what the place asks for: no
buffers (rotary angles are made where they are used, in float64), documents that do not see each
other, initialisation that does not depend on the mesh, the loss in pieces.

Shapes: B batch, L length, D model_dim, z features a head, V outputs.
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from litmegalodon.models.init import fill, generator_of
from litmegalodon.models.language_model import LanguageModel, check_tokens
from litmegalodon.models.layers import Linear
from litmegalodon.models.llama_config import LlamaConfig
from litmegalodon.models.loss import IGNORED, sum_of_nll
from litmegalodon.models.span import Span
from litmegalodon.ops.dispatch import compute_dtype

Rope = tuple[Tensor, Tensor]


def to_transformers(config: LlamaConfig) -> transformers.LlamaConfig:
    """The same sizes as transformers knows them."""
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.model_dim,
        intermediate_size=config.ffn_hidden_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads or config.num_heads,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base or 10_000.0},
        tie_word_embeddings=config.share_emb,
        attention_dropout=config.attention_dropout,
        initializer_range=config.init_std,
        attn_implementation="sdpa",
        use_cache=False,
    )


class Block(LlamaDecoderLayer):
    """One layer; with `activation_checkpointing` it is computed again in the backward pass."""

    activation_checkpointing = False

    def forward(self, x: Tensor, mask: Tensor | None, rope: Rope) -> Tensor:
        """x [B, L, D], mask bool [B, 1, L, L] (None: causal), cosines and sines -> [B, L, D]."""
        about = {"attention_mask": mask, "position_embeddings": rope}
        # In here, not around the block: what shards parameters wraps the block once.
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(super().forward, x, use_reentrant=False, **about)
        return super().forward(x, **about)


class Output(nn.Module):
    """The final norm and the output matrix."""

    def __init__(self, dim: int, eps: float, num_outputs: int):
        super().__init__()
        self.final_norm = LlamaRMSNorm(dim, eps)
        self.output = Linear(dim, num_outputs, bias=False)


class Llama(LanguageModel):
    """A language model that attends to all of a document so far; see `LanguageModel`.

    Parameters have transformers' names below `layers.i`.
    """

    config: LlamaConfig
    streams = False

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        dim, sizes = config.model_dim, to_transformers(config)
        self.embed = nn.Embedding(
            config.vocab_size, dim, _weight=torch.empty(config.vocab_size, dim)
        )
        self.layers = nn.ModuleList(Block(sizes, i) for i in range(config.num_layers))
        self.output = Output(dim, config.norm_eps, config.num_outputs)
        if config.share_emb:
            self.output.output.weight = self.embed.weight
        if not self.embed.weight.is_meta:
            self.initialise(int(torch.randint(2**62, ())))

    def initialise(self, seed: int) -> None:
        """Fill every parameter: norms with 1, all else from N(0, init_std^2)."""

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            if len(shape) == 1:
                return torch.ones(shape)
            generator = generator_of(seed, name)
            return torch.empty(shape).normal_(0.0, self.config.init_std, generator=generator)

        fill(self, draw)

    def forward(
        self,
        tokens: Tensor,
        state: None = None,
        resets: Tensor | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, None]:
        """tokens int64 [B, L], resets bool [B, L] -> logits [B, L, V] ([B, 1, V]), None.

        Raises:
            ValueError: a shape or dtype that can't be served, a state.
        """
        x = self._hidden(tokens, state, resets)
        logits = self.output.output(x[:, -1:] if last_only else x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), None

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: None = None,
        resets: Tensor | None = None,
        span: Span | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        """See `LanguageModel.loss`.

        Raises:
            ValueError: a shape or dtype that can't be served, a state, a shared row.
        """
        if span is not None:
            raise ValueError("a Llama attends to whole rows, which processes can't share")
        check_tokens(tokens, resets, targets)
        x, labels = self._hidden(tokens, state, resets), targets.flatten()
        nll = sum_of_nll(x.flatten(0, 1), self.output.output.weight, labels)
        return nll, (labels != IGNORED).sum(), None

    def _hidden(self, tokens: Tensor, state: Any, resets: Tensor | None) -> Tensor:
        """Everything but the output matrix: [B, L, D] after the final norm."""
        check_tokens(tokens, resets)
        if state is not None:
            raise ValueError("a Llama carries no state from call to call; give it whole documents")
        x = self.embed(tokens)
        positions, mask = documents(tokens, resets)
        rope = self._rope(positions, x)
        for block in self.layers:
            x = block(x, mask, rope)
        return self.output.final_norm(x)

    def _rope(self, positions: Tensor, x: Tensor) -> Rope:
        """Cosines and sines [B or 1, L, z], pairs (j, j + z / 2) as transformers has them."""
        size = self.config.model_dim // self.config.num_heads
        exponents = torch.arange(0, size, 2, dtype=torch.float64, device=x.device) / size
        angles = positions[..., None] * (self.config.rope_base or 10_000.0) ** -exponents
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(compute_dtype(x)), angles.sin().to(compute_dtype(x))


def documents(tokens: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Positions in the document int64 [B or 1, L], and which tokens see which, bool [B, 1, L, L].

    None in place of the latter where no document begins inside a row: attention is causal by itself
    then, at half the arithmetic.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)[None]
    if resets is None or not resets[:, 1:].any():
        return places, None
    begin = torch.where(resets, places, 0).cummax(1).values  # B x L
    mask = (begin[:, :, None] == begin[:, None, :]).tril_()
    return places - begin, mask[:, None]
