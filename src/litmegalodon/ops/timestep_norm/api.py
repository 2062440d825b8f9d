"""The public function of TimestepNorm."""

from collections.abc import Callable

from torch import Tensor

from litmegalodon.ops.dispatch import check_input, check_shapes, choose, public
from litmegalodon.ops.timestep_norm.merge import end_pytorch
from litmegalodon.ops.timestep_norm.pytorch import timestep_norm_pytorch
from litmegalodon.ops.timestep_norm.reference import timestep_norm_reference
from litmegalodon.ops.timestep_norm.state import NormState


def timestep_norm_triton(*args) -> tuple[Tensor, NormState]:
    """The Triton form, imported when it is needed: not every machine has Triton."""
    from litmegalodon.ops.timestep_norm.triton import timestep_norm_triton as form

    return form(*args)


@public
def timestep_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    state: NormState | None = None,
    resets: Tensor | None = None,
    padding_mask: Tensor | None = None,
    *,
    impl: str = "auto",
) -> tuple[Tensor, NormState]:
    """Normalise each token by mean and variance of all tokens up to it, per group of features.

    y_t = (x_t - mean_t) / sqrt(var_t + eps) * (weight + 1) + bias, every token weighing the same.

    Args:
        x: [B, L, D]; float32, float64 or bfloat16.
        weight, bias: [D]; weight is stored minus one.
        num_groups: G, divides D.
        state: statistics of what came before; none by default.
        resets: bool [B, L]; the statistics are forgotten before a token where True.
        padding_mask: bool [B, L], True = padding: output 0, statistics unchanged.
        impl: auto, reference, torch or triton (no padding_mask, at most 8,192 features a group).

    Returns:
        y [B, L, D] in x's dtype and the statistics after the last token, in float64.

    Raises:
        ValueError: a dtype, shape or impl that can't be served.

    Source:
        paper, section 3.2; released reference (biased variance, current token included, eps
        inside the root).
    """
    _check(x, num_groups, resets)
    batch, length, dim = x.shape
    check_shapes(
        "timestep_norm",
        weight=(weight, (dim,)),
        bias=(bias, (dim,)),
        count=(None if state is None else state.count, (batch,)),
        mean=(None if state is None else state.mean, (batch, num_groups)),
        var=(None if state is None else state.var, (batch, num_groups)),
        padding_mask=(padding_mask, (batch, length)),
    )
    forms = {
        "reference": timestep_norm_reference,
        "torch": timestep_norm_pytorch,
        "triton": timestep_norm_triton,
    }
    refusal = _triton_refusal(x, num_groups)
    if padding_mask is not None:
        refusal = "takes no padding_mask; use impl='torch'"
    form = choose("timestep_norm", impl, forms, x, refusal, batch)
    if state is None:
        state = NormState.fresh(x.shape[0], num_groups, x.device)
    return form(x, weight, bias, num_groups, eps, state, resets, padding_mask)


@public
def timestep_norm_end(
    x: Tensor, num_groups: int, resets: Tensor | None = None, *, impl: str = "auto"
) -> NormState:
    """The statistics that these tokens alone leave: `timestep_norm`'s end state from a fresh one.

    Args:
        x, num_groups, resets, impl: as in `timestep_norm`.

    Returns:
        The statistics of each row's last document, in float64.

    Raises:
        ValueError: as in `timestep_norm`.
    """
    _check(x, num_groups, resets)
    forms = {
        "reference": _whole(timestep_norm_reference),
        "torch": end_pytorch,
        "triton": _whole(timestep_norm_triton),
    }
    refusal = _triton_refusal(x, num_groups)
    form = choose("timestep_norm_end", impl, forms, x, refusal, x.shape[0])
    return form(x, num_groups, resets)


def _whole(form: Callable) -> Callable:
    """The end state from a form that computes the normalised tokens too."""

    def run(x: Tensor, num_groups: int, resets: Tensor | None) -> NormState:
        zeros = x.new_zeros(x.shape[-1])
        fresh = NormState.fresh(x.shape[0], num_groups, x.device)
        return form(x, zeros, zeros, num_groups, 1.0, fresh, resets, None)[1]

    return run


def _check(x: Tensor, num_groups: int, resets: Tensor | None) -> None:
    check_input("timestep_norm", x, resets)
    if x.shape[-1] % num_groups:
        raise ValueError(
            f"timestep_norm: num_groups={num_groups} does not divide x's {x.shape[-1]} features"
        )


def _triton_refusal(x: Tensor, num_groups: int) -> str | None:
    if (size := x.shape[-1] // num_groups) > 8192:
        return f"takes at most 8,192 features a group, not {size}; use impl='torch'"
    return None
