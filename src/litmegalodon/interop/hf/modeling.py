"""The network as a model of transformers: generate(), Trainer, from_pretrained, save_pretrained."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from litmegalodon.interop.hf.cache import (
    MegalodonCache,
    before_padding,
    check_shape,
    padding_of,
    without_padding,
)
from litmegalodon.interop.hf.configuration import MegalodonConfig
from litmegalodon.models import Megalodon, MegalodonState
from litmegalodon.models.config import MAX_LOGITS
from litmegalodon.models.init import initial_value
from litmegalodon.models.layers import KeepsFloat32
from litmegalodon.models.loss import IGNORED

# Renamed in transformers 5.24.
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__annotations__ else "past_key_values"


class MegalodonForCausalLM(PreTrainedModel, GenerationMixin):
    """A `Megalodon` that predicts the next token.

    Its cache is the network's memory, of a fixed size. Padding on the left is invisible: a row's
    logits are those of its text alone. Padding on the right is too, but nothing can be read on
    after it. CEMA and norms stay float32 in a bfloat16 model.
    """

    config_class = MegalodonConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {"model.output.output.weight": "model.embed.weight"}  # noqa: RUF012
    # Modules that are KeepsFloat32, as transformers picks their parameters by name.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        "timenorm",
        "cema",
        "rmsnorm",
        "nffn.norm",
        "final_norm",
    ]

    def __init__(self, config: MegalodonConfig, impl: str = "auto") -> None:
        super().__init__(config)
        self.model = Megalodon(config.own(), impl)
        for module in self.model.modules():
            if isinstance(module, KeepsFloat32) and self.dtype in (torch.bfloat16, torch.float16):
                module.to(torch.float32)
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.model.embed = value

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.model.output.output

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        self.model.output.output = new_embeddings

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(block.activation_checkpointing for block in self.model.layers)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Compute each block again in the backward pass; settings of how have no effect."""
        for block in self.model.layers:
            block.activation_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        for block in self.model.layers:
            block.activation_checkpointing = False

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Fill those of a module's own parameters that no file has filled, by their names."""
        fresh = [
            parameter
            for parameter in module.parameters(recurse=False)
            if not (getattr(parameter, "_is_hf_initialized", False) or parameter.is_meta)
        ]
        if not fresh:
            return
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        seed = int(torch.randint(2**62, ()))
        with torch.no_grad():
            for parameter in fresh:
                name, shape = names[id(parameter)], tuple(parameter.shape)
                value = initial_value(name, shape, self.model.config, seed)
                if value is not None:
                    parameter.copy_(value)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: MegalodonCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        cache: MegalodonCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Read tokens, after those of a cache.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], or [B, tokens of the cache + L]; 0 at padding.
            past_key_values: of an earlier call, which it leaves as it was.
            labels: int64 [B, L], as input_ids: they are shifted here; -100 is ignored, and so is
                what padding would predict.
            use_cache: return a cache; by default config.use_cache, and not with labels.
            logits_to_keep: so many last tokens get logits; 0: all.
            num_items_in_batch: what the sum of the loss is divided by instead of the number of
                labels here, where gradients are accumulated.
            cache: what past_key_values is called from transformers 5.24 on.

        Returns:
            loss, the mean negative log-likelihood in nats; logits [B, L, V] in float32 or better,
            None in training where a loss is asked for and they would be larger than 256 MiB; cache.

        Raises:
            ValueError: an argument that this model has no use for, or a mask of another shape or
                that hides tokens amid a row.
        """
        _refuse_unknown(input_ids, kwargs)
        _check_kept(logits_to_keep, labels)
        past = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None
        opening = _Opening.of(self.model, input_ids, attention_mask, past)
        loss, logits = None, None
        before = (opening.state, opening.resets)
        if labels is None:
            last_only = logits_to_keep == 1
            logits, state = self.model(input_ids, *before, last_only=last_only)
            logits = logits[:, -logits_to_keep:] if logits_to_keep else logits
        else:
            targets = _targets(labels, attention_mask)
            if self.training and labels.numel() * self.model.config.num_outputs > MAX_LOGITS:
                nll, count, state = self.model.loss(input_ids, targets, *before)
            else:
                logits, state = self.model(input_ids, *before)
                nll = cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
                )
                count = (targets != IGNORED).sum()
            count = count if num_items_in_batch is None else num_items_in_batch
            loss = nll / torch.as_tensor(count, device=nll.device).clamp(min=1)
        memory = None
        if use_cache:
            seen = input_ids.shape[1] + (past.seen if past else 0)
            memory = MegalodonCache(opening.closed(state), seen)
        out = CausalLMOutputWithPast(loss=loss, logits=logits, **{_CACHE: memory})
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return out if wants_dict else out.to_tuple()


class _Opening(NamedTuple):
    """What rows begin with: a memory, where in them a text begins, and the padding before it."""

    state: MegalodonState | None
    resets: Tensor | None = None
    start: Tensor | None = None
    before: Tensor | None = None
    padded_behind: bool = False

    @classmethod
    def of(
        cls,
        model: Megalodon,
        tokens: Tensor,
        mask: Tensor | None,
        cache: MegalodonCache | None,
    ) -> "_Opening":
        length = tokens.shape[1]
        if mask is not None:
            seen = 0 if cache is None else cache.seen
            check_shape(mask, len(tokens), {length, seen + length})
        if cache is not None:
            if mask is not None and not bool(mask[:, -length:].all()):
                raise ValueError(
                    "attention_mask: hides tokens after those of past_key_values, where no padding"
                    " can stand; read such rows on their own"
                )
            return cls(cache.state)
        if mask is None or bool(mask.all()):
            return cls(None)
        before, padded_behind = padding_of(mask)
        if not bool(before.any()):
            return cls(None, padded_behind=padded_behind)
        if model.config.chunk_size is None:
            raise ValueError(
                "attention_mask: padding before a text is invisible on a grid of chunks, and with"
                " model.config.chunk_size=null there is none; read texts of one length together"
            )
        state, start = before_padding(model.config, before, model.embed.weight.dtype)
        resets = torch.zeros_like(tokens, dtype=torch.bool)
        resets[torch.arange(len(tokens), device=tokens.device), before] = True
        return cls(state, resets, start, before, padded_behind)

    def closed(self, state: MegalodonState) -> MegalodonState | None:
        """The memory to go on from; None where padding was read after a text."""
        if self.padded_behind:
            return None
        return state if self.before is None else without_padding(state, self.start, self.before)


def _targets(labels: Tensor, mask: Tensor | None) -> Tensor:
    """What each token predicts: the label of the next one; padding predicts nothing."""
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    if mask is not None:
        targets = targets.masked_fill(~mask[:, -labels.shape[1] :].bool(), IGNORED)
    return targets


def _refuse_unknown(tokens: Tensor | None, arguments: dict[str, Any]) -> None:
    if tokens is None:
        raise ValueError("input_ids: is needed; this model reads tokens, no inputs_embeds")
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise ValueError(f"{name}={value}: this model has no use for it; leave it out")


def _check_kept(count: Any, labels: Tensor | None) -> None:
    if type(count) is not int or count < 0 or (count > 0 and labels is not None):
        raise ValueError(
            f"logits_to_keep={count}: must be how many last tokens get logits, and 0 (all) with"
            " labels, whose loss needs the logits of every token"
        )
