"""Learning rate over optimizer steps: a linear warm-up, then cosine, linear or constant.

Source: released reference (its decays divide by zero where the warm-up is the whole run; here that
is refused).
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

KINDS = ("cosine", "linear", "constant")


def warmup_schedule(
    optimizer: Optimizer,
    kind: str = "cosine",
    warmup_steps: int = 100,
    total_steps: int = 1000,
    initial_ratio: float = 1e-4,
    final_ratio: float = 0.01,
    cycles: float = 1,
) -> LambdaLR:
    """Scale the optimizer's learning rate by `ratio`, counted in optimizer steps; the first update
    is step 0.

    Args:
        kind, warmup_steps, total_steps, initial_ratio, final_ratio, cycles: see `ratio`.

    Raises:
        ValueError: a setting out of range.
    """
    refuse = "model.scheduler.{}={}: must be {}".format
    if kind not in KINDS:
        raise ValueError(refuse("kind", kind, f"one of {', '.join(KINDS)}"))
    if warmup_steps < 0:
        raise ValueError(refuse("warmup_steps", warmup_steps, "at least 0"))
    if kind != "constant" and total_steps <= warmup_steps:
        raise ValueError(
            refuse("total_steps", total_steps, f"above model.scheduler.warmup_steps={warmup_steps}")
        )
    for name, value in (("initial_ratio", initial_ratio), ("final_ratio", final_ratio)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(refuse(name, value, "between 0 and 1"))

    def at(step: int) -> float:
        return ratio(step, kind, warmup_steps, total_steps, initial_ratio, final_ratio, cycles)

    return LambdaLR(optimizer, at)


def ratio(
    step: int,
    kind: str,
    warmup_steps: int,
    total_steps: int,
    initial_ratio: float,
    final_ratio: float,
    cycles: float,
) -> float:
    """The part of the highest learning rate at a step.

    It rises from initial_ratio (step 0) to 1 (warmup_steps); then cosine takes `cycles` half waves,
    or linear a line, to final_ratio at total_steps, where it stays; constant stays at 1.
    """
    if step < warmup_steps:
        return initial_ratio + step * (1 - initial_ratio) / warmup_steps
    if kind == "constant":
        return 1.0
    if step > total_steps:
        return final_ratio
    s = (step - warmup_steps) / (total_steps - warmup_steps)
    if kind == "linear":
        return s * final_ratio + 1 - s
    return final_ratio + 0.5 * (1 - final_ratio) * (math.cos(math.pi * s * cycles) + 1)
