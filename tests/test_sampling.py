"""Which tokens may be drawn, and how often."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litmegalodon.inference import Drawing, sample_next


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(logits, draws=4000, **drawing):
    """How often each token comes, over many draws from one row of logits."""
    rows = torch.tensor(logits).expand(draws, -1)
    # One source of numbers for all of them.
    tokens = sample_next(rows, Drawing(**{"temperature": 1.0} | drawing), [seeded()] * draws)
    return torch.bincount(tokens, minlength=len(logits)).double() / draws


def test_tokens_come_as_often_as_softmax_says():
    # Weights 1, 2, 5 at temperature 1; their squares at temperature 1/2.
    logits = [math.log(1), math.log(2), math.log(5)]
    for temperature, weights in [(1.0, [1, 2, 5]), (0.5, [1, 4, 25])]:
        expected = torch.tensor(weights).double() / sum(weights)
        # Five standard deviations of a share over 4000 draws are at most 0.04.
        assert (drawn(logits, temperature=temperature) - expected).abs().max() < 0.04


def test_temperature_zero_takes_the_likeliest_of_each_row():
    logits = torch.randn(5, 7, generator=seeded())
    assert sample_next(logits, Drawing(temperature=0)).equal(logits.argmax(-1))


def test_a_tiny_temperature_is_nearly_zero_temperature():
    logits = torch.randn(5, 7, generator=seeded()) * 100
    assert sample_next(logits, Drawing(temperature=1e-30)).equal(logits.argmax(-1))


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=8), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_top_k_draws_only_the_k_likeliest(scores, k):
    shares = drawn([s / 20 for s in scores], draws=200, top_k=k)
    threshold = sorted(scores, reverse=True)[min(k, len(scores)) - 1]
    assert all(share == 0 or s >= threshold for s, share in zip(scores, shares, strict=True))
    assert (shares > 0).sum() <= k


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8, unique=True), st.integers(1, 99))
@settings(deadline=None, max_examples=40)
def test_top_p_draws_the_fewest_tokens_that_reach_p(weights, percent):
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept, reached = set(), 0
    for i in order:
        # In whole numbers; a sum that is exactly p may round either way, so keep off it.
        if abs(100 * reached - percent * sum(weights)) < 1e-3 * sum(weights):
            return
        if 100 * reached >= percent * sum(weights):
            break
        kept.add(i)
        reached += weights[i]
    shares = drawn([math.log(w) for w in weights], draws=2000, top_p=percent / 100)
    rare = 10 / 2000
    for i, weight in enumerate(weights):
        assert shares[i] == 0 or i in kept
        assert shares[i] > 0 or i not in kept or weight / reached < rare


def test_all_restrictions_together_always_leave_the_likeliest():
    shares = drawn([0.0, 3.0, 1.0, -math.inf], top_k=2, top_p=1e-9)
    assert shares.tolist() == [0, 1, 0, 0]


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    weights = [1, 3, 5, 10]
    shares = drawn([math.log(w) for w in weights], temperature=1.0, min_p=0.4)
    assert (shares > 0).tolist() == [False, False, True, True]
    assert shares[3] == pytest.approx(2 / 3, abs=0.04)
    assert (drawn([0.0, 1.0], min_p=0.0) > 0).all()
    assert drawn([0.0, 1.0], min_p=1.0).tolist() == [0, 1]


def test_a_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    logits = torch.tensor([[2.0, 1.5, -1.0, -1.5], [2.0, 1.5, -1.0, -1.5]])
    penal = Drawing(temperature=0, repetition_penalty=2.0)
    # 2 becomes 1, less than 1.5; -1 becomes -2.
    assert sample_next(logits, penal, recent=[[0, 0], []]).tolist() == [1, 0]
    assert sample_next(logits[:, 2:], penal, recent=[[0], [1]]).tolist() == [1, 0]
    assert sample_next(logits, Drawing(temperature=0), recent=[[0], [0]]).tolist() == [0, 0]
    assert logits[0, 0] == 2.0


def test_a_draw_repeats_with_its_seed_and_leaves_the_global_random_state_alone():
    logits = torch.randn(3, 50, generator=seeded(1))
    before = torch.get_rng_state()
    seeds = [7, 8, 9]
    first = sample_next(logits, Drawing(), [seeded(s) for s in seeds])
    assert sample_next(logits, Drawing(), [seeded(s) for s in seeds]).equal(first)
    assert torch.get_rng_state().equal(before)


def test_a_row_s_draws_do_not_depend_on_the_other_rows():
    logits = torch.randn(3, 50, generator=seeded(1))
    together = sample_next(logits, Drawing(), [seeded(s) for s in (7, 8, 9)])
    alone = [sample_next(logits[i : i + 1], Drawing(), [seeded(7 + i)]) for i in range(3)]
    assert together.equal(torch.cat(alone))


@pytest.mark.parametrize(
    ("drawing", "name"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_k": "many"}, "top_k=many"),
        ({"temperature": "hot"}, "temperature=hot"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"min_p": 1.1}, "min_p=1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(drawing, name):
    with pytest.raises(ValueError, match=f"^here.{name}: must be"):
        Drawing(**drawing, prefix="here.")


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        sample_next(torch.tensor([[0.0, math.nan]]), Drawing())
