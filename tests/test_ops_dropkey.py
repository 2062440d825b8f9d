"""DropKey: its mask depends on where a pair stands and on nothing about how it is computed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_data import assert_equal
from hard import ATTENTION_WITH_DROPKEY, TRITON_RUNS, hard_resets, with_gradients
from litmegalodon.ops import chunk_attention

operators = pytest.mark.parametrize("operator", ATTENTION_WITH_DROPKEY, ids=lambda o: o.name)
IMPLS = ("reference", "torch", "triton") if TRITON_RUNS else ("reference", "torch")
impls = pytest.mark.parametrize("impl", IMPLS)
CHUNK = 32


def weights(impl="torch", dropkey=0.3, seed=3, position=0, batch=2, length=4 * CHUNK, heads=3):
    """Attention weights [B, L, H, C] over the keys of a token's own chunk, all scores being 0."""
    zeros = torch.zeros(batch, length, heads, 2, dtype=torch.float64)
    own = torch.eye(CHUNK, dtype=torch.float64)[(position + torch.arange(length)) % CHUNK]
    v = own[None, :, None].expand(batch, -1, heads, -1)
    return chunk_attention(
        zeros,
        zeros,
        v,
        chunk_size=CHUNK,
        position=position,
        dropkey=dropkey,
        seed=seed if dropkey else None,
        impl=impl,
    )[0]


def hidden_pairs(**settings):
    """bool [pairs]: which of the pairs that causality allows are hidden, in a fixed order."""
    weight = weights(**settings)
    allowed = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    per_chunk = weight.unflatten(1, (-1, CHUNK)).transpose(2, 3)  # B x chunks x H x C x C
    return per_chunk[..., allowed] == 0


@impls
def test_about_the_probability_of_pairs_is_hidden_and_the_others_keep_their_share(impl):
    hidden = hidden_pairs(impl=impl)
    # 12,672 pairs: the standard deviation of the rate is 0.004.
    assert abs(hidden.double().mean().item() - 0.3) < 0.02
    weight = weights(impl=impl)
    seen = (weight > 0).sum(-1, keepdim=True).double()
    assert_equal(weight, torch.where(weight > 0, 1 / seen.clamp(min=1), 0), name="weights")


def test_the_mask_is_the_same_for_a_seed_and_another_for_another_seed():
    first = hidden_pairs(seed=3)
    assert torch.equal(first, hidden_pairs(seed=3))
    for impl in IMPLS:
        assert torch.equal(first, hidden_pairs(seed=3, impl=impl))
        assert torch.equal(hidden_pairs(seed=2**62 - 1), hidden_pairs(seed=2**62 - 1, impl=impl))
    for other in (4, 3 + 2**32, 2**62 - 1):
        # Independent masks agree on 0.3^2 + 0.7^2 of the pairs.
        agreement = (first == hidden_pairs(seed=other)).double().mean().item()
        assert abs(agreement - 0.58) < 0.03


@pytest.mark.parametrize("dim", (0, 1, 2), ids=("row", "chunk", "head"))
def test_rows_chunks_and_heads_have_masks_of_their_own(dim):
    hidden = hidden_pairs()
    a, b = hidden.select(dim, 0), hidden.select(dim, 1)
    assert abs((a == b).double().mean().item() - 0.58) < 0.04


def test_queries_and_keys_are_hidden_independently():
    weight = weights(length=CHUNK, batch=16)[:, CHUNK // 2 :, :, : CHUNK // 2] == 0
    queries, keys = weight.double().mean((0, 2, 3)), weight.double().mean((0, 1, 2))
    # 768 pairs each: no query or key is always or never hidden.
    assert ((queries - 0.3).abs() < 0.09).all()
    assert ((keys - 0.3).abs() < 0.09).all()


@operators
@pytest.mark.parametrize("with_resets", (False, True), ids=("whole", "resets"))
def test_torch_equals_the_reference_in_outputs_states_and_gradients(operator, with_resets):
    inputs = operator.inputs(3, 90, 21)
    resets = hard_resets(3, 90) if with_resets else None
    want, got = (
        with_gradients(lambda t, impl=impl: operator.call(t, resets, impl), inputs)
        for impl in ("reference", "torch")
    )
    for name in want:
        assert_equal(got[name], want[name], name=name)


@operators
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(cuts=st.lists(st.integers(1, 89), max_size=5), with_resets=st.booleans())
def test_any_split_into_calls_hides_the_same_pairs(operator, cuts, with_resets):
    inputs = operator.inputs(3, 90, 22)
    resets = hard_resets(3, 90) if with_resets else None
    whole = with_gradients(lambda t: operator.call(t, resets, "torch"), inputs)
    split = with_gradients(lambda t: operator.in_calls(t, resets, cuts, "torch"), inputs)
    for name in whole:
        assert_equal(split[name], whole[name], name=f"{name} cut at {cuts}")


@impls
def test_gradients_are_those_of_the_masked_forward_pass(impl):
    operator = ATTENTION_WITH_DROPKEY[0]
    inputs = operator.inputs(2, 20, 23)
    names = ("q", "k", "v", "state.k", "state.v")

    def call(*values):
        return operator.call(inputs | dict(zip(names, values, strict=True)), None, impl)["y"]

    assert torch.autograd.gradcheck(
        call, [inputs[k].requires_grad_() for k in names], fast_mode=True
    )


@impls
def test_a_query_with_every_key_hidden_gives_zero_and_finite_gradients(impl):
    q = torch.randn(2, 40, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q.requires_grad_()
    v = q + 3
    out, _ = chunk_attention(q, q, v, chunk_size=8, dropkey=0.9, seed=2, impl=impl)
    empty = (out == 0).all(-1)
    # A chunk's first token has one key: it is hidden for 0.9 of the 20 (row, chunk, head).
    assert 12 <= empty[:, ::8].sum() <= 20
    assert not empty.all()
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert grad.isfinite().all()
