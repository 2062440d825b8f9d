"""What only the Triton forms of CEMA and TimestepNorm promise; that they are right is tested with
the other forms.
"""

from types import SimpleNamespace

import pytest
import torch

from golden_data import assert_equal
from hard import (
    OPERATORS,
    RECURRENCES,
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
from litmegalodon.ops.cema.kernels import emit_kernel, end_states_kernel, scan_kernel
from litmegalodon.ops.timestep_norm import triton as norm_form

CEMA, NORM = (o for o in OPERATORS if o.name in RECURRENCES)
operators = pytest.mark.parametrize("operator", (CEMA, NORM), ids=str)


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
    operator = NORM
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
    cema_given = CEMA.inputs(2, 20, 6)
    c = cema_form.coefficients(*(cema_given[k] for k in ("alpha", "delta", "theta", "gamma")))
    c = [v.detach().requires_grad_() for v in c]
    x, omega, h = (cema_given[k].requires_grad_() for k in ("x", "omega", "state.h"))
    norm_given = NORM.inputs(2, 20, 6)
    norm_args = [norm_given[k].requires_grad_() for k in ("x", "weight", "bias")]
    state = [norm_given[f"state.{k}"] for k in NormState._fields]
    resets = hard_resets(2, 20)
    return {
        "cema": (cema_form._forward, (x, *c, omega, h, resets)),
        "cema-fresh": (cema_form._forward, (x, *c, omega, None, None)),
        "timestep_norm": (norm_form._forward, (*norm_args, 3, 1e-5, *state, resets)),
    }


@pytest.mark.parametrize(
    "name", (pytest.param("cema", marks=pytest.mark.slow), "cema-fresh", "timestep_norm")
)
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
def test_one_graph_of_torch_compile_serves_several_lengths(operator):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(operator.call, backend=count, fullgraph=True, dynamic=True)
    for length in (41, 44, 50):
        given = operator.inputs(2, length, length)
        want, got = (call(given, None, "triton")["y"] for call in (operator.call, compiled))
        assert_equal(got, want, 1e-12)
    assert len(graphs) == 1


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


def folded(x, parts):
    """[1, parts S, D] -> [1, S, parts D]: segments side by side, as if they were channels."""
    dim = x.shape[-1]
    return x.view(parts, -1, dim).transpose(0, 1).reshape(1, -1, parts * dim)


def folded_states(states):
    """[1, J, 2, N, D] -> [1, 1, 2, N, J D]."""
    return states[0].permute(1, 2, 0, 3).flatten(2)[None, None].contiguous()


@pytest.mark.slow
def test_cema_over_a_million_tokens_in_one_float32_call_is_within_1e_4():
    # A program does to a segment what it does to any other, so the interpreter works on all 1,000
    # at once. Nothing else differs from a call: the same kernels, coefficients and sums.
    parts, size, dim, order, block_n = 1000, 1000, 8, 3, 4
    length = parts * size
    x = torch.randn(1, length, dim, generator=torch.Generator().manual_seed(8)) + 3
    parameters = {k: v.float() for k, v in hard_cema_parameters(dim, order, 8).items()}
    *coefficient_parameters, omega = parameters.values()
    c = cema_form.coefficients(*coefficient_parameters)
    segments = SimpleNamespace(size=size, last=size, block_n=block_n, dtype=torch.float32)
    tables = cema_form._Tables(c, omega, segments)
    common = {"L": size, "D": parts * dim, "J": 1, "S": size, "BLOCK_N": block_n, "UNROLL": 8}
    common |= {"p_x": folded(x, parts), "p_table": tables.powers.repeat(1, 1, 1, parts)}
    common |= {"p_resets": None, "p_marks": None, "REVERSE": False}
    configs = (launch.Config({"BLOCK_D": 8192}),)

    ends = torch.empty(1, 1, 2, block_n, parts * dim)
    launch.launch(end_states_kernel, lambda tiles: (1, 1, 1), common | {"p_ends": ends}, configs)
    ends = ends.view(2, block_n, parts, dim).permute(2, 0, 1, 3)[None].contiguous()
    entering, h = torch.empty_like(ends), torch.empty(1, dim, order, 2)
    arguments = {"p_ends": ends, "p_table": tables.carry, "p_state": None, "p_resets": None}
    arguments |= {"p_entering": entering, "p_last": h, "D": dim, "N": order, "J": parts}
    arguments |= {"BLOCK_N": block_n, "REVERSE": False}
    launch.launch(scan_kernel, lambda tiles: (1, 1), arguments, (launch.Config({"BLOCK": 32}),))
    y = torch.empty_like(common["p_x"])
    arguments = {"p_entering": folded_states(entering), "p_y": y}
    arguments |= {"p_taps": tables.taps.repeat(1, parts)}
    launch.launch(emit_kernel, lambda tiles: (1, 1, 1), common | arguments, configs)
    y = y.view(size, parts, dim).transpose(0, 1).reshape(x.shape)

    exact = (v.double() for v in (x, *parameters.values()))
    want, want_h = cema(*exact, impl="torch")
    assert_equal(h, want_h, 1e-4, "h")
    assert_equal(y, want, 1e-4, "y")


@pytest.mark.slow
def test_timestep_norm_over_a_million_tokens_in_one_float32_call_is_within_1e_4(monkeypatch):
    # Long segments only to be quick in the interpreter; they are as many additions in a row.
    monkeypatch.setattr(norm_form, "segment_length", lambda length: 8192)
    length = 1_000_000
    x = 1e3 + torch.randn(1, length, 8, generator=torch.Generator().manual_seed(9))
    zeros = torch.zeros(8)
    y, state = timestep_norm(x, zeros, zeros, 2, 1e-5, impl="triton")
    for t in (1, 1000, length):
        seen = x[:, :t].double().view(1, t, 2, 4)
        mean, var = seen.mean((1, 3)), seen.var((1, 3), correction=0)
        want = (seen[:, -1] - mean[..., None]) / (var[..., None] + 1e-5).sqrt()
        # An offset of 1,000 costs float32 four of its seven digits before the norm sees anything.
        assert_equal(y[:, t - 1], want.flatten(1), 1e-4, f"y after {t}")
    assert_equal(state.mean, mean, 1e-7, "mean")
    assert_equal(state.var, var, 1e-5, "var")
