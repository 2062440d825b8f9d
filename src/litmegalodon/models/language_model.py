"""What training, sharding and evaluation ask of a network: any such module trains here.

Shapes: B batch, L length, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from litmegalodon.models.model_config import ModelConfig
from litmegalodon.models.span import Span


class LanguageModel(nn.Module):
    """A network that predicts each token from those before it.

    Built on the meta device it holds no memory until `to_empty(device=...)` and `initialise(seed)`.

    Attributes:
        config: how it was made.
        streams: whether it takes and returns what it remembers, so that text can be read on.
        embed: the token embedding.
        layers: the blocks, which are sharded and compiled one by one; each obeys an attribute
            `activation_checkpointing`.
        output: the rest, with the output matrix as `output.output`.
    """

    config: ModelConfig
    streams: bool
    embed: nn.Embedding
    layers: nn.ModuleList
    output: nn.Module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        if self.config.share_emb:
            # to_empty makes two parameters of the one.
            self.output.get_submodule("output").weight = self.embed.weight
        return self

    def initialise(self, seed: int) -> None:
        """Fill every parameter; the same seed gives the same weights on any device or sharding."""
        raise NotImplementedError

    def forward(
        self,
        tokens: Tensor,
        state: Any = None,
        resets: Tensor | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, Any]:
        """tokens int64 [B, L], memory -> logits [B, L, V], [B, 1, V] with last_only, memory.

        A model that does not stream takes and returns None for the memory. resets bool [B, L] is
        True at a document's first token, which then sees nothing before it.
        """
        raise NotImplementedError

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: Any = None,
        resets: Tensor | None = None,
        span: Span | None = None,
    ) -> tuple[Tensor, Tensor, Any]:
        """Sum of negative log-likelihoods in nats of targets [B, L] (-100: ignored), their number,
        memory; with a span the rows are shared by several processes.
        """
        raise NotImplementedError


def network_of(module: nn.Module) -> LanguageModel:
    """The network that a module of training has as its `model`."""
    return cast(LanguageModel, module.model)


def check_tokens(tokens: Tensor, resets: Tensor | None, targets: Tensor | None = None) -> None:
    """Refuse what is no batch.

    Raises:
        ValueError: a shape or dtype that can't be served.
    """
    if tokens.dim() != 2 or tokens.shape[1] < 1:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}; it must be [batch, length], length at least 1"
        )
    if resets is not None and (resets.dtype != torch.bool or resets.shape != tokens.shape):
        raise ValueError(
            f"resets is {resets.dtype} {tuple(resets.shape)}; it must be bool {tuple(tokens.shape)}"
        )
    if targets is not None and targets.shape != tokens.shape:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}; "
            f"it must be that of tokens, {tuple(tokens.shape)}"
        )
