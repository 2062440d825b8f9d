"""Gradients of the hand-written backward passes: in tiles, in low precision, with dropout."""

import pytest
import torch

from golden_data import assert_equal, assert_precise
from hard import hard_config, hard_model, hard_tokens
from litmegalodon.ops import tiles
from naive import naive_nll

LENGTH, ROWS = 75, 2
VARIANTS = {
    "all parts": {},
    "no gate, no affine, no rescaling": dict(swiglu=False, norm_affine=False, rescale_nffn=False),
    "one head": dict(num_heads=1),
    "mega": dict(ema="real", norm="layer", residual="plain", attention="plain"),
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def inputs(config):
    resets = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    resets[0, [20, 64]] = True
    return hard_tokens(config, ROWS, LENGTH), resets


def with_gradients(model, nll):
    model.zero_grad()
    nll.backward()
    named = model.named_parameters()
    return {"nll": nll.detach()} | {name: p.grad.clone() for name, p in named}


def gradients(model, seed=0):
    tokens, resets = inputs(model.config)
    torch.manual_seed(seed)
    return with_gradients(model, model.loss(tokens, tokens, resets=resets)[0])


def naive_gradients(model):
    return with_gradients(model, naive_nll(model, *inputs(model.config)))


@variants
@pytest.mark.parametrize("rows", [16, 1024], ids=["tiles", "one tile"])
def test_they_are_those_of_plain_autograd(changes, rows, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", rows)
    model = hard_model(hard_config(**changes)).train()
    want = naive_gradients(model)
    for name, value in gradients(model).items():
        assert_equal(value, want[name], name=name)


def test_a_tile_has_its_own_part_of_the_dropout_mask(monkeypatch):
    config = hard_config(dropout=0.2, hidden_dropout=0.3, attention_dropout=0.2)
    model = hard_model(config).train()
    want = gradients(model, seed=5)
    monkeypatch.setattr(tiles, "ROWS", 16)
    for name, value in gradients(model, seed=5).items():
        assert_equal(value, want[name], name=name)


@variants
@pytest.mark.parametrize("rows", [16, 1024], ids=["tiles", "one tile"])
def test_under_autocast_they_are_as_precise_as_plain_autograd(changes, rows, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", rows)
    exact = naive_gradients(hard_model(hard_config(**changes)).train())
    model = hard_model(hard_config(**changes), torch.float32).train()
    tokens, resets = inputs(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        plain_nll = naive_nll(model, tokens, resets)
    plain = with_gradients(model, plain_nll)
    with torch.autocast("cpu", torch.bfloat16):
        nll = model.loss(tokens, tokens, resets=resets)[0]
    for name, value in with_gradients(model, nll).items():
        assert_precise(value.bfloat16(), plain[name], exact[name], name)


@variants
def test_in_a_bfloat16_model_they_are_as_precise_as_plain_autograd(changes, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", 16)
    model = hard_model(hard_config(**changes), torch.bfloat16).train()
    # The same rounded weights in float64: what is judged is the computation.
    exact_model = hard_model(hard_config(**changes)).train()
    exact_model.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    exact, plain = naive_gradients(exact_model), naive_gradients(model)
    for name, value in gradients(model).items():
        assert_precise(value, plain[name], exact[name], name)


@pytest.mark.parametrize("name", ["mega.gamma", "mega.timenorm.weight"])
def test_what_is_added_to_one_is_not_lost_in_bfloat16(name):
    """0.003 is half of bfloat16's step at 1."""
    model = hard_model(hard_config(num_layers=1), torch.bfloat16)
    parameter = model.layers[0].get_parameter(name)
    tokens, _ = inputs(model.config)
    logits = []
    with torch.no_grad():
        for value in (0.0, 0.003):
            parameter.fill_(value)
            state = model(tokens)[1].layers[0]
            logits.append(state.kv.k if name == "mega.gamma" else state.h)
    assert not torch.equal(*logits)
