"""All implementations of an operator are one function: outputs, states and all gradients."""

import pytest
import torch

from golden_data import assert_equal
from hard import BLOCK, FORMS, OPERATORS, hard_resets, with_gradients
from litmegalodon.ops import NormState, timestep_norm

LENGTHS = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK + 1, 200)
# The interpreter is slow: segments of 32 tokens, none, one and more of them, whole and not.
LENGTHS_TRITON = (1, 2, 31, 32, 33, 64, 135, 200)
QUICK = {(1, False), (1, True), (33, False), (135, True)}


def cases():
    for operator, impl in FORMS:
        for length in LENGTHS_TRITON if impl == "triton" else LENGTHS:
            for with_resets in (False, True):
                slow = impl == "triton" and (length, with_resets) not in QUICK
                name = f"{operator}-{impl}-{length}-{'resets' if with_resets else 'whole'}"
                marks = pytest.mark.slow if slow else ()
                yield pytest.param(operator, impl, length, with_resets, id=name, marks=marks)


forms = pytest.mark.parametrize("operator, impl", FORMS, ids=str)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.is_floating_point():
            assert_equal(got[name], value, name=name)
        else:
            assert torch.equal(got[name], value), name


@pytest.mark.parametrize("operator, impl, length, with_resets", list(cases()))
def test_a_form_equals_the_reference_in_outputs_states_and_gradients(
    operator, impl, length, with_resets
):
    given = operator.inputs(3, length, length)
    resets = hard_resets(3, length) if with_resets else None
    want, got = (
        with_gradients(lambda t, impl=impl: operator.call(t, resets, impl), given)
        for impl in ("reference", impl)
    )
    assert_same(got, want)


@forms
def test_no_state_is_a_fresh_state(operator, impl):
    given = operator.without_state(operator.inputs(3, 70, 1))
    resets = hard_resets(3, 70)
    want, got = (
        with_gradients(lambda t, impl=impl: operator.call(t, resets, impl), given)
        for impl in ("reference", impl)
    )
    assert_same(got, want)


@forms
def test_a_reset_at_the_first_token_forgets_the_incoming_state(operator, impl):
    given = operator.inputs(3, 70, 2)
    resets = torch.zeros(3, 70, dtype=torch.bool)
    resets[:, 0] = True
    for tried in ("reference", impl):
        result = with_gradients(lambda t, tried=tried: operator.call(t, resets, tried), given)
        alone = operator.call(operator.without_state(given), None, tried)
        assert_equal(result["y"], alone["y"], name=f"{tried} y")
        for name, value in result.items():
            if name.startswith("grad.state."):
                assert not value.any(), f"{tried} {name}"


@forms
def test_a_token_sees_nothing_after_it(operator, impl):
    given = operator.inputs(2, 100, 3)
    later = {k: v.clone() for k, v in given.items()}
    for name in operator.along_time:
        later[name][:, 70:] += 1
    for tried in ("reference", impl):
        before, after = (operator.call(t, None, tried)["y"] for t in (given, later))
        assert_equal(after[:, :70], before[:, :70], name=tried)
        assert not torch.equal(after[:, 70:], before[:, 70:])


@pytest.mark.parametrize("with_resets", (False, True), ids=("whole", "resets"))
def test_padded_tokens_change_nothing_and_may_hold_anything(with_resets):
    norm = next(o for o in OPERATORS if o.name == "timestep_norm")
    given = norm.inputs(3, 80, 4)
    resets = hard_resets(3, 80) if with_resets else None
    padding = torch.rand(3, 80, generator=torch.Generator().manual_seed(0)) < 0.3
    padding[0, :3] = True
    padding[2] = True

    def call(t, impl):
        state = NormState(*(t[f"state.{k}"] for k in NormState._fields))
        y, end = timestep_norm(
            t["x"], t["weight"], t["bias"], 3, 1e-5, state, resets, padding, impl=impl
        )
        return {"y": y} | {f"state.{k}": v for k, v in end._asdict().items()}

    want = with_gradients(lambda t: call(t, "reference"), given)
    assert_same(with_gradients(lambda t: call(t, "torch"), given), want)
    poisoned = given | {"x": torch.where(padding[..., None], torch.nan, given["x"])}
    got = with_gradients(lambda t: call(t, "torch"), poisoned)
    assert_same(got, want)
    assert not got["y"][padding].any()
    assert not got["grad.x"][padding].any()
