"""How an operator picks one of its implementations, and what every operator checks of its input."""

import functools
import inspect
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litmegalodon.ops import launch

IMPLEMENTATIONS = ("auto", "reference", "torch", "triton")
TRITON_INSTALLED = find_spec("triton") is not None


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


def check_shapes(operator: str, **expected: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Refuse tensors of other shapes than the operator's first input asks for.

    A kernel would read beyond them. Each keyword is a tensor, or None, and the shape it must have.

    Raises:
        ValueError: one has another shape.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{operator}: {name} has shape {tuple(tensor.shape)}; it must be {shape}"
            )


_opaque = functools.cache(torch.compiler.disable)


def choose(
    operator: str,
    impl: str,
    forms: dict[str, Callable],
    x: Tensor,
    refusal: str | None = None,
    rows: int = 1,
) -> Callable:
    """Return the implementation that `impl` names; `auto` takes the fastest one that serves x.

    An explicit choice is obeyed or refused, never replaced by another. torch.compile leaves all
    but the Triton form as they are: how documents cut a sequence depends on values, which it cannot
    follow.

    Args:
        operator: its name, for messages.
        impl: auto, reference, torch or triton.
        forms: the implementations there are, by name.
        x: the operator's first input.
        refusal: why the Triton form does not serve this call, if it does not.
        rows: how many parts the Triton form works on side by side: rows, or heads of all rows.

    Raises:
        ValueError: impl is unknown, this operator has no such form, or it can't serve the call.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    refusal = refusal or launch.rows_refusal(rows)
    if impl == "auto":
        served = "triton" in forms and x.is_cuda and not (refusal or triton_refusal(x))
        impl = "triton" if served else "torch"
    if impl not in forms:
        raise ValueError(
            f"impl={impl!r}: {operator} has no such implementation; "
            f"available: {', '.join(('auto', *forms))}"
        )
    if impl != "triton":
        return _opaque(forms[impl])
    if reason := triton_refusal(x) or refusal:
        raise ValueError(f"impl='triton': {operator} {reason}")
    return forms[impl]


def means_triton(impl: str, x: Tensor) -> bool:
    """Whether an operator takes its Triton form for x, if that serves the call."""
    on_gpu = isinstance(x, Tensor) and x.is_cuda
    return impl == "triton" or (impl == "auto" and on_gpu and TRITON_INSTALLED)


def triton_refusal(x: Tensor) -> str | None:
    """Why no Triton kernel can work on x where it is, or None."""
    if not TRITON_INSTALLED:
        return "needs the package triton, which exists for Linux only; use impl='torch'"
    if x.is_cuda:
        # AMD's devices number their capabilities otherwise.
        if torch.version.cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
            return "needs a GPU of compute capability 8.0 or newer; use impl='torch'"
        if torch.version.hip:
            arch = torch.cuda.get_device_properties(x.device).gcnArchName
            if not arch.startswith("gfx942"):
                return f"was compiled for AMD's gfx942 only, and this is {arch}; use impl='torch'"
        return None
    if launch.INTERPRETED:
        return None
    return (
        f"runs on a GPU, not on {x.device}; use impl='torch', or set TRITON_INTERPRET=1 "
        "before Python starts to run the kernels, slowly, in Triton's interpreter"
    )


def public(operator: Callable) -> Callable:
    """What holds for every operator, whatever its implementation.

    Under autocast it keeps the precision of its inputs: each implementation knows where a lower one
    does no harm. torch.compile follows it where the Triton form is meant, whose kernels are
    operators that it knows (`torch.library`), and leaves it as it is elsewhere, see `choose`.
    """

    first = next(iter(inspect.signature(operator).parameters))

    def in_own_precision(*args, **kwargs):
        x = args[0] if args else kwargs[first]
        with torch.autocast(x.device.type, enabled=False):
            return operator(*args, **kwargs)

    opaque = torch.compiler.disable(in_own_precision)

    @functools.wraps(operator)
    def run(*args, impl: str = "auto", **kwargs):
        x = args[0] if args else kwargs.get(first)
        traced = means_triton(impl, x)
        return (in_own_precision if traced else opaque)(*args, impl=impl, **kwargs)

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
