"""Any split of a sequence into calls gives what one call gives: outputs, last state, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_data import assert_equal
from hard import FORMS, OPERATORS, with_gradients

operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)
LENGTH = 150
places = st.lists(st.integers(1, LENGTH - 1), max_size=5)
documents = st.lists(st.tuples(st.integers(0, 2), st.integers(0, LENGTH - 1)), max_size=8)
quickly = settings(max_examples=12, deadline=None, derandomize=True, database=None)


def resets_at(begins):
    """bool [3, LENGTH], True at the (row, token) pairs given."""
    resets = torch.zeros(3, LENGTH, dtype=torch.bool)
    for row, token in begins:
        resets[row, token] = True
    return resets


def assert_split_is_whole(operator, cuts, resets, impl="torch"):
    inputs = operator.inputs(3, LENGTH, 12)
    whole = with_gradients(lambda t: operator.call(t, resets, impl), inputs)
    split = with_gradients(lambda t: operator.in_calls(t, resets, cuts, impl), inputs)
    for name, value in whole.items():
        if value.is_floating_point():
            assert_equal(split[name], value, name=f"{name} cut at {cuts}")
        else:
            assert torch.equal(split[name], value), f"{name} cut at {cuts}"


@operators
@quickly
@given(cuts=places, begins=documents)
def test_any_split_into_calls_equals_one_call(operator, cuts, begins):
    assert_split_is_whole(operator, cuts, resets_at(begins))


@operators
@quickly
@given(cuts=places)
def test_any_split_of_one_document_equals_one_call(operator, cuts):
    assert_split_is_whole(operator, cuts, None)


@operators
@pytest.mark.parametrize("impl", ("reference", "torch"))
def test_one_token_a_call_equals_one_call(operator, impl):
    assert_split_is_whole(operator, list(range(1, 40)), resets_at([(0, 7), (1, 20)]), impl)


@pytest.mark.parametrize("operator, impl", [form for form in FORMS if form[1] == "triton"], ids=str)
@pytest.mark.slow
@pytest.mark.parametrize("cuts", ((1, 5, 64), (8, 31, 32, 33, 149)), ids=str)
def test_split_into_calls_the_kernels_give_what_one_call_gives(operator, impl, cuts):
    resets = resets_at([(0, 4), (0, 5), (0, 63), (0, 64), (0, 149), (1, 1), (1, 31), (1, 32)])
    assert_split_is_whole(operator, list(cuts), resets, impl)


@operators
def test_what_an_operator_remembers_reaches_the_far_end(operator):
    if operator.name == "attention-long-chunk":
        length, far = 120, 119
    else:
        length, far = (11, 10) if operator.name.startswith("attention") else (LENGTH, LENGTH - 1)
    inputs = operator.inputs(1, length, 13)
    with_memory, without = (
        operator.call(t, None, "torch")["y"][:, far]
        for t in (inputs, operator.without_state(inputs))
    )
    assert ((with_memory - without).abs().max() / without.abs().max()) > 1e-3
