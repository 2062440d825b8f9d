"""A model's memory is complete: calls may be cut and documents packed anywhere."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from golden_data import assert_equal, relative_error
from hard import fresh_at, hard_config, hard_model, hard_resets, hard_state, hard_tokens
from litmegalodon.models import MegalodonState

LENGTH = 90
POSITIONS = [21, 32, 47]


@pytest.fixture(scope="module")
def model():
    return hard_model(hard_config(num_layers=2))


def gradients(model, objective):
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(objective, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


def assert_states_equal(got, want):
    got, want = got.tensors(), want.tensors()
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.is_floating_point():
            assert_equal(got[name], value, name=name)
        else:
            assert torch.equal(got[name], value), name


def documents_of(resets):
    """(row, first token, end token) of every document of bool [B, L]."""
    for row, begins in enumerate(resets):
        edges = sorted({0, *begins.nonzero().flatten().tolist(), resets.shape[1]})
        yield from ((row, a, b) for a, b in pairwise(edges))


@pytest.mark.parametrize("with_state", (False, True), ids=("fresh", "state"))
@pytest.mark.parametrize("with_resets", (False, True), ids=("whole", "resets"))
def test_torch_equals_the_reference_in_logits_state_and_gradients(with_state, with_resets):
    config = hard_config()
    tokens, targets = (hard_tokens(config, 3, 70, seed) for seed in (1, 2))
    resets = hard_resets(3, 70) if with_resets else None
    results = []
    for impl in ("reference", "torch"):
        model = hard_model(config, impl=impl)
        state = hard_state(model, POSITIONS) if with_state else None
        logits, out = model(tokens, state, resets)
        memory = sum(v.square().sum() for v in out.tensors().values() if v.is_floating_point())
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten()) + 1e-3 * memory
        results.append((logits, out, gradients(model, loss)))
    (want, want_state, want_grads), (got, got_state, got_grads) = results
    assert_equal(got, want, name="logits")
    assert_states_equal(got_state, want_state)
    for name, grad in want_grads.items():
        assert_equal(got_grads[name], grad, name=name)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    cuts=st.lists(st.integers(1, LENGTH - 1), max_size=6),
    begins=st.lists(st.tuples(st.integers(0, 2), st.integers(0, LENGTH - 1)), max_size=6),
)
def test_any_split_into_calls_equals_one_call(model, cuts, begins):
    tokens = hard_tokens(model.config, 3, LENGTH, 3)
    resets = torch.zeros(3, LENGTH, dtype=torch.bool)
    for row, token in begins:
        resets[row, token] = True
    start = hard_state(model, POSITIONS)
    want, want_state = model(tokens, start, resets if begins else None)

    state, parts = start, []
    edges = [0, *sorted(set(cuts)), LENGTH]
    for a, b in pairwise(edges):
        logits, state = model(tokens[:, a:b], state, resets[:, a:b] if begins else None)
        parts.append(logits)
    assert_equal(torch.cat(parts, dim=1), want, name="logits")
    assert_states_equal(state, want_state)


def test_gradients_flow_through_the_state_as_if_there_were_one_call(model):
    tokens, targets = (hard_tokens(model.config, 2, 60, seed) for seed in (4, 5))
    resets = hard_resets(2, 60)
    nll, valid, _ = model.loss(tokens, targets, None, resets)
    want = gradients(model, nll / valid)
    state, total = None, 0.0
    for part in (slice(0, 13), slice(13, 14), slice(14, 60)):
        nll, _, state = model.loss(tokens[:, part], targets[:, part], state, resets[:, part])
        total = total + nll
    for name, grad in gradients(model, total / valid).items():
        assert_equal(grad, want[name], name=name)


@pytest.mark.parametrize("positions", ([0, 0], [21, 47]), ids=("aligned", "staggered"))
def test_a_packed_row_equals_its_documents_alone(model, positions):
    tokens, targets = (hard_tokens(model.config, 2, LENGTH, seed) for seed in (6, 7))
    resets = hard_resets(2, LENGTH)
    start = fresh_at(model.config, positions)
    packed, _ = model(tokens, start, resets)
    nll, _, end = model.loss(tokens, targets, start, resets)
    packed_grads = gradients(model, nll)

    alone = torch.empty_like(packed)
    total, ends = 0.0, {}
    for row, a, b in documents_of(resets):
        fresh = MegalodonState.fresh(model.config, 1, positions[row] + a, torch.float64)
        words, goals = (u[row : row + 1, a:b] for u in (tokens, targets))
        alone[row, a:b] = model(words, fresh)[0][0]
        nll, _, ends[row] = model.loss(words, goals, fresh)
        total = total + nll
    assert_equal(packed, alone, name="logits")
    for name, grad in gradients(model, total).items():
        assert_equal(packed_grads[name], grad, name=name)
    for row, state in ends.items():
        packed_end = end.select([row]).tensors()
        for name, value in state.tensors().items():
            mine = packed_end[name]
            if name.endswith((".k", ".v")):
                # Slots past a row's own place are padding up to the longest row's.
                mine = mine[:, : value.shape[1]]
            assert_equal(mine, value, name=name)


def test_where_a_document_stands_on_the_grid_matters(model):
    tokens = hard_tokens(model.config, 1, 20, 8)
    here, there = (model(tokens, fresh_at(model.config, [p]))[0] for p in (0, 5))
    assert relative_error(there, here) > 1e-3


PARTS = ("norm", "h", "kv", "final_norm")


@pytest.mark.parametrize("part", PARTS)
def test_a_dropped_part_of_the_state_would_be_seen(model, part):
    tokens = hard_tokens(model.config, 3, 40, 9)
    state, fresh = hard_state(model, POSITIONS), fresh_at(model.config, POSITIONS)
    if part == "final_norm":
        broken = replace(state, norm=fresh.norm)
    else:
        layers = tuple(
            a._replace(**{part: getattr(b, part)})
            for a, b in zip(state.layers, fresh.layers, strict=True)
        )
        broken = replace(state, layers=layers)
    whole, without = (model(tokens, s)[0] for s in (state, broken))
    far = 0 if part == "kv" else -1
    assert relative_error(without[:, far], whole[:, far]) > 1e-3


def test_memory_has_the_same_size_however_much_was_read(model):
    sizes = set()
    state = None
    for length in (16, 64, 3 * 16):
        state = model(hard_tokens(model.config, 1, length), state)[1].detach()
        sizes.add(tuple(tuple(v.shape) for v in state.tensors().values()))
    assert len(sizes) == 1
