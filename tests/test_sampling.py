"""Which tokens may be drawn, how often, and how a prompt is continued."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from litmegalodon.data import ByteTokenizer, SentencePieceTokenizer
from litmegalodon.inference import continue_text, sample_next
from litmegalodon.models import Megalodon, MegalodonConfig
from tokenizer_helpers import train

BOS, EOS = ByteTokenizer.bos_id, ByteTokenizer.eos_id


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(logits, draws=4000, **drawing):
    """How often each token comes, over many draws from one row of logits."""
    rows = torch.tensor(logits).expand(draws, -1)
    tokens = sample_next(rows, generator=seeded(), **drawing)
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
    assert sample_next(logits, temperature=0).equal(logits.argmax(-1))


def test_a_tiny_temperature_is_nearly_zero_temperature():
    logits = torch.randn(5, 7, generator=seeded()) * 100
    assert sample_next(logits, temperature=1e-30, generator=seeded()).equal(logits.argmax(-1))


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


def test_a_draw_repeats_with_its_seed_and_leaves_the_global_random_state_alone():
    logits = torch.randn(3, 50, generator=seeded(1))
    before = torch.get_rng_state()
    first = sample_next(logits, generator=seeded(7))
    assert sample_next(logits, generator=seeded(7)).equal(first)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("drawing", "name"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(drawing, name):
    with pytest.raises(ValueError, match=name):
        sample_next(torch.zeros(1, 3), **drawing)


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        sample_next(torch.tensor([[0.0, math.nan]]))


class Scripted(nn.Module):
    """Says the tokens of a script one after the other, and notes what it is given."""

    def __init__(self, script, vocab_size=264, bos_id=BOS, outside=(258, 263)):
        super().__init__()
        self.bos_id, self.outside = bos_id, outside
        self.anchor = nn.Parameter(torch.zeros(()))
        self.script, self.vocab_size, self.calls = script, vocab_size, []

    def forward(self, tokens, state=None, resets=None):
        self.calls.append((tokens.tolist(), state, resets, self.training))
        said = len(self.calls) - 1
        logits = torch.zeros(1, tokens.shape[1], self.vocab_size)
        # Outside the vocabulary, and BOS: likelier than everything.
        logits[..., [self.bos_id, *self.outside]] = 100.0
        logits[:, -1, self.script[said]] = 50.0
        return logits, said


def test_the_prompt_is_read_once_and_then_each_new_token_with_the_state():
    model = Scripted([*b"cde"])
    assert continue_text(model, ByteTokenizer(), b"ab", 3, temperature=0) == b"cde"
    assert model.calls == [
        ([[BOS, *b"ab"]], None, None, False),
        ([[*b"c"]], 0, None, False),
        ([[*b"d"]], 1, None, False),
    ]
    assert model.training


def test_a_continuation_stops_where_the_document_ends():
    model = Scripted([*b"cd", EOS, *b"e"])
    assert continue_text(model, ByteTokenizer(), b"", 10, temperature=0) == b"cd"


def test_bos_and_ids_above_the_vocabulary_are_never_drawn():
    model = Scripted([*b"x"] * 50)
    assert continue_text(model, ByteTokenizer(), b"", 50, temperature=1.0) == b"x" * 50


def test_all_processes_continue_with_the_token_they_agree_on():
    model = Scripted([*b"xxxx"])
    agreed = iter([*b"yz", EOS])
    text = continue_text(
        model, ByteTokenizer(), b"a", 9, temperature=0, agree=lambda token: next(agreed)
    )
    assert text == b"yz"
    assert [tokens for tokens, *_ in model.calls[1:]] == [[[*b"y"]], [[*b"z"]]]


def test_a_continuation_keeps_its_first_space(tmp_path):
    tokenizer = SentencePieceTokenizer(str(train(tmp_path / "a.model")))
    script = tokenizer.encode("the dog").tolist()
    model = Scripted(script, tokenizer.vocab_size, tokenizer.bos_id, ())
    said = continue_text(model, tokenizer, b"the", len(script), temperature=0)
    assert said == b" the dog"


def test_no_tokens_wanted_is_no_text():
    assert continue_text(Scripted([]), ByteTokenizer(), b"ab", 0) == b""
    with pytest.raises(ValueError, match="max_new_tokens=-1"):
        continue_text(Scripted([]), ByteTokenizer(), b"ab", -1)


def test_a_continuation_equals_reading_everything_again_for_each_token():
    config = MegalodonConfig(
        vocab_size=264, num_layers=2, model_dim=16, z_dim=8, value_dim=16, num_heads=1,
        ffn_hidden_dim=16, cema_ndim=4, chunk_size=8, norm_num_groups=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Megalodon(config).double()
    with torch.no_grad():
        model.output.output.weight.normal_(std=0.5)
    prompt, tokenizer = b"hello wor", ByteTokenizer()
    text = continue_text(model, tokenizer, prompt, 20, temperature=0)
    expected = [BOS, *prompt]
    model.eval()
    for _ in range(20):
        logits = model(torch.tensor([expected]))[0][0, -1]
        allowed = [i for i in range(258) if i != BOS]
        expected.append(max(allowed, key=lambda i: logits[i].item()))
        if expected[-1] == EOS:
            break
    assert text == bytes(t for t in expected[1 + len(prompt) :] if t < 256)
    assert len(text) > 5
