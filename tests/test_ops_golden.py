"""Every implementation of every operator equals the float64 golden vectors: outputs, states, all
gradients.
"""

import pytest
import torch

from golden_data import assert_equal, cases, describe, tensors
from hard import TRITON_RUNS
from litmegalodon.ops import KeyValueState, NormState, cema, chunk_attention, timestep_norm

IMPLS = ("reference", "torch")
WITH_TRITON = (*IMPLS, *(("triton",) if TRITON_RUNS else ()))


def leaves(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.requires_grad_() if v.is_floating_point() else v for k, v in values.items()}


def assert_gradients(objective, given, want, kind):
    got = torch.autograd.grad(
        objective, [given[name] for name in want], retain_graph=True, materialize_grads=True
    )
    for (name, grad), value in zip(want.items(), got, strict=True):
        assert_equal(value, grad, name=f"{kind}.{name}")


def every(name):
    """All cases with all implementations; the interpreter is slow at the longest."""
    for case in cases(name):
        for impl in WITH_TRITON:
            slow = impl == "triton" and case.startswith("L200")
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(case, impl, id=f"{case}-{impl}", marks=marks)


@pytest.mark.parametrize("case, impl", list(every("op_cema")))
def test_cema(case, impl):
    given = leaves(tensors("op_cema", f"{case}.in"))
    want, cot = tensors("op_cema", f"{case}.out"), tensors("op_cema", f"{case}.cot")
    parameters = [given[k] for k in ("x", "alpha", "delta", "theta", "gamma", "omega")]
    y, h = cema(*parameters, given.get("h0"), impl=impl)
    assert_equal(y, want["y"], name="y")
    assert_equal(h, want["h"], name="h")
    for kind, objective in (
        ("grad", (cot["y"] * y).sum() + (cot["h"] * h).sum()),
        ("grad_y_only", (cot["y"] * y).sum()),
    ):
        assert_gradients(objective, given, tensors("op_cema", f"{case}.{kind}"), kind)


@pytest.mark.parametrize("case, impl", list(every("op_timestep_norm")))
def test_timestep_norm(case, impl):
    meta = describe("op_timestep_norm")
    given = leaves(tensors("op_timestep_norm", f"{case}.in"))
    want, cot = (tensors("op_timestep_norm", f"{case}.{k}") for k in ("out", "cot"))
    state = None
    if "mean" in given:
        state = NormState(given["count"], given["mean"], given["var"])
    parameters = [given[k] for k in ("x", "weight", "bias")]
    settings = {"padding_mask": given.get("padding_mask"), "impl": impl}
    if impl == "triton" and "padding_mask" in given:
        with pytest.raises(ValueError, match="no padding_mask; use impl='torch'"):
            timestep_norm(*parameters, meta["G"], meta["eps"], state, **settings)
        return
    y, out = timestep_norm(*parameters, meta["G"], meta["eps"], state, **settings)
    assert torch.equal(out.count, want["count"])
    for name, got in (("y", y), ("mean", out.mean), ("var", out.var)):
        assert_equal(got, want[name], name=name)
    by_y = (cot["y"] * y).sum()
    by_all = by_y
    for name, got in (("mean", out.mean), ("var", out.var)):
        if name in cot:
            by_all = by_all + (cot[name] * got).sum()
    for kind, objective in (("grad", by_all), ("grad_y_only", by_y)):
        assert_gradients(objective, given, tensors("op_timestep_norm", f"{case}.{kind}"), kind)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", describe("op_chunk_attention")["cases"], ids=lambda c: c["name"])
def test_chunk_attention(case, impl):
    name = case["name"]
    given = leaves(tensors("op_chunk_attention", f"{name}.in"))
    want, cot = (tensors("op_chunk_attention", f"{name}.{k}") for k in ("out", "cot"))
    kv = None
    if case["cache"]:
        kv = KeyValueState(given["kc"], given["vc"], torch.full((2,), case["cache"]))
    out, end = chunk_attention(
        given["q"],
        given["k"],
        given["v"],
        chunk_size=case["chunk"],
        rope_base=case["rope_base"],
        position=case["cache"],
        kv=kv,
        impl=impl,
    )
    assert_equal(out, want["o"], name="o")
    for got, key in ((end.k, "k"), (end.v, "v")):
        if key in want:
            assert_equal(got, want[key], name=key)
        else:
            assert got.shape[1] == 0
    objective = sum(
        (cot[key] * got).sum()
        for key, got in (("o", out), ("k", end.k), ("v", end.v))
        if key in cot
    )
    assert_gradients(objective, given, tensors("op_chunk_attention", f"{name}.grad"), "grad")
