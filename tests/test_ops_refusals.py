"""An operator refuses what it can't serve, naming the fix, and uses what it is told to use."""

import importlib

import pytest
import torch

from hard import IMPLS, OPERATORS, hard_config, hard_model, hard_tokens
from litmegalodon.ops import chunk_attention, timestep_norm

ONE_OF_EACH = [o for o in OPERATORS if o.name in ("cema", "timestep_norm", "attention-aligned")]
operators = pytest.mark.parametrize("operator", ONE_OF_EACH, ids=lambda o: o.name)


def api_of(operator):
    """The module in which an operator chooses its implementation, and its name there."""
    name = "chunk_attention" if operator.name.startswith("attention") else operator.name
    return importlib.import_module(f"litmegalodon.ops.{name}.api"), name


@operators
@pytest.mark.parametrize(
    "dtype, message", ((torch.float16, "use bfloat16"), (torch.int64, "use float32"))
)
def test_a_dtype_that_can_not_hold_the_sums_is_refused(operator, dtype, message):
    inputs = operator.inputs(1, 4, 0)
    for name in operator.along_time:
        inputs[name] = inputs[name].to(dtype)
    for impl in ("auto", "reference", "torch"):
        with pytest.raises(ValueError, match=message):
            operator.call(inputs, None, impl)


@operators
def test_a_call_without_tokens_is_refused(operator):
    inputs = operator.inputs(1, 4, 0)
    for name in operator.along_time:
        inputs[name] = inputs[name][:, :0]
    with pytest.raises(ValueError, match="at least 1 token"):
        operator.call(inputs, None, "auto")


@operators
@pytest.mark.parametrize(
    "resets",
    (
        torch.zeros(2, 4),
        torch.zeros(2, 5, dtype=torch.bool),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(2, 4, dtype=torch.int64),
    ),
    ids=("float", "too-long", "one-row", "int64"),
)
def test_resets_of_another_shape_or_dtype_are_refused(operator, resets):
    with pytest.raises(ValueError, match=r"resets is .* must be bool \(2, 4\)"):
        operator.call(operator.inputs(2, 4, 0), resets, "auto")


@operators
@pytest.mark.parametrize("impl", ("cuda", "", "Torch"))
def test_an_unknown_implementation_is_refused_with_those_there_are(operator, impl):
    with pytest.raises(ValueError, match=f"impl='{impl}': .*reference, torch"):
        operator.call(operator.inputs(1, 4, 0), None, impl)


@operators
def test_an_implementation_that_an_operator_lacks_is_refused_not_replaced(operator):
    module, name = api_of(operator)
    if hasattr(module, f"{name}_triton"):
        return
    with pytest.raises(ValueError, match=r"impl='triton': .*available: auto, reference, torch"):
        operator.call(operator.inputs(1, 4, 0), None, "triton")


@operators
@pytest.mark.parametrize("impl, form", (("reference", "reference"), ("torch", "pytorch")))
def test_an_explicit_implementation_is_obeyed(operator, impl, form, monkeypatch):
    module, name = api_of(operator)

    class CalledError(Exception):
        pass

    def raise_called(*args):
        raise CalledError

    monkeypatch.setattr(module, f"{name}_{form}", raise_called)
    for tried in ("reference", "torch"):
        if tried == impl:
            with pytest.raises(CalledError):
                operator.call(operator.inputs(1, 4, 0), None, tried)
        else:
            operator.call(operator.inputs(1, 4, 0), None, tried)


@operators
def test_a_model_passes_its_implementation_to_every_operator(operator, monkeypatch):
    module, name = api_of(operator)
    calls = []
    for form, label in (("reference", "reference"), ("pytorch", "torch")):
        original = getattr(module, f"{name}_{form}")

        def counted(*args, original=original, label=label):
            calls.append(label)
            return original(*args)

        monkeypatch.setattr(module, f"{name}_{form}", counted)
    config = hard_config()
    for impl in ("reference", "torch"):
        calls.clear()
        hard_model(config, impl=impl)(hard_tokens(config, 1, 3))
        # Two layers; the final norm is the third TimestepNorm.
        assert calls == [impl] * (3 if name == "timestep_norm" else 2)


def test_a_model_refuses_an_unknown_implementation():
    config = hard_config()
    with pytest.raises(ValueError, match="impl='fast': must be one of auto"):
        hard_model(config, impl="fast")(hard_tokens(config, 1, 3))


def test_groups_that_do_not_divide_the_features_are_refused():
    with pytest.raises(ValueError, match=r"num_groups=5 does not divide .* 12 features"):
        timestep_norm(torch.zeros(1, 2, 12), torch.zeros(12), torch.zeros(12), 5, 1e-5)


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"chunk_size": 0}, "chunk_size=0; must be at least 1"),
        ({"dropkey": 1.0, "seed": 1}, r"dropkey=1.0; must be in \[0, 1\)"),
        ({"dropkey": -0.1, "seed": 1}, r"dropkey=-0.1; must be in \[0, 1\)"),
        ({"dropkey": 0.1}, "dropkey=0.1 needs a seed"),
    ),
    ids=("chunk_size", "dropkey-one", "dropkey-negative", "no-seed"),
)
def test_attention_settings_without_meaning_are_refused(changes, message):
    q = torch.zeros(1, 3, 2, 4)
    with pytest.raises(ValueError, match=message):
        chunk_attention(q, q, q, **({"chunk_size": 4} | changes))


def test_an_odd_number_of_features_a_head_is_refused():
    q = torch.zeros(1, 3, 2, 3)
    with pytest.raises(ValueError, match="3 features a head; RoPE needs pairs"):
        chunk_attention(q, q, q, chunk_size=4)


WRONG_SHAPES = {
    "cema": ("alpha", "delta", "theta", "gamma", "omega", "state.h"),
    "timestep_norm": ("weight", "bias", "state.mean", "state.var"),
    "attention-aligned": ("k", "state.k", "state.v"),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "operator, name",
    [(o, name) for o in OPERATORS for name in WRONG_SHAPES.get(o.name, ())],
    ids=lambda value: str(value),
)
def test_a_tensor_of_another_shape_is_refused_before_a_kernel_reads_beyond_it(operator, name, impl):
    given = operator.inputs(2, 20, 12)
    assert name in given, list(given)
    given[name] = given[name][..., :-1] if name == "k" else given[name][:1]
    with pytest.raises(ValueError, match=r"has shape .*; it must be"):
        operator.call(given, None, impl)
