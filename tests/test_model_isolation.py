"""In a packed row no bit of a document's logits, memory or gradients depends on another."""

import pytest
import torch

from hard import fresh_at, hard_config, hard_model, hard_resets, hard_state, hard_tokens
from litmegalodon.models import MegalodonState

LENGTH = 150
# The last token of the vocabulary stands in disturbed documents only, and its embedding is poison.
POISON = 31
VALUES = {"nan": torch.nan, "1e30": 1e30, "inf": torch.inf}


@pytest.fixture(scope="module", params=("fp32", "bf16"))
def model(request):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[request.param]
    return hard_model(hard_config(vocab_size=32), dtype)


def words(seed=0):
    return hard_tokens(hard_config(vocab_size=POISON), 3, LENGTH, seed)


def run(model, tokens, resets, state, clean):
    """Logits, state, and gradients of clean tokens' logits with respect to the embedded tokens."""
    embedded = []
    hook = model.embed.register_forward_hook(lambda *args: embedded.append(args[-1]))
    logits, end = model(tokens, state, resets)
    hook.remove()
    cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(logits, embedded, cotangent * clean[..., None])
    return logits, end, grad


@pytest.mark.parametrize("kind", ("other-words", *VALUES))
@pytest.mark.parametrize("row, number", ((0, 1), (0, 8), (0, 10), (1, 1), (1, 2), (2, 0)))
def test_a_document_changes_no_bit_of_another(model, kind, row, number):
    resets = hard_resets(3, LENGTH)
    where = resets.long().cumsum(1) == number
    where[torch.arange(3) != row] = False
    assert where.any()
    tokens = words()
    if kind == "other-words":
        bad = torch.where(where, (tokens + 1) % POISON, tokens)
    else:
        bad = torch.where(where, POISON, tokens)
        with torch.no_grad():
            model.embed.weight[POISON] = VALUES[kind]
    start = fresh_at(model.config, [21, 32, 47], model.embed.weight.dtype)
    want, want_end, want_grad = run(model, tokens, resets, start, ~where)
    got, got_end, got_grad = run(model, bad, resets, start, ~where)
    assert not torch.equal(got[where], want[where])
    assert torch.equal(got[~where], want[~where])
    assert torch.equal(got_grad[~where], want_grad[~where])
    rows = ~where[:, -1]
    for name, value in want_end.tensors().items():
        assert torch.equal(got_end.tensors()[name][rows], value[rows]), name


@pytest.mark.parametrize("kind", VALUES)
def test_a_reset_forgets_the_incoming_state_to_the_last_bit(model, kind):
    resets = torch.zeros(3, LENGTH, dtype=torch.bool)
    resets[0, 0] = resets[1, 7] = resets[2, 75] = True
    state = hard_state(model, [21, 32, 47])
    poisoned = state.map(lambda v: torch.full_like(v, VALUES[kind]) if v.is_floating_point() else v)
    after = resets.long().cumsum(1) > 0
    want, want_end, want_grad = run(model, words(), resets, state, after)
    got, got_end, got_grad = run(model, words(), resets, poisoned, after)
    assert torch.equal(got[after], want[after])
    assert torch.equal(got_grad[after], want_grad[after])
    assert isinstance(got_end, MegalodonState)
    for name, value in want_end.tensors().items():
        assert torch.equal(got_end.tensors()[name], value), name


def test_no_gradient_crosses_the_beginning_of_a_document(model):
    resets = hard_resets(3, LENGTH)
    start = fresh_at(model.config, [21, 32, 47], model.embed.weight.dtype)
    numbers = resets.long().cumsum(1)
    for row, number in ((0, 8), (1, 2)):
        only = (numbers == number) & (torch.arange(3) == row)[:, None]
        grad = run(model, words(), resets, start, only)[2]
        assert grad[only].any()
        assert not grad[~only].any()
