"""The state before each stretch of a row, from what the stretches leave, is that of one call."""

from itertools import pairwise

import pytest
import torch

from golden_data import assert_equal
from hard import IMPLS, OPERATORS, draws, hard_config, hard_model, hard_tokens, with_gradients
from litmegalodon.models import Megalodon, MegalodonState
from litmegalodon.models.span import Span
from litmegalodon.ops import NormState, cema, cema_end, timestep_norm, timestep_norm_end

CEMA, NORM = OPERATORS[:2]
COEFFICIENTS = ("alpha", "delta", "theta", "gamma")
STRETCH, SIZES = 40, (1, 2, 4)
ROWS = 4


class Place:
    """An exchange without processes, for what does not gather."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def boundary_resets(size, stretch=STRETCH):
    """bool [ROWS, size * stretch]: at every awkward place, at boundaries only, at random, none."""
    length = size * stretch
    resets = torch.zeros(ROWS, length, dtype=torch.bool)
    edges = [i * stretch for i in range(1, size)]
    awkward = [0, length - 1, *(e + d for e in edges for d in (-1, 0, 1))]
    resets[0, awkward] = True
    resets[1, edges[::2]] = True
    resets[2] = torch.rand(length, generator=torch.Generator().manual_seed(size)) < 0.02
    return resets


def cema_arguments(given):
    return [given[name] for name in (*COEFFICIENTS, "omega")]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("length", (1, 64, 75))
@pytest.mark.parametrize("some", (False, True), ids=("one document", "documents"))
def test_an_end_is_the_operator_s_state_with_its_gradients(impl, length, some):
    resets = None
    if some:
        resets = torch.zeros(2, length, dtype=torch.bool)
        resets[0, length // 2] = resets[0, length - 1] = True
    pairs = {
        CEMA: (
            lambda g: {"h": cema_end(g["x"], *cema_arguments(g), resets, impl=impl)},
            lambda g: {"h": cema(g["x"], *cema_arguments(g), None, resets, impl="reference")[1]},
        ),
        NORM: (
            lambda g: timestep_norm_end(g["x"], 3, resets, impl=impl)._asdict(),
            lambda g: timestep_norm(
                g["x"], g["weight"], g["bias"], 3, 1e-5, None, resets, impl="reference"
            )[1]._asdict(),
        ),
    }
    for operator, (ours, reference) in pairs.items():
        given = operator.without_state(operator.inputs(2, length, 3))
        want = with_gradients(reference, given)
        for name, value in with_gradients(ours, given).items():
            assert_equal(value, want[name], 1e-10, f"{operator} {name}")


def stretches(x, size):
    return [x[:, a:b] for a, b in pairwise(range(0, (size + 1) * STRETCH, STRETCH))]


@pytest.mark.parametrize("size", SIZES)
def test_merged_statistics_are_those_of_one_call(size):
    given = NORM.inputs(ROWS, size * STRETCH, 5)
    resets = boundary_resets(size)
    state = NormState(*(given[f"state.{name}"] for name in NormState._fields))

    def run(x, state, resets):
        return timestep_norm(x, given["weight"], given["bias"], 3, 1e-5, state, resets)[1]

    parts = list(zip(stretches(given["x"], size), stretches(resets, size), strict=True))
    ends = [timestep_norm_end(x, 3, r) for x, r in parts]
    gathered = torch.stack([torch.stack([end.mean, end.var]) for end in ends])
    want = state
    for rank, (x, r) in enumerate(parts):
        span = Span(Place(rank, size), resets)
        before, after = span.norm_states(gathered, state)
        # Where the stretch begins with a document, or the row has read nothing, any state will do.
        inside = ~r[:, 0] & (want.count > 0)
        for name in NormState._fields:
            assert_equal(getattr(before, name)[inside], getattr(want, name)[inside], 1e-12, name)
        want = run(x, want, r)
    for name in NormState._fields:
        assert_equal(getattr(after, name), getattr(want, name), 1e-12, name)


@pytest.mark.parametrize("size", SIZES)
def test_merged_moving_averages_are_those_of_one_call(size):
    given = CEMA.inputs(ROWS, size * STRETCH, 5)
    resets = boundary_resets(size)
    parameters = cema_arguments(given)
    parts = list(zip(stretches(given["x"], size), stretches(resets, size), strict=True))
    gathered = torch.stack([cema_end(x, *parameters, r) for x, r in parts])
    want = given["state.h"]
    for rank, (x, r) in enumerate(parts):
        span = Span(Place(rank, size), resets)
        before, after = span.cema_states(gathered, given["state.h"], parameters[:4])
        inside = ~r[:, 0]
        assert_equal(before[inside], want[inside], 1e-12, f"h before stretch {rank}")
        want = cema(x, *parameters, want, r)[1]
    assert_equal(after, want, 1e-12, "h after the row")


@pytest.mark.parametrize("value", (torch.nan, torch.inf, 1e300))
def test_what_a_closed_document_has_left_is_not_looked_at(value):
    """Neither in the merged state nor in any gradient."""
    size = 4
    resets = torch.zeros(1, size * STRETCH, dtype=torch.bool)
    resets[0, 2 * STRETCH - 3] = True  # in stretch 1: what 0 leaves and what was before end there
    span = Span(Place(3, size), resets)
    normal = draws(2)
    parameters = cema_arguments(CEMA.inputs(1, 1, 5))[:4]
    moments, h = normal(size, 2, 1, 3) ** 2, normal(size, 1, 6, 3, 2)
    old_moments, old_h = normal(2, 1, 3) ** 2, normal(1, 6, 3, 2)

    def run(bad):
        gathered = [moments.clone(), h.clone()]
        before = [old_moments.clone(), old_h.clone()]
        if bad:
            for closed in (gathered[0][0], gathered[1][0], *before):
                closed.fill_(value)
        leaves = [u.requires_grad_() for u in (*gathered, *(p.clone() for p in parameters))]
        norm = NormState(torch.tensor([7]), *before[0])
        statistics = span.norm_states(leaves[0], norm)[0]
        merged = span.cema_states(leaves[1], before[1], tuple(leaves[2:]))[0]
        outputs = (statistics.mean, statistics.var, merged)
        total = sum((u * u).sum() for u in outputs)
        return *outputs, *torch.autograd.grad(total, leaves, materialize_grads=True)

    for got, want in zip(run(bad=True), run(bad=False), strict=True):
        assert torch.equal(got, want)


def test_rows_that_can_t_be_shared_are_refused():
    config = hard_config()
    model = hard_model(config)
    for row, message in ((65, "rows of 65 tokens"), (48, "must be whole chunks of chunk_size=16")):
        resets = torch.zeros(1, row, dtype=torch.bool)
        with pytest.raises(ValueError, match=message):
            span = Span(Place(0, 2), resets)
            tokens = span.part(hard_tokens(config, 1, row))
            model.loss(tokens, tokens, span=span)
    state = MegalodonState.fresh(config, 1, position=5, dtype=torch.float64)
    span = Span(Place(0, 2), torch.zeros(1, 32, dtype=torch.bool))
    tokens = hard_tokens(config, 1, 16)
    with pytest.raises(ValueError, match=r"state.position=\[5\]: .* multiple of chunk_size=16"):
        model.loss(tokens, tokens, state, span=span)


@pytest.mark.parametrize("value", (torch.nan, 1e30))
def test_an_end_looks_at_the_last_document_only(value):
    resets = torch.zeros(2, STRETCH, dtype=torch.bool)
    resets[0, 30] = True
    given = CEMA.inputs(2, STRETCH, 3)
    bad = given["x"].clone()
    bad[0, :30] = value

    def run(x):
        x = x.clone().requires_grad_()
        norm = timestep_norm_end(x, 3, resets, impl="torch")
        outputs = (norm.mean, norm.var, cema_end(x, *cema_arguments(given), resets, impl="torch"))
        (grad,) = torch.autograd.grad(sum((u * u).sum() for u in outputs), x)
        return *outputs, grad

    for got, want in zip(run(bad), run(given["x"]), strict=True):
        assert torch.equal(got, want)


class Counting(Place):
    """The first of some processes that all have the same to say; notes what is sent."""

    def __init__(self, size):
        super().__init__(0, size)
        self.sent = []

    def start(self, local):
        self.sent.append(local.numel() * local.element_size())
        return lambda: torch.stack([local] * self.size)


@pytest.mark.parametrize("length", (16, 64))
def test_at_7b_a_layer_sends_half_a_mebibyte_a_sequence_however_long(length):
    # What the messages' sizes depend on is as at 7B, the rest small.
    width = dict(model_dim=4096, cema_ndim=16, norm_num_groups=64)
    model = Megalodon(hard_config(num_layers=1, **width))
    exchange = Counting(2)
    tokens = hard_tokens(model.config, 1, length)
    span = Span(exchange, torch.zeros(1, 2 * length, dtype=torch.bool))
    with torch.no_grad():
        model.loss(tokens, tokens, span=span)
    # Statistics, moving averages: 512.5 KiB; then the final norm's statistics.
    assert exchange.sent == [512, 512 * 1024, 512]
