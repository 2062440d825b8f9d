"""The loss is the cross entropy of the logits, whether or not it holds them all."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from golden_data import assert_equal
from hard import hard_config, hard_model, hard_resets, hard_state, hard_tokens

MAX_LOGITS = "litmegalodon.models.loss.MAX_LOGITS"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=("fp64", "fp32"))


def targets_for(config, batch, length):
    """Random targets, about a third of them ignored."""
    targets = hard_tokens(config, batch, length, seed=3) % config.num_outputs
    ignored = torch.rand(batch, length, generator=torch.Generator().manual_seed(4)) < 0.3
    return targets.masked_fill(ignored, -100)


def loss_and_gradients(model, tokens, targets, **given):
    nll, valid, state = model.loss(tokens, targets, **given)
    model.zero_grad()
    nll.backward()
    return nll.detach(), valid, state, {k: p.grad for k, p in model.named_parameters()}


@pytest.mark.parametrize("held", (True, False), ids=("held", "in-pieces"))
def test_loss_is_the_sum_of_valid_targets_negative_log_probabilities(held, monkeypatch):
    monkeypatch.setattr(MAX_LOGITS, 2**26 if held else 0)
    model = hard_model(hard_config())
    tokens, resets = hard_tokens(model.config, 2, 50), hard_resets(2, 50)
    targets, state = targets_for(model.config, 2, 50), hard_state(model, [21, 32])
    logits, logits_state = model(tokens, state, resets)
    log_probability = log_softmax(logits, -1)
    total, count = 0.0, 0
    for b in range(2):
        for t in range(50):
            if targets[b, t] != -100:
                total = total - log_probability[b, t, targets[b, t]]
                count += 1
    nll, valid, loss_state = model.loss(tokens, targets, state, resets)
    assert valid.item() == count
    assert_equal(nll, total, name="nll")
    for name, value in logits_state.tensors().items():
        assert torch.equal(loss_state.tensors()[name], value), name


@dtypes
@pytest.mark.parametrize(
    "changes", ({}, {"share_emb": True}, {"output_size": 7}), ids=("untied", "tied", "output-size")
)
def test_loss_in_pieces_equals_loss_with_all_logits_held(dtype, changes, monkeypatch):
    model = hard_model(hard_config(**changes), dtype)
    tokens, targets = hard_tokens(model.config, 2, 60), targets_for(model.config, 2, 60)
    want, valid, _, want_grads = loss_and_gradients(model, tokens, targets)
    monkeypatch.setattr(MAX_LOGITS, 0)
    got, got_valid, _, got_grads = loss_and_gradients(model, tokens, targets)
    assert got.dtype == want.dtype
    assert got_valid == valid
    assert_equal(got, want, TOLERANCE[dtype], "nll")
    for name, grad in want_grads.items():
        assert_equal(got_grads[name], grad, TOLERANCE[dtype], name)


@pytest.mark.parametrize("context", ("bf16", "autocast"))
def test_loss_in_pieces_is_as_precise_as_loss_with_all_logits_held(context, monkeypatch):
    dtype = torch.bfloat16 if context == "bf16" else torch.float32
    model = hard_model(hard_config(), dtype)
    tokens, targets = hard_tokens(model.config, 4, 200), targets_for(model.config, 4, 200)
    with torch.autocast("cpu", torch.bfloat16, enabled=context == "autocast"):
        exact = cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten(), reduction="sum")
        for most in (2**26, 0):
            monkeypatch.setattr(MAX_LOGITS, most)
            nll, _, _, grads = loss_and_gradients(model, tokens, targets)
            # In bfloat16 a sum of this size is rounded to multiples of 16.
            assert nll.dtype == torch.float32
            assert_equal(nll, exact, 1e-3, "nll")
            assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("held", (True, False), ids=("held", "in-pieces"))
def test_without_valid_targets_loss_and_gradients_are_zero(held, monkeypatch):
    monkeypatch.setattr(MAX_LOGITS, 2**26 if held else 0)
    model = hard_model(hard_config(), torch.float32)
    tokens = hard_tokens(model.config, 2, 20)
    nll, valid, _, grads = loss_and_gradients(model, tokens, torch.full_like(tokens, -100))
    assert nll == 0
    assert valid == 0
    assert not any(grad.any() for grad in grads.values())


def test_an_ignored_target_changes_no_gradient():
    model = hard_model(hard_config())
    tokens, targets = hard_tokens(model.config, 1, 20), hard_tokens(model.config, 1, 20, seed=2)
    targets[:, 12:] = -100
    _, _, _, want = loss_and_gradients(model, tokens[:, :12], targets[:, :12])
    _, _, _, got = loss_and_gradients(model, tokens, targets)
    for name, grad in want.items():
        assert_equal(got[name], grad, name=name)


# Prints by how many bytes the process grew at its peak, first in pieces, then with all logits held.
MEASURE = """
import torch
import litmegalodon.models.loss as loss
from litmegalodon.models import Megalodon, MegalodonConfig
torch.set_num_threads(1)
def peak():
    # getrusage's maximum would begin at the parent's.
    status = open("/proc/self/status").read()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
model = Megalodon(MegalodonConfig({vocabulary}, 1, 16, 8, 8, 1, 8, 2, 128, 4))
tokens = torch.arange({length})[None]
def grow(most, length):
    before = peak()
    loss.MAX_LOGITS = most
    model.loss(tokens[:, :length], tokens[:, :length])[0].backward()
    return peak() - before
for most in (0, 2**40):
    grow(most, 64)
print(grow(0, {length}), grow(2**40, {length}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_loss_in_pieces_never_holds_a_full_copy_of_the_logits():
    vocabulary, length = 8192, 1024
    code = MEASURE.format(vocabulary=vocabulary, length=length)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    in_pieces, held = map(int, done.stdout.split())
    logits = 4 * vocabulary * length
    # Logits, log-probabilities and a gradient: the measurement sees what there is.
    assert held > 2 * logits
    assert in_pieces < logits / 2
