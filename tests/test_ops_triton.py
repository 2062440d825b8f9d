"""What only the Triton forms of CEMA and TimestepNorm promise; that they are right is tested with
the other forms.
"""

import pytest
import torch

from golden_data import assert_equal
from hard import (
    OPERATORS,
    TRITON_RUNS,
    draws,
    hard_cema_parameters,
    hard_resets,
    with_gradients,
)
from litmegalodon.ops import NormState, cema, launch, timestep_norm

if not TRITON_RUNS:
    pytest.skip("needs Triton", allow_module_level=True)

from litmegalodon.ops.cema import triton as cema_form
from litmegalodon.ops.timestep_norm import triton as norm_form

RECURRENCES = [o for o in OPERATORS if o.has_triton]
operators = pytest.mark.parametrize("operator", RECURRENCES, ids=str)


def same(operator, given, resets, tolerance=1e-10):
    want, got = (
        with_gradients(lambda t, impl=impl: operator(t, resets, impl), given)
        for impl in ("torch", "triton")
    )
    for name, value in want.items():
        assert_equal(got[name], value, tolerance, name)


@pytest.mark.parametrize(
    "dim, order",
    [
        (40, 1),
        (33, 16),
        pytest.param(5, 20, marks=pytest.mark.slow),
        pytest.param(20, 32, marks=pytest.mark.slow),
    ],
)
def test_cema_serves_any_number_of_channels_and_up_to_32_states(dim, order):
    normal = draws(1)
    given = {"x": normal(1, 45, dim) + 3, "h": normal(1, dim, order, 2)}
    given |= hard_cema_parameters(dim, order, 1)

    def call(t, resets, impl):
        y, h = cema(*(t[k] for k in t if k != "h"), t["h"], resets, impl=impl)
        return {"y": y, "h": h}

    same(call, given, hard_resets(1, 45))


@pytest.mark.parametrize("features", (1, 6, pytest.param(300, marks=pytest.mark.slow)))
def test_timestep_norm_serves_any_size_of_a_group(features):
    normal = draws(2)
    dim = 2 * features
    given = {"x": normal(1, 45, dim) + 3, "weight": normal(dim), "bias": normal(dim)}

    def call(t, resets, impl):
        y, end = timestep_norm(t["x"], t["weight"], t["bias"], 2, 1e-5, None, resets, impl=impl)
        return {"y": y, "mean": end.mean, "var": end.var}

    # A single feature's variance is nothing but rounding at a document's first token.
    same(call, given, None if features == 1 else hard_resets(1, 45), 1e-8)


def test_a_scan_of_statistics_in_several_parts_is_one_scan(monkeypatch):
    operator = RECURRENCES[1]
    monkeypatch.setattr(norm_form, "SCAN", 2)
    same(operator.call, operator.inputs(2, 100, 3), hard_resets(2, 100))


@operators
def test_no_kernel_relies_on_memory_that_happens_to_be_zero(operator, monkeypatch):
    given = operator.inputs(2, 40, 4)
    resets = hard_resets(2, 40)
    want = with_gradients(lambda t: operator.call(t, resets, "triton"), given)
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def poisoned(*args, original=original, **kwargs):
            out = original(*args, **kwargs)
            return out.fill_(torch.nan) if out.is_floating_point() else out.fill_(123)

        monkeypatch.setattr(torch, name, poisoned)
    got = with_gradients(lambda t: operator.call(t, resets, "triton"), given)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@operators
def test_only_some_inputs_need_gradients(operator):
    given = operator.inputs(1, 20, 5)
    given["x"].requires_grad_()
    out = operator.call(given, None, "triton")
    state = next(v for k, v in out.items() if k.startswith("state.") and v.requires_grad)
    # Of the state alone: no gradient of y comes in.
    got = torch.autograd.grad(state.sum(), given["x"])[0]
    want = torch.autograd.grad(
        next(
            v
            for k, v in operator.call(given, None, "reference").items()
            if k.startswith("state.") and v.requires_grad
        ).sum(),
        given["x"],
    )[0]
    assert_equal(got, want)


def custom_operators():
    cema_given = RECURRENCES[0].inputs(2, 20, 6)
    c = cema_form.coefficients(*(cema_given[k] for k in ("alpha", "delta", "theta", "gamma")))
    c = [v.detach().requires_grad_() for v in c]
    x, omega, h = (cema_given[k].requires_grad_() for k in ("x", "omega", "state.h"))
    norm_given = RECURRENCES[1].inputs(2, 20, 6)
    norm_args = [norm_given[k].requires_grad_() for k in ("x", "weight", "bias")]
    state = [norm_given[f"state.{k}"] for k in NormState._fields]
    resets = hard_resets(2, 20)
    return {
        "cema": (cema_form._forward, (x, *c, omega, h, resets)),
        "cema-fresh": (cema_form._forward, (x, *c, omega, None, None)),
        "timestep_norm": (norm_form._forward, (*norm_args, 3, 1e-5, *state, resets)),
    }


@pytest.mark.parametrize("name", ("cema", "cema-fresh", "timestep_norm"))
def test_the_operators_are_registered_as_torch_wants_them(name):
    # Schema, fake tensors, autograd registration and tracing.
    op, args = custom_operators()[name]
    torch.library.opcheck(op, args)


@operators
def test_torch_compile_takes_the_whole_operator_without_a_break(operator):
    given = operator.inputs(2, 20, 7)
    resets = hard_resets(2, 20)
    want = with_gradients(lambda t: operator.call(t, resets, "triton"), given)
    compiled = torch.compile(operator.call, backend="aot_eager", fullgraph=True)
    got = with_gradients(lambda t: compiled(t, resets, "triton"), given)
    for name, value in want.items():
        assert_equal(got[name], value, 1e-12, name)


@operators
def test_torch_compile_leaves_the_torch_form_as_it_is(operator):
    given = operator.inputs(2, 20, 8)
    resets = hard_resets(2, 20)
    compiled = torch.compile(operator.call, backend="eager")
    want, got = (call(given, resets, "torch")["y"] for call in (operator.call, compiled))
    assert torch.equal(got, want)


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def listed_cema(batch, length, dim, order, resets):
    """The launches of CEMA forward and backward, on tensors without memory."""
    x = meta(batch, length, dim, dtype=torch.bfloat16)
    c = cema_form.coefficients(
        meta(dim, order, 1), meta(dim, order, 1), meta(dim, 1, 1), meta(dim, order, 2)
    )
    omega, h = meta(dim, 1), meta(batch, dim, order, 2)
    with launch.recording() as launches:
        y, h, entering = cema_form.forward_kernels(x, c, omega, h, resets)
        cema_form.backward_kernels(y, h, x, c, omega, h, resets, h, entering)
    return launches


def listed_norm(batch, length, dim, groups, resets):
    """The launches of TimestepNorm forward and backward, on tensors without memory."""
    x, weight = meta(batch, length, dim, dtype=torch.bfloat16), meta(dim)
    state = NormState(*(v.to("meta") for v in NormState.fresh(batch, groups)))
    with launch.recording() as launches:
        y, end, *saved = norm_form.forward_kernels(x, weight, weight, groups, 1e-5, state, resets)
        norm_form.backward_kernels(y, end.mean, end.var, x, weight, groups, 1e-5, resets, *saved)
    return launches


@pytest.mark.parametrize("listed, number", ((listed_cema, 7), (listed_norm, 6)))
@pytest.mark.parametrize("with_resets", (False, True), ids=("whole", "resets"))
def test_kernels_are_listed_at_any_size_without_running_them(listed, number, with_resets):
    resets = meta(2, 32_768, dtype=torch.bool) if with_resets else None
    launches = listed(2, 32_768, 4096, 16, resets)
    assert len(launches) == number
    for entry in launches:
        assert min(entry.grid(dict(entry.configs[0].tiles))) >= 1
