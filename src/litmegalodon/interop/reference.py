"""Parameters of the released reference (XuezheMax/megalodon)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from litmegalodon.models.megalodon import Megalodon


class LoadReport(NamedTuple):
    """Names the model has and the file lacks, names not used, and buffers left out on purpose."""

    missing: list[str]
    unexpected: list[str]
    ignored: list[str]


def load_reference_state_dict(
    model: Megalodon, state_dict: Mapping[str, Tensor], strict: bool = True
) -> LoadReport:
    """Copy the reference's parameters into the model, in the model's dtype and device.

    Args:
        state_dict: as saved by the reference: one file's names and tensors, not sharded.
        strict: refuse missing or unexpected names; else only report them.

    Raises:
        ValueError: as `check_reference_state_dict`, before anything is copied.
    """
    report = check_reference_state_dict(model, state_dict, strict)
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in state_dict:
                parameter.copy_(state_dict[name])
    return report


def check_reference_state_dict(
    model: Megalodon, state_dict: Mapping[str, Tensor], strict: bool = True
) -> LoadReport:
    """Compare names and shapes with the model's, which may be on the meta device.

    The reference's rotary frequencies and prior statistics are buffers that its own model never
    changes; they are reported as ignored. A prior that would change the result (prior_count above
    0) is refused.

    Raises:
        ValueError: a shape differs, a tensor is no dense one of floating-point numbers, a prior is
            set, a shared embedding is not shared there, or (strict) names do not match.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    ignored = [name for name in state_dict if _is_constant(name)]
    for name in ignored:
        if name.endswith("prior_count") and state_dict[name].any():
            raise ValueError(
                f"{name}={state_dict[name].tolist()}: must be 0; a TimestepNorm with a prior is"
                " not supported"
            )
    missing = sorted(own.keys() - state_dict.keys())
    unexpected = sorted(state_dict.keys() - own.keys() - set(ignored))
    if model.config.share_emb and "output.output.weight" in missing:
        missing.remove("output.output.weight")
    if strict and (missing or unexpected):
        raise ValueError(
            f"state dict does not match the model: missing {missing or 'nothing'}, "
            f"unexpected {unexpected or 'nothing'}; check model.config, or pass strict=False"
        )
    given = {name: state_dict[name] for name in own if name in state_dict}
    for name, value in given.items():
        # Among them integers, complex, quantised and sparse ones, which copying changes or breaks.
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            raise ValueError(
                f"{name} is {value.dtype}, {value.layout} on {value.device.type}; weights are dense"
                " tensors of floating-point numbers"
            )
        if value.shape != own[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, the model {tuple(own[name].shape)}; "
                "check model.config"
            )
    tied = [given[name] for name in ("embed.weight", "output.output.weight") if name in given]
    if model.config.share_emb and not all(torch.equal(tied[0], other) for other in tied):
        raise ValueError(
            "model.config.share_emb=True: embed.weight and output.output.weight differ in this "
            "state dict; set share_emb=false"
        )
    return LoadReport(missing, unexpected, ignored)


def _is_constant(name: str) -> bool:
    return name == "rope.freqs" or name.rpartition(".")[2].startswith("prior_")
