"""Checkpoints of pszemraj/megalodon-hf in this project's names and conventions.

Its blocks compute the same function but for TimestepNorm, whose variance leaves out that within a
group and begins with a prior of 1: the weights fit, the model is another one until it is trained
on. Its rotary pairs are (j, j + z/2) within a head, ours (2j, 2j + 1); its LayerNorm weights are
stored as they are, ours minus one; it has biases that ours has not.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from litmegalodon.interop.config_json import config_from
from litmegalodon.models import MegalodonConfig

DIFFERENT_NORM = (
    "megalodon-hf's TimestepNorm is another function (its variance leaves out that within a group"
    " and begins with a prior of 1)"
)
_LAYER = re.compile(r"model\.layers\.(\d+)\.(attn|ffn)\.(.+)")
# Tables that are made anew from the config.
_MADE = re.compile(r".*\.rope\.\w+")
# What is named and laid out as the reference's.
_SAME = re.compile(
    r"timenorm\.(weight|bias)|cema\.(alpha|delta|theta)|w(v|r|h1)\.(weight|bias)|wh2\.weight"
    r"|fc[123]\.weight|norm\.bias"
)
_RENAMED = {"attn": "mega", "ffn": "nffn"}


def own_config(theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MegalodonConfig:
    """The network's config, from their config.json.

    Raises:
        ValueError: a field is missing or out of range.
    """
    known = dict(theirs)
    if known.get("rope_base") is not None:
        known["rope_base"] = float(known["rope_base"])
    if known.get("output_size", -1) is None:
        known["output_size"] = -1
    # Their own setting of this name does nothing: what the file holds decides.
    head, embed = tensors.get("lm_head.weight"), tensors.get("model.embed.weight")
    shared = head is None or (embed is not None and torch.equal(head, embed))
    return config_from(known | {"share_emb": shared}, "config.json")


def own_tensors(theirs: Mapping[str, Tensor], config: MegalodonConfig) -> dict[str, Tensor]:
    """Their tensors under the reference's names, in its layout.

    Raises:
        ValueError: a name is unknown, or a bias that this model has not is not zero.
    """
    own: dict[str, Tensor] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    top = {
        "model.embed.weight": "embed.weight",
        "model.norm.weight": "output.final_norm.weight",
        "model.norm.bias": "output.final_norm.bias",
        "lm_head.weight": "output.output.weight",
    }
    for name, value in theirs.items():
        if _MADE.fullmatch(name):
            continue
        if name in top:
            own[top[name]] = value
            continue
        found = _LAYER.fullmatch(name)
        if found is None:
            raise ValueError(f"{name}: megalodon-hf in its current form has no tensor of this name")
        layer, part, rest = found.groups()
        place = f"layers.{layer}.{_RENAMED[part]}."
        if rest in ("cema.gamma_real", "cema.gamma_imag"):
            halves.setdefault(place, {})[rest] = value
        elif rest in ("wh2.bias", "fc1.bias", "fc2.bias", "fc3.bias"):
            if value.any():
                raise ValueError(
                    f"{name}: is not zero, and this model has no bias there; nothing can stand in"
                    " for it"
                )
        elif rest == "rmsnorm.gamma":
            own[f"{place}rmsnorm.weight"] = value
        elif rest == "cema.omega":
            own[f"{place}{rest}"] = value[:, None]
        elif rest == "norm.weight":
            own[f"{place}{rest}"] = value.to(torch.promote_types(value.dtype, torch.float32)) - 1
        elif rest in ("wz.weight", "wz.bias"):
            own[f"{place}{rest}"] = _paired(value, config.num_heads, 0)
        elif rest in ("gamma", "beta"):
            own[f"{place}{rest}"] = _paired(value, config.num_heads, 1)
        elif _SAME.fullmatch(rest):
            own[f"{place}{rest}"] = value
        else:
            # Older forms of it have other conventions under such names.
            raise ValueError(f"{name}: megalodon-hf in its current form has no tensor of this name")
    for place, parts in halves.items():
        if len(parts) == 2:
            both = (parts["cema.gamma_real"], parts["cema.gamma_imag"])
            own[f"{place}cema.gamma"] = torch.stack(both, dim=-1)
    for layer in range(config.num_layers):
        if config.rescale_nffn:
            # A number there, that is never trained.
            alpha = torch.full((config.model_dim,), 0.1 * 0.5**layer)
            own[f"layers.{layer}.nffn.alpha"] = alpha
        if not config.norm_affine:
            own |= _plain_norm(f"layers.{layer}.mega.timenorm", config)
    if not config.norm_affine:
        own |= _plain_norm("output.final_norm", config)
    return own


def different_function(theirs: Mapping[str, Any]) -> list[str]:
    """What else of their config makes their model another function than this one, in sentences."""
    said = []
    longest = theirs.get("max_cache_len")
    beyond = longest is not None and longest > theirs.get("chunk_size", longest)
    if theirs.get("cache_unbounded") or beyond:
        said.append(
            "its config lets attention reach across chunks while it generates"
            f" (max_cache_len={longest}, cache_unbounded={theirs.get('cache_unbounded')});"
            " this model's attention never does"
        )
    return said


def _paired(value: Tensor, heads: int, axis: int) -> Tensor:
    """Within each head features j and j + z/2 become neighbours 2j and 2j + 1."""
    length = value.shape[axis]
    if length % (2 * heads):
        raise ValueError(f"z_dim={length}: is no even number of features for {heads} heads")
    order = torch.arange(length).view(heads, 2, -1).transpose(1, 2).flatten()
    return value.index_select(axis, order)


def _plain_norm(name: str, config: MegalodonConfig) -> dict[str, Tensor]:
    return {f"{name}.{part}": torch.zeros(config.model_dim) for part in ("weight", "bias")}
