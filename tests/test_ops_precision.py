"""How much of float64 survives in float32 and bfloat16, over short and very long sequences."""

import math

import pytest
import torch

from golden_data import assert_equal, assert_precise, relative_error
from hard import FORMS, OPERATORS, hard_cema_parameters, hard_resets, with_gradients
from litmegalodon.ops import cema, timestep_norm

operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)
LONG = 100_000


@pytest.mark.parametrize(
    "operator, impl, with_resets",
    [
        pytest.param(o, impl, w, marks=pytest.mark.slow if impl == "triton" and not w else ())
        for o, impl in FORMS
        for w in (False, True)
    ],
    ids=lambda v: {False: "whole", True: "resets"}[v] if isinstance(v, bool) else str(v),
)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("fp32", "bf16"))
def test_outputs_states_and_gradients_pass_the_precision_gate(operator, impl, dtype, with_resets):
    given = operator.rounded(operator.inputs(3, 150, 5), dtype)
    exact_given = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    resets = hard_resets(3, 150) if with_resets else None
    exact = with_gradients(
        lambda t: operator.call(t, resets, "reference"), exact_given, cotangents=dtype
    )
    plain, got = (
        with_gradients(lambda t, impl=impl: operator.call(t, resets, impl), given, cotangents=dtype)
        for impl in ("reference", impl)
    )
    for name, value in exact.items():
        if value.is_floating_point():
            # The promise for sums and states is float32 or better, so their ulp is float32's.
            assert_precise(
                *(u.float() if u.dtype == torch.float64 else u for u in (got[name], plain[name])),
                value,
                name,
            )


@pytest.mark.parametrize("operator, impl", FORMS, ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("fp32", "bf16"))
def test_outputs_keep_the_dtype_and_states_are_float32_or_better(operator, impl, dtype):
    given = operator.rounded(operator.inputs(2, 20, 6), dtype)
    for tried in ("reference", impl):
        out = operator.call(given, None, tried)
        assert out["y"].dtype == dtype
        for name, value in out.items():
            if value.is_floating_point() and name.startswith("state."):
                expected = dtype if name in ("state.k", "state.v") else value.dtype
                assert value.dtype == expected, name
                if name not in ("state.k", "state.v"):
                    assert value.dtype in (torch.float32, torch.float64), name


@operators
def test_autocast_leaves_an_operator_in_the_precision_of_its_inputs(operator):
    given = operator.rounded(operator.inputs(3, 70, 7), torch.float32)
    resets = hard_resets(3, 70)
    want = with_gradients(lambda t: operator.call(t, resets, "torch"), given)

    def under_autocast(tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return operator.call(tensors, resets, "torch")

    got = with_gradients(under_autocast, given)
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name


def long_cema():
    x = torch.randn(1, LONG, 8, generator=torch.Generator().manual_seed(8)) + 3
    parameters = {k: v.float() for k, v in hard_cema_parameters(8, 3, 8).items()}
    return x, list(parameters.values())


def cema_end_state(x, alpha, delta, theta):
    """h after the last token as the sum over t of q^(L-1-t) p x_t, complex128 [B, D, N]."""
    p, through, turn = (v.double().sigmoid().squeeze(-1) for v in (alpha, delta, theta))
    order = alpha.shape[1]
    n = torch.arange(1, order + 1, dtype=torch.float64)
    log_q = torch.complex(torch.log1p(-p * through), 2 * math.pi / order * n * turn)
    age = torch.arange(x.shape[1] - 1, -1, -1)
    powers = (log_q[..., None] * age).exp()  # D x N x L
    return torch.einsum("bld,dnl->bdn", x.to(torch.complex128), powers * p[..., None])


def test_cema_over_100_000_tokens_in_one_float32_call_is_within_1e_4():
    x, (alpha, delta, theta, gamma, omega) = long_cema()
    y, h = cema(x, alpha, delta, theta, gamma, omega)
    want = cema_end_state(x, alpha, delta, theta)
    assert_equal(h, torch.view_as_real(want), 1e-4, "h")
    g = torch.view_as_complex(gamma.double().contiguous()) / math.sqrt(alpha.shape[1])
    last = (g * want).real.sum(-1) + omega.double()[:, 0] * x[:, -1].double()
    assert_equal(y[:, -1], last, 1e-4, "last output")
    exact, _ = cema(*(v.double() for v in (x, alpha, delta, theta, gamma, omega)))
    assert_equal(y, exact, 1e-4, "y")


def test_timestep_norm_over_100_000_tokens_in_one_float32_call_is_within_1e_4():
    x = 1e3 + torch.randn(1, LONG, 8, generator=torch.Generator().manual_seed(9))
    y, state = timestep_norm(x, torch.zeros(8), torch.zeros(8), 2, 1e-5)
    for t in (1, 1000, LONG):
        seen = x[:, :t].double().view(1, t, 2, 4)
        mean, var = seen.mean((1, 3)), seen.var((1, 3), correction=0)
        want = (seen[:, -1] - mean[..., None]) / (var[..., None] + 1e-5).sqrt()
        # An offset of 1,000 costs float32 four of its seven digits before the norm sees anything.
        assert relative_error(y[:, t - 1], want.flatten(1)) < 1e-4
    assert_equal(state.mean, mean, 1e-7, "mean")
    assert_equal(state.var, var, 1e-5, "var")


@pytest.mark.slow
def test_20_000_calls_of_one_token_drift_less_than_1e_4():
    length = 20_000
    x, parameters = long_cema()
    x = x[:, :length]
    zeros = torch.zeros(8)
    h = norm = None
    with torch.no_grad():
        for t in range(length):
            y, norm = timestep_norm(x[:, t : t + 1], zeros, zeros, 2, 1e-5, norm)
            z, h = cema(x[:, t : t + 1], *parameters, h)
        one_y, one_norm = timestep_norm(x.double(), zeros.double(), zeros.double(), 2, 1e-5)
    want = cema_end_state(x, *parameters[:3])
    assert_equal(h, torch.view_as_real(want), 1e-4, "h")
    assert_equal(z, cema(x.double(), *(p.double() for p in parameters))[0][:, -1:], 1e-4, "y")
    assert norm.count.item() == length
    assert_equal(norm.mean, one_norm.mean, 1e-7, "mean")
    assert_equal(norm.var, one_norm.var, 1e-6, "var")
    assert_equal(y, one_y[:, -1:], 1e-4, "normed")
