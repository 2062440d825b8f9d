"""The kernels on a real GPU: compared with the torch form, repeated, compiled, timed.

Every test has tiny sizes too, at which it runs on the CPU in Triton's interpreter: so that what is
asked of a GPU is known to be right before there is one.
"""

import time
from dataclasses import dataclass

import pytest
import torch

from golden_data import assert_equal, assert_precise, relative_error
from hard import (
    OPERATORS,
    RECURRENCES,
    TRITON_RUNS,
    hard_cema_parameters,
    hard_config,
    hard_model,
    hard_resets,
    hard_tokens,
    random_qkv,
    with_gradients,
)
from litmegalodon.ops import KeyValueState, cema, chunk_attention, launch, timestep_norm

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
interpreted = pytest.mark.skipif(
    not (TRITON_RUNS and launch.INTERPRETED), reason="runs where Triton interprets"
)
ON_GPU = pytest.param("cuda", marks=(pytest.mark.cuda, needs_gpu))
ON_CPU = pytest.param("cpu", marks=interpreted)
devices = pytest.mark.parametrize("device", (ON_GPU, ON_CPU))
dtypes = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("fp32", "bf16"))
recurrences = pytest.mark.parametrize("name", RECURRENCES)


@dataclass(frozen=True)
class AttentionSize:
    length: int
    z: int
    e: int
    chunk: int
    heads: int = 2


# Several tiles each way in the kernels of the device, the widest heads they take on a GPU.
ATTENTION = {"cuda": AttentionSize(700, 256, 2048, 256), "cpu": AttentionSize(40, 6, 20, 16)}
# Length and width of the recurrences.
RECURRENCE = {"cuda": (8192, 1024), "cpu": (70, 8)}
MODEL = {
    "cuda": hard_config(
        vocab_size=512, model_dim=256, z_dim=128, value_dim=512, ffn_hidden_dim=512, cema_ndim=16,
        chunk_size=256, norm_num_groups=16,
    ),
    "cpu": hard_config(num_layers=1),
}  # fmt: skip


def to(device, values):
    return {k: v.to(device) for k, v in values.items()}


# Attention.


def attention_inputs(size, cached, dtype):
    """q, k, v and, `cached`, keys and values of the chunk that the rows are in."""
    q, k, v = random_qkv(2, size.length, size.heads, size.z, size.e)
    given = {"q": 0.5 * q, "k": 0.5 * k, "v": v}
    if cached:
        _, k, v = random_qkv(2, size.chunk // 2, size.heads, size.z, size.e, seed=2)
        given |= {"state.k": 0.5 * k, "state.v": v}
    return {name: value.to(dtype) for name, value in given.items()}


def attention(given, size, device, impl, resets, dropkey):
    """Outputs on the CPU; rows stand half a chunk into theirs, the second a token less."""
    given, batch = to(device, given), given["q"].shape[0]
    position = torch.tensor([size.chunk // 2, size.chunk // 2 - 1], device=device)
    kv = None
    if "state.k" in given:
        # The second row's document began three tokens before.
        known = torch.tensor([size.chunk // 2, 3], device=device)
        kv = KeyValueState(given["state.k"], given["state.v"], known)
    out, end = chunk_attention(
        *(given[name] for name in "qkv"),
        chunk_size=size.chunk,
        position=position,
        kv=kv,
        resets=hard_resets(batch, size.length).to(device) if resets else None,
        dropkey=dropkey,
        seed=2**40 + 3,
        impl=impl,
    )
    return to("cpu", {"y": out, "end.k": end.k, "end.v": end.v})


@devices
@dtypes
@pytest.mark.parametrize(
    "cached, resets, dropkey",
    ((False, False, 0.0), (False, True, 0.1), (True, False, 0.1), (True, True, 0.0)),
    ids=("whole", "resets-dropkey", "cache-dropkey", "cache-resets"),
)
def test_attention_passes_the_precision_gate_and_repeats_its_bits(
    device, dtype, cached, resets, dropkey
):
    size = ATTENTION[device]
    given = attention_inputs(size, cached, dtype)

    def run(given, device, impl):
        def call(t):
            return attention(t, size, device, impl, resets, dropkey)

        return with_gradients(call, given, cotangents=dtype)

    exact = run({k: v.double() for k, v in given.items()}, "cpu", "torch")
    plain, got, again = (
        run(given, *how) for how in (("cpu", "torch"), (device, "triton"), (device, "triton"))
    )
    for name, value in exact.items():
        assert torch.equal(got[name], again[name]), name
        assert_precise(got[name], plain[name], value, name)


@devices
def test_attention_compiled_is_the_same(device):
    size = ATTENTION[device]
    given = attention_inputs(size, False, torch.float32)
    position = torch.zeros(2, dtype=torch.int64, device=device)
    resets = hard_resets(2, size.length).to(device)

    def call(q, k, v):
        return chunk_attention(
            q, k, v, chunk_size=size.chunk, position=position, resets=resets, impl="triton"
        )

    compiled = torch.compile(call, fullgraph=True, backend=BACKEND[device])
    want, got = (
        with_gradients(
            lambda t, f=f: {"y": f(*(to(device, t)[name] for name in "qkv"))[0].cpu()}, given
        )
        for f in (call, compiled)
    )
    for name, value in want.items():
        assert_equal(got[name], value, 1e-5, name)


# Code for a CPU needs a compiler for C++.
BACKEND = {"cuda": "inductor", "cpu": "aot_eager"}


# CEMA and TimestepNorm.


def recurrence(name, given, resets, impl):
    if name == "cema":
        y, h = cema(*given.values(), None, resets, impl=impl)
        return {"y": y, "h": h}
    y, end = timestep_norm(*given.values(), 4, 1e-5, None, resets, impl=impl)
    return {"y": y, "mean": end.mean, "var": end.var}


def recurrence_inputs(name, device, length, dim, dtype):
    """As large as a model's, made on the device."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    given = {"x": (normal(1, length, dim) + 3).to(dtype)}
    if name == "cema":
        given |= {k: v.float().to(device) for k, v in hard_cema_parameters(dim, 16, 0).items()}
    else:
        given |= {k: 0.5 * normal(dim) for k in ("weight", "bias")}
    return given, normal(1, length) > 3


@devices
@pytest.mark.parametrize("operator", [o for o in OPERATORS if o.name in RECURRENCES], ids=str)
@pytest.mark.parametrize("length", (1, 135, pytest.param(4097, marks=pytest.mark.slow)))
@pytest.mark.parametrize("with_resets", (False, True), ids=("whole", "resets"))
def test_recurrences_equal_the_torch_form_in_float64(device, operator, length, with_resets):
    if device == "cpu" and length > 135:
        pytest.skip("needs a CUDA GPU")
    given = to(device, operator.inputs(3, length, length))
    resets = hard_resets(3, length).to(device) if with_resets else None
    want, got = (
        with_gradients(lambda t, impl=impl: operator.call(t, resets, impl), given)
        for impl in ("torch", "triton")
    )
    for name, value in want.items():
        assert_equal(got[name], value, name=name)


@devices
@recurrences
def test_recurrences_repeat_their_bits(device, name):
    given, resets = recurrence_inputs(name, device, *RECURRENCE[device], torch.bfloat16)
    runs = [
        with_gradients(lambda t: recurrence(name, t, resets, "triton"), given) for _ in range(3)
    ]
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(other[key], value), key


@devices
@recurrences
def test_recurrences_compiled_are_the_same(device, name):
    given, resets = recurrence_inputs(name, device, 70, 8, torch.float32)
    compiled = torch.compile(recurrence, fullgraph=True, backend=BACKEND[device])
    want, got = (
        with_gradients(lambda t, f=f: f(name, t, resets, "triton"), given)
        for f in (recurrence, compiled)
    )
    for key, value in want.items():
        assert_equal(got[key], value, 1e-5, key)


@pytest.mark.cuda
@needs_gpu
@recurrences
def test_a_million_tokens_in_one_float32_call_are_within_1e_4(name):
    given, _ = recurrence_inputs(name, "cuda", 1_000_000, 64, torch.float32)
    got = recurrence(name, given, None, "triton")
    exact = {k: v.double() for k, v in given.items()}
    want = recurrence(name, exact, None, "torch")
    for key, value in want.items():
        assert relative_error(got[key], value) < 1e-4, key


# A model's training step.


def training_step(config, device, dtype, impl):
    """Loss and gradients of packed documents, of bfloat16 weights in `dtype`."""
    length = 3 * config.chunk_size // 2
    model = hard_model(config, torch.bfloat16, impl=impl).to(dtype).to(device)
    tokens = hard_tokens(config, 2, length).to(device)
    resets = hard_resets(2, length, config.chunk_size).to(device)
    nll, _, _ = model.loss(tokens, tokens, None, resets)
    nll.backward()
    found = {"nll": nll} | {name: p.grad for name, p in model.named_parameters()}
    return {name: value.detach().cpu().double() for name, value in found.items()}


@devices
def test_a_models_bf16_training_step_is_as_near_to_float64_as_on_a_cpu(device):
    config = MODEL[device]
    exact = training_step(config, "cpu", torch.float64, "torch")
    plain = training_step(config, "cpu", torch.bfloat16, "torch")
    got = training_step(config, device, torch.bfloat16, "triton")
    ulp = torch.finfo(torch.bfloat16).eps
    for name, value in exact.items():
        off, allowed = ((u[name] - value).norm() for u in (got, plain))
        assert off <= 2 * allowed + 2 * ulp * value.norm(), name


# Times, which nothing here asserts: they depend on the GPU.


def milliseconds(step, device, runs=9):
    """Median time of a step."""
    times = []
    for _ in range(runs + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[3:])[runs // 2]


def forward_backward(call, given):
    """A step of an operator, with the output itself as its gradient."""
    leaves = {k: v.detach().requires_grad_() for k, v in given.items()}

    def step():
        y = call(leaves)["y"]
        torch.autograd.grad(y, list(leaves.values()), y.detach())

    return step


@devices
@pytest.mark.parametrize("name", (*RECURRENCES, "chunk_attention"))
def test_times_of_an_operator_both_ways_are_shown(device, name, capsys):
    length, dim = (16_384, 2048) if device == "cuda" else (20, 8)
    if name == "chunk_attention":
        z, e, chunk = (256, 2048, 2048) if device == "cuda" else (4, 8, 8)
        qkv = random_qkv(1, length, 1, z, e)
        given = to(device, dict(zip("qkv", (u.bfloat16() for u in qkv), strict=True)))

        def call(t, impl):
            return {"y": chunk_attention(*t.values(), chunk_size=chunk, impl=impl)[0]}

    else:
        given, resets = recurrence_inputs(name, device, length, dim, torch.bfloat16)

        def call(t, impl):
            return recurrence(name, t, resets, impl)

    times = {}
    for impl in ("auto", "triton", "torch"):
        step = forward_backward(lambda t, impl=impl: call(t, impl), given)
        times[impl] = milliseconds(step, device, runs=9 if device == "cuda" else 1)
    if device == "cuda":
        with capsys.disabled():
            shown = ", ".join(f"{impl} {time:.2f}" for impl, time in times.items())
            print(f"\n{name}, L {length:,}, bf16, forward and backward, ms: {shown}")
