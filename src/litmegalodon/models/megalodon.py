"""MEGALODON, the network (arXiv 2404.08801): tokens in, logits and memory out.

Shapes: B batch, L length, D model_dim, V outputs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from litmegalodon.models.attention import MovingAverageGatedAttention
from litmegalodon.models.config import MegalodonConfig
from litmegalodon.models.ffn import NormalizedFeedForward
from litmegalodon.models.init import initialise
from litmegalodon.models.language_model import LanguageModel, check_tokens
from litmegalodon.models.layers import Linear, input_norm
from litmegalodon.models.loss import IGNORED, sum_of_nll
from litmegalodon.models.span import Span
from litmegalodon.models.state import LayerState, MegalodonState
from litmegalodon.ops import Places
from litmegalodon.ops.chunk_attention import bounds, locate
from litmegalodon.ops.dispatch import IMPLEMENTATIONS, means_triton


class Block(nn.Module):
    """One layer: gated attention with its moving average, then the feed-forward network.

    With `activation_checkpointing` it keeps its input only and is computed again in the backward
    pass.
    """

    def __init__(self, config: MegalodonConfig, impl: str):
        super().__init__()
        self.activation_checkpointing = False
        self.two_hop = config.residual == "two_hop"
        self.mega = MovingAverageGatedAttention(config, impl)
        self.nffn = NormalizedFeedForward(config)

    def forward(
        self,
        x: Tensor,
        state: LayerState | None,
        places: Places,
        resets: Tensor | None,
        seed: int | None = None,
        span: Span | None = None,
    ) -> tuple[Tensor, LayerState]:
        """x [B, L, D], where its tokens stand -> [B, L, D], state."""
        inputs = (x, state, places, resets, seed)
        # In here, not around the block: what shards parameters wraps the block once.
        if self.activation_checkpointing and torch.is_grad_enabled():
            once = None if span is None else span.once()
            return checkpoint(self._compute, *inputs, once, use_reentrant=False)
        return self._compute(*inputs, span)

    def _compute(
        self,
        x: Tensor,
        state: LayerState | None,
        places: Places,
        resets: Tensor | None,
        seed: int | None,
        span: Span | None,
    ) -> tuple[Tensor, LayerState]:
        y, state = self.mega(x, state, places, resets, seed, span)
        return self.nffn(y, x if self.two_hop else y), state


class Output(nn.Module):
    """The final norm and the output matrix."""

    def __init__(self, config: MegalodonConfig, impl: str):
        super().__init__()
        self.final_norm = input_norm(config, impl)
        self.output = Linear(config.model_dim, config.num_outputs, bias=False)


class Megalodon(LanguageModel):
    """A language model whose memory is a state of fixed size.

    Parameters are named as in the released reference. Built on the meta device it holds no memory
    until `to_empty(device=...)` and `initialise(seed)`; elsewhere it is initialised from torch's
    default generator.

    Args:
        config: sizes and switches.
        impl: implementation of the operators: auto, reference, torch or triton; no part of the
            config.
    """

    config: MegalodonConfig
    streams = True

    def __init__(self, config: MegalodonConfig, impl: str = "auto"):
        super().__init__()
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl={impl!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
        self.config, self.impl = config, impl
        self.embed = nn.Embedding(
            config.vocab_size,
            config.model_dim,
            _weight=torch.empty(config.vocab_size, config.model_dim),
        )
        self.layers = nn.ModuleList(Block(config, impl) for _ in range(config.num_layers))
        self.output = Output(config, impl)
        if config.share_emb:
            self.output.output.weight = self.embed.weight
        if not self.embed.weight.is_meta:
            self.initialise(int(torch.randint(2**62, ())))

    def fresh_state(self, position: int = 0) -> MegalodonState:
        """The memory of one row that has read nothing, in the parameters' precision."""
        like = self.embed.weight
        return MegalodonState.fresh(self.config, 1, position, like.dtype, like.device)

    def initialise(self, seed: int) -> None:
        """Fill every parameter; the same seed gives the same weights on any device or sharding."""
        initialise(self, self.config, seed)

    def forward(
        self,
        tokens: Tensor,
        state: MegalodonState | None = None,
        resets: Tensor | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, MegalodonState]:
        """Read tokens and predict, at each, the next one.

        Args:
            tokens: int64 [B, L], any L >= 1.
            state: memory of what came before; nothing by default.
            resets: bool [B, L], True at a document's first token, which then sees nothing before
                it.
            last_only: predict at the last token alone: over a large vocabulary the logits of a long
                call cost more than the rest of the model.

        Returns:
            logits [B, L, V], or [B, 1, V] with last_only, float32 (float64 in a float64 model), and
            the memory after the last token. Any split of a sequence into calls gives the same.

        Raises:
            ValueError: a shape or dtype that can't be served.
        """
        x, state = self._hidden(tokens, state, resets)
        logits = self.output.output(x[:, -1:] if last_only else x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), state

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: MegalodonState | None = None,
        resets: Tensor | None = None,
        span: Span | None = None,
    ) -> tuple[Tensor, Tensor, MegalodonState]:
        """Negative log-likelihood of targets, without a copy of the logits where they are large.

        Args:
            tokens, state, resets: as in `forward`.
            targets: int64 [B, L]; -100 is ignored.
            span: where the rows are longer than tokens, which are one process's stretch of them:
                how it is connected with the others'. The memory, in and out, is the whole row's
                then, the same in every process, and comes out without gradients.

        Returns:
            sum of the negative log-likelihoods in nats (float32 or better), number of valid targets
            (int64), memory.

        Raises:
            ValueError: a shape or dtype that can't be served, a stretch that is not whole chunks.
        """
        check_tokens(tokens, resets, targets)
        x, state = self._hidden(tokens, state, resets, span)
        labels = targets.flatten()
        nll = sum_of_nll(x.flatten(0, 1), self.output.output.weight, labels)
        return nll, (labels != IGNORED).sum(), state

    def _hidden(
        self,
        tokens: Tensor,
        state: MegalodonState | None,
        resets: Tensor | None,
        span: Span | None = None,
    ) -> tuple[Tensor, MegalodonState]:
        """Everything but the output matrix: [B, L, D] after the final norm."""
        self._check(tokens, state, resets)
        if span is not None:
            self._check_span(tokens, state, span)
        places = self._places(tokens, state, resets, span)
        x = self.embed(tokens)
        if self.config.scale_emb:
            x = x * math.sqrt(self.config.model_dim)
        x = dropout(x, self.config.dropout, self.training)
        layers = []
        for i, block in enumerate(self.layers):
            # Drawn here, outside what may be recomputed in the backward pass.
            seed = None
            if self.training and self.config.attention_dropout > 0.0:
                seed = int(torch.randint(2**62, ()))
            before = state.layers[i] if state else None
            x, after = block(x, before, places, resets, seed, span)
            layers.append(after)
        x, norm = self.output.final_norm(x, state.norm if state else None, resets, span)
        end = places.position + tokens.shape[1]
        if span is not None:
            # Of the whole row, not of this stretch.
            end = end + (span.size - 1 - span.rank) * span.length
        return x, MegalodonState(end, tuple(layers), norm)

    def _places(
        self,
        tokens: Tensor,
        state: MegalodonState | None,
        resets: Tensor | None,
        span: Span | None,
    ) -> Places:
        """Where the tokens stand, read from the device once for all layers."""
        size, kv = self.config.attention_chunk, state.layers[0].kv if state else None
        position, slots = (state.position, kv.k.shape[1]) if state else (0, None)
        if span is not None:
            position = position + span.rank * span.length
        places = locate(position, slots, *tokens.shape, size, tokens.device)
        if not means_triton(self.impl, tokens):
            return places
        known = kv.length if state else None
        seen = bounds(places.position, known, resets, tokens.shape[1], size)
        return places._replace(bounds=seen)

    def _check_span(self, tokens: Tensor, state: MegalodonState | None, span: Span) -> None:
        """A stretch and what comes before it are whole chunks: attention sees nothing outside."""
        chunk = self.config.chunk_size
        if chunk is None:
            raise ValueError(
                "model.config.chunk_size=None: attention over whole rows, which processes can't "
                "share; set chunk_size"
            )
        if tokens.shape[1] != span.length or span.length % chunk:
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}: a process's stretch of a row has "
                f"{span.length} of them and must be whole chunks of chunk_size={chunk}"
            )
        if state is not None and (state.position % chunk).any():
            raise ValueError(
                f"state.position={state.position.tolist()}: a row that several processes share "
                f"begins at a multiple of chunk_size={chunk}"
            )

    def _check(self, tokens: Tensor, state: MegalodonState | None, resets: Tensor | None) -> None:
        check_tokens(tokens, resets)
        if state is None:
            return
        if state.batch != tokens.shape[0]:
            raise ValueError(f"state has {state.batch} rows, tokens {tokens.shape[0]}")
        c, first = self.config, state.layers[0]
        for names, theirs, ours in (
            ("num_layers", len(state.layers), c.num_layers),
            ("[model_dim, cema_ndim]", first.h.shape[1:3], (c.model_dim, c.cema_ndim)),
            ("norm_num_groups", first.norm.mean.shape[1], c.norm_num_groups),
            ("[num_heads, z]", first.kv.k.shape[2:], (c.num_heads, c.z_dim // c.num_heads)),
            ("[num_heads, e]", first.kv.v.shape[2:], (c.num_heads, c.value_dim // c.num_heads)),
        ):
            if theirs != ours:
                raise ValueError(f"state is of a model with {names} {theirs}; this one has {ours}")
