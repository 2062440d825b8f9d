"""Every implementation of an operator is the same function: outputs, states and all gradients, with hard parameters."""

import pytest
import torch
from golden_data import assert_equal
from hard import BLOCK, OPERATORS, hard_resets, with_gradients

LENGTHS = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK + 1, 200)
operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.is_floating_point():
            assert_equal(got[name], value, name=name)
        else:
            assert torch.equal(got[name], value), name


@operators
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_resets", (False, True), ids=("whole", "resets"))
def test_torch_equals_the_reference_in_outputs_states_and_gradients(operator, length, with_resets):
    given = operator.inputs(3, length, length)
    resets = hard_resets(3, length) if with_resets else None
    want, got = (
        with_gradients(lambda t, impl=impl: operator.call(t, resets, impl), given)
        for impl in ("reference", "torch")
    )
    assert_same(got, want)


@operators
def test_no_state_is_a_fresh_state(operator):
    given = operator.without_state(operator.inputs(3, 70, 1))
    resets = hard_resets(3, 70)
    want, got = (
        with_gradients(lambda t, impl=impl: operator.call(t, resets, impl), given)
        for impl in ("reference", "torch")
    )
    assert_same(got, want)


@operators
def test_a_reset_at_the_first_token_forgets_the_incoming_state(operator):
    given = operator.inputs(3, 70, 2)
    resets = torch.zeros(3, 70, dtype=torch.bool)
    resets[:, 0] = True
    for impl in ("reference", "torch"):
        result = with_gradients(lambda t, impl=impl: operator.call(t, resets, impl), given)
        alone = operator.call(operator.without_state(given), None, impl)
        assert_equal(result["y"], alone["y"], name=f"{impl} y")
        for name, value in result.items():
            if name.startswith("grad.state."):
                assert not value.any(), f"{impl} {name}"


@operators
def test_a_padding_free_call_is_causal(operator):
    given = operator.inputs(2, 100, 3)
    later = {k: v.clone() for k, v in given.items()}
    for name in operator.along_time:
        later[name][:, 70:] += 1
    for impl in ("reference", "torch"):
        before, after = (operator.call(t, None, impl)["y"] for t in (given, later))
        assert_equal(after[:, :70], before[:, :70], name=impl)
        assert not torch.equal(after[:, 70:], before[:, 70:])
