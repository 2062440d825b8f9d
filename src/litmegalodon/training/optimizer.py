"""AdamW, as the released reference uses it, with the choice of what decays."""

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

DECAY = ("all", "matrices")


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    decay: str = "all",
) -> AdamW:
    """AdamW over named parameters.

    Args:
        parameters: (name, parameter) pairs.
        lr: highest learning rate; the schedule scales it.
        betas, eps, weight_decay: as in torch.optim.AdamW.
        decay: `all` decays every parameter (the reference), `matrices` only the weight matrices of
            linear layers.

    Raises:
        ValueError: a setting out of range.
    """
    for name, value, good in (
        ("lr", lr, lr > 0),
        ("eps", eps, eps > 0),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("betas", tuple(betas), len(betas) == 2 and all(0 <= b < 1 for b in betas)),
        ("decay", decay, decay in DECAY),
    ):
        if not good:
            need = {
                "betas": "two numbers, at least 0 and below 1",
                "decay": f"one of {', '.join(DECAY)}",
                "weight_decay": "at least 0",
            }.get(name, "above 0")
            raise ValueError(f"model.optimizer.{name}={value}: must be {need}")
    named = list(parameters)
    if decay == "all":
        groups = [{"params": [p for _, p in named]}]
    else:
        matrices = [p for name, p in named if _is_matrix(name, p)]
        others = [p for name, p in named if not _is_matrix(name, p)]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, fused=True)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() == 2 and name.endswith(".weight") and "embed" not in name
