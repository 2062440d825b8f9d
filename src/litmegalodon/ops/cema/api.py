"""The public function of the complex exponential moving average."""

from collections.abc import Callable

from torch import Tensor

from litmegalodon.ops.cema.merge import end_pytorch
from litmegalodon.ops.cema.pytorch import cema_pytorch
from litmegalodon.ops.cema.reference import cema_reference
from litmegalodon.ops.dispatch import check_input, check_shapes, choose, public


def cema_triton(*args) -> tuple[Tensor, Tensor]:
    """The Triton form, imported when it is needed: not every machine has Triton."""
    from litmegalodon.ops.cema.triton import cema_triton as form

    return form(*args)


@public
def cema(
    x: Tensor,
    alpha: Tensor,
    delta: Tensor,
    theta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Complex exponential moving average of x along time.

    h_t = q h_{t-1} + p x_t and y_t = Re sum_n g_n h_{t,n} + omega x_t, with p = sigmoid(alpha), |q|
    = 1 - sigmoid(alpha) sigmoid(delta), arg q_n = n sigmoid(theta) 2 pi / N, g = gamma / sqrt(N).

    Args:
        x: [B, L, D], any L >= 1; float32, float64 or bfloat16.
        alpha, delta: [D, N, 1].
        theta: [D, 1, 1].
        gamma: [D, N, 2], real and imaginary part.
        omega: [D, 1], the weight of the input itself.
        state: h before the first token, real [B, D, N, 2]; zero by default.
        resets: bool [B, L]; h is zeroed before a token where True.
        impl: auto, reference, torch or triton (N at most 32).

    Returns:
        y [B, L, D] in x's dtype and h [B, D, N, 2] after the last token, float32 (float64 for
        float64 x).

    Raises:
        ValueError: a dtype, shape or impl that can't be served.

    Source:
        released reference (the paper's eq. 2 also rotates the input by q's phase; the code does
        not).
    """
    _check(x, alpha, delta, theta, gamma, omega, state, resets)
    forms = {"reference": cema_reference, "torch": cema_pytorch, "triton": cema_triton}
    form = choose("cema", impl, forms, x, _triton_refusal(alpha), x.shape[0])
    return form(x, alpha, delta, theta, gamma, omega, state, resets)


@public
def cema_end(
    x: Tensor,
    alpha: Tensor,
    delta: Tensor,
    theta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    resets: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """The state that these tokens alone leave: `cema`'s h from a state of zero, without y.

    Args:
        x, alpha, delta, theta, gamma, omega, resets, impl: as in `cema`.

    Returns:
        h [B, D, N, 2], float32 (float64 for float64 x).

    Raises:
        ValueError: as in `cema`.
    """
    _check(x, alpha, delta, theta, gamma, omega, None, resets)
    forms = {
        "reference": _whole(cema_reference),
        "torch": end_pytorch,
        "triton": _whole(cema_triton),
    }
    form = choose("cema_end", impl, forms, x, _triton_refusal(alpha), x.shape[0])
    return form(x, alpha, delta, theta, gamma, omega, resets)


def _whole(form: Callable) -> Callable:
    """The end state from a form that computes y too."""

    def run(*args) -> Tensor:
        *inputs, resets = args
        return form(*inputs, None, resets)[1]

    return run


def _check(
    x: Tensor,
    alpha: Tensor,
    delta: Tensor,
    theta: Tensor,
    gamma: Tensor,
    omega: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
) -> None:
    check_input("cema", x, resets)
    (batch, _, dim), order = x.shape, alpha.shape[1]
    check_shapes(
        "cema",
        alpha=(alpha, (dim, order, 1)),
        delta=(delta, (dim, order, 1)),
        theta=(theta, (dim, 1, 1)),
        gamma=(gamma, (dim, order, 2)),
        omega=(omega, (dim, 1)),
        state=(state, (batch, dim, order, 2)),
    )


def _triton_refusal(alpha: Tensor) -> str | None:
    if alpha.shape[1] > 32:
        return f"takes at most 32 states a channel, not {alpha.shape[1]}; use impl='torch'"
    return None
