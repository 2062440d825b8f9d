"""The kernels on a real GPU: compared with the torch form, repeated, timed."""

import pytest
import torch

from golden_data import assert_equal, relative_error
from hard import OPERATORS, hard_cema_parameters, hard_resets
from litmegalodon.ops import cema, timestep_norm

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
RECURRENCES = [o for o in OPERATORS if o.name in ("cema", "timestep_norm")]
operators = pytest.mark.parametrize("operator", RECURRENCES, ids=str)


def on_gpu(values):
    return {k: v.cuda() for k, v in values.items()}


def call_at_size(name, given, resets, impl):
    if name == "cema":
        y, h = cema(*given.values(), None, resets, impl=impl)
        return {"y": y, "h": h}
    y, end = timestep_norm(*given.values(), 32, 1e-5, None, resets, impl=impl)
    return {"y": y, "mean": end.mean, "var": end.var}


def at_size(name, length, dim, dtype):
    """Inputs of an operator as large as a model's, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(1, length, dim, generator=generator, device="cuda") + 3
    given = {"x": x.to(dtype)}
    if name == "cema":
        parameters = hard_cema_parameters(dim, 16, 0)
        given |= {k: v.float().cuda() for k, v in parameters.items()}
    else:
        given |= {k: 0.5 * torch.randn(dim, device="cuda") for k in ("weight", "bias")}
    resets = torch.rand(1, length, generator=generator, device="cuda") < 1e-3
    return given, resets


@operators
@pytest.mark.parametrize("length", (1, 33, 135, 4097))
@pytest.mark.parametrize("with_resets", (False, True), ids=("whole", "resets"))
def test_kernels_equal_the_torch_form_in_float64(operator, length, with_resets):
    given = on_gpu(operator.inputs(3, length, length))
    resets = hard_resets(3, length).cuda() if with_resets else None
    want, got = (
        with_gradients_on_gpu(lambda t, impl=impl: operator.call(t, resets, impl), given)
        for impl in ("torch", "triton")
    )
    for name, value in want.items():
        assert_equal(got[name], value, name=name)


def with_gradients_on_gpu(call, given, seed=7):
    """As `with_gradients`, whose cotangents are on the CPU."""
    leaves = {k: v.detach().requires_grad_() for k, v in given.items() if v.is_floating_point()}
    outputs = call(given | leaves)
    floating = {k: v for k, v in outputs.items() if v.is_floating_point() and v.requires_grad}
    generator = torch.Generator("cuda").manual_seed(seed)
    cotangents = [
        torch.randn(v.shape, generator=generator, device="cuda", dtype=v.dtype)
        for v in floating.values()
    ]
    grads = torch.autograd.grad(
        list(floating.values()), list(leaves.values()), cotangents, materialize_grads=True
    )
    result = {k: v.detach() for k, v in outputs.items()}
    return result | {f"grad.{k}": g for k, g in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("name", ("cema", "timestep_norm"))
def test_two_runs_give_the_same_bits(name):
    given, resets = at_size(name, 8192, 1024, torch.bfloat16)
    runs = [
        with_gradients_on_gpu(lambda t: call_at_size(name, t, resets, "triton"), given)
        for _ in range(3)
    ]
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(other[key], value), key


@pytest.mark.parametrize("name", ("cema", "timestep_norm"))
def test_auto_takes_the_kernels_and_they_are_faster_than_the_torch_form(name):
    given, resets = at_size(name, 16_384, 2048, torch.bfloat16)
    milliseconds = {}
    for impl in ("auto", "triton", "torch"):

        def step(impl=impl):
            with_gradients_on_gpu(lambda t: call_at_size(name, t, resets, impl), given)

        milliseconds[impl] = median_milliseconds(step)
    print(f"{name}, L 16,384, D 2,048, bf16, forward + backward, ms: {milliseconds}")
    assert milliseconds["triton"] < milliseconds["torch"]
    assert milliseconds["auto"] < 1.5 * milliseconds["triton"]


def median_milliseconds(step, runs=9):
    times = []
    for _ in range(runs + 3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times[3:])[runs // 2]


@pytest.mark.parametrize("name", ("cema", "timestep_norm"))
def test_a_million_tokens_in_one_float32_call_are_within_1e_4(name):
    given, _ = at_size(name, 1_000_000, 64, torch.float32)
    got = call_at_size(name, given, None, "triton")
    exact = {k: v.double() for k, v in given.items()}
    want = call_at_size(name, exact, None, "torch")
    for key, value in want.items():
        assert relative_error(got[key], value) < 1e-4, key


@operators
def test_compiled_by_inductor_it_is_the_same(operator):
    given = on_gpu(operator.rounded(operator.inputs(3, 135, 1), torch.float32))
    resets = hard_resets(3, 135).cuda()
    compiled = torch.compile(operator.call, fullgraph=True)
    want, got = (
        with_gradients_on_gpu(lambda t, call=call: call(t, resets, "triton"), given)
        for call in (operator.call, compiled)
    )
    for key, value in want.items():
        assert_equal(got[key], value, 1e-5, key)
