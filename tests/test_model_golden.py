"""The whole model equals the float64 golden vectors: logits, loss, state and every gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from golden_data import MODELS, assert_equal, describe, tensors
from hard import IMPLS
from litmegalodon.models import Megalodon, MegalodonConfig, MegalodonState

golden = pytest.mark.parametrize("name", MODELS)
impls = pytest.mark.parametrize("impl", IMPLS)


def golden_model(name, impl):
    config = MegalodonConfig(**describe(name)["config"])
    model = Megalodon(config, impl=impl).double()
    own = dict(model.named_parameters())
    given = tensors(name, "param")
    assert own.keys() == given.keys()
    with torch.no_grad():
        for key, value in given.items():
            own[key].copy_(value)
    return model


def incoming_state(name, config):
    """The file's incoming state as leaves, or None."""
    named = tensors(name, "state_in")
    if not named:
        return None, {}
    named = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in named.items()}
    position = describe(name)["position_in"]
    rows = named["out.count"].shape[0]
    lengths = torch.full((rows,), position % config.chunk_size)
    extra = {f"layers.{i}.length": lengths for i in range(config.num_layers)}
    extra["position"] = torch.full((rows,), position)
    return MegalodonState.from_tensors(named | extra), named


def assert_state(state, name):
    """Equal to the file's outgoing state; keys and values that it lacks are empty."""
    got = state.tensors()
    want = tensors(name, "state_out")
    for key, value in want.items():
        if value.is_floating_point():
            assert_equal(got[key], value, name=key)
        else:
            assert torch.equal(got[key], value), key
    kept = describe(name)["position_out"] % describe(name)["config"]["chunk_size"]
    for key in got.keys() - want.keys():
        if key.endswith((".k", ".v")):
            assert got[key].shape[1] == 0, key
        elif key.endswith(".length"):
            assert (got[key] == kept).all(), key
        else:
            assert key == "position"
    assert (got["position"] == describe(name)["position_out"]).all()


@golden
@impls
def test_logits_nll_and_outgoing_state(name, impl):
    model, data = golden_model(name, impl), tensors(name)
    logits, state = model(data["tokens"], incoming_state(name, model.config)[0])
    assert_equal(logits, data["logits"], name="logits")
    nll = cross_entropy(logits.flatten(0, 1), data["targets"].flatten(), reduction="none")
    assert_equal(nll.view_as(data["token_nll"]), data["token_nll"], name="token_nll")
    assert_state(state, name)


@golden
@impls
def test_loss_and_every_gradient(name, impl):
    model, data = golden_model(name, impl), tensors(name)
    state_in, leaves = incoming_state(name, model.config)
    nll, valid, state = model.loss(data["tokens"], data["targets"], state_in)
    assert valid == (data["targets"] != -100).sum()
    loss = nll / valid
    assert_equal(loss, data["loss"], name="loss")
    assert_state(state, name)

    objective, out = loss, state.tensors()
    for key, cotangent in tensors(name, "cot.state_out").items():
        objective = objective + (cotangent * out[key]).sum()
    objective.backward()
    want = tensors(name, "grad")
    got = dict(model.named_parameters())
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert_equal(got[key].grad, value, name=f"grad.{key}")
    for key, value in tensors(name, "grad_state_in").items():
        assert_equal(leaves[key].grad, value, name=f"grad_state_in.{key}")


@impls
def test_reading_the_prefix_gives_the_incoming_state(impl):
    name = "model_with_state"
    model, data = golden_model(name, impl), tensors(name)
    got = model(data["prefix_tokens"])[1].tensors()
    want = incoming_state(name, model.config)[0].tensors()
    assert got.keys() == want.keys()
    for key, value in want.items():
        if value.is_floating_point():
            assert_equal(got[key], value, name=key)
        else:
            assert torch.equal(got[key], value), key


def test_files_cover_what_the_model_can_be():
    configs = [describe(name)["config"] for name in MODELS]
    for switch in ("swiglu", "rescale_nffn", "share_emb", "norm_affine"):
        assert {c[switch] for c in configs} == {True, False}, switch
    assert any(describe(name)["position_in"] for name in MODELS)
