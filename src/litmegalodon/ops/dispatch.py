"""How an operator picks one of its implementations, and what every operator checks of its input."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IMPLEMENTATIONS = ("auto", "reference", "torch", "triton")


def check_input(operator: str, x: Tensor, resets: Tensor | None = None) -> None:
    """Refuse an input that no implementation serves.

    Raises:
        ValueError: x is empty or of an unsupported dtype, or resets is not bool [B, L].
    """
    if x.dtype == torch.float16:
        raise ValueError(
            f"{operator}: x is float16, whose range (65,504) the running states overflow; "
            "use bfloat16"
        )
    if x.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"{operator}: x is {x.dtype}; use float32, float64 or bfloat16")
    if x.shape[1] < 1:
        raise ValueError(f"{operator}: x has shape {tuple(x.shape)}; a call needs at least 1 token")
    if resets is not None and (resets.dtype != torch.bool or resets.shape != x.shape[:2]):
        raise ValueError(
            f"{operator}: resets is {resets.dtype} {tuple(resets.shape)}; "
            f"it must be bool {tuple(x.shape[:2])}, True at a document's first token"
        )


def choose(operator: str, impl: str, forms: dict[str, Callable]) -> Callable:
    """Return the implementation that `impl` names; `auto` takes the fastest one there is.

    An explicit choice is obeyed or refused, never replaced by another.

    Raises:
        ValueError: impl is unknown, or this operator has no such form.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "auto":
        return forms["torch"]
    if impl not in forms:
        raise ValueError(
            f"impl={impl!r}: {operator} has no such implementation; "
            f"available: {', '.join(('auto', *forms))}"
        )
    return forms[impl]


def public(operator: Callable) -> Callable:
    """What holds for every operator, whatever its implementation.

    Under autocast it keeps the precision of its inputs: each implementation knows where a lower one
    does no harm. And torch.compile leaves it as it is: how documents cut a sequence depends on
    values, which it cannot follow.
    """

    @torch.compiler.disable
    @functools.wraps(operator)
    def run(x: Tensor, *args, **kwargs):
        with torch.autocast(x.device.type, enabled=False):
            return operator(x, *args, **kwargs)

    return run


def forward_pass(function: Callable) -> Callable:
    """For the forward pass of a function with a hand-written backward: autocast changes neither."""

    @functools.wraps(function)
    def run(ctx, x: Tensor, *args):
        with torch.autocast(x.device.type, enabled=False):
            return function(ctx, x, *args)

    return run


def backward_pass(function: Callable) -> Callable:
    """For a hand-written backward pass: it has no derivative, and autocast does not change it."""

    @once_differentiable
    @functools.wraps(function)
    def run(ctx, grad: Tensor, *grads):
        with torch.autocast(grad.device.type, enabled=False):
            return function(ctx, grad, *grads)

    return run


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums and coefficients for activations x: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
