"""Activation checkpointing, dropout and what is kept for the backward pass."""

import pytest
import torch

from golden_data import assert_equal
from hard import hard_config, hard_model, hard_tokens

DROPOUTS = {"dropout": 0.2, "hidden_dropout": 0.3, "attention_dropout": 0.2}


def gradients(model, length, rows=2):
    tokens = hard_tokens(model.config, rows, length)
    resets = torch.zeros(rows, length, dtype=torch.bool)
    resets[0, length // 3] = True
    model.zero_grad()
    torch.manual_seed(3)
    nll, _, _ = model.loss(tokens, tokens, resets=resets)
    nll.backward()
    return {"nll": nll.detach()} | {n: p.grad.clone() for n, p in model.named_parameters()}


def checkpointed(model, on):
    for block in model.layers:
        block.activation_checkpointing = on
    return model


@pytest.mark.parametrize("dropouts", [{}, DROPOUTS], ids=["no dropout", "dropout"])
def test_a_checkpointed_model_has_the_same_gradients_bit_for_bit(dropouts):
    model = hard_model(hard_config(**dropouts)).train()
    want = gradients(checkpointed(model, False), 70)
    got = gradients(checkpointed(model, True), 70)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def kept_bytes(model, length):
    """Bytes that the graph of a loss holds for its backward pass, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = hard_tokens(model.config, 1, length)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nll, _, _ = model.loss(tokens, tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), nll


def test_a_checkpointed_block_keeps_its_input_and_memory_is_linear_in_the_length():
    config = hard_config(num_layers=4, model_dim=64, vocab_size=31)
    model = checkpointed(hard_model(config, torch.float32).train(), True)
    some, most = kept_bytes(model, 512)[0], kept_bytes(model, 1024)[0]
    inputs = config.num_layers * 512 * config.model_dim * 4
    # The head's part, and the final norm's, stay.
    rest = 512 * 4 * (3 * config.vocab_size + 3 * config.model_dim + 24 * config.norm_num_groups)
    assert inputs <= most - some <= inputs + rest
    whole = kept_bytes(checkpointed(model, False), 1024)[0]
    assert most < whole / 3


def test_dropout_is_its_own_derivative():
    """Each place where features are dropped, by finite differences at a fixed mask."""
    model = hard_model(hard_config(**DROPOUTS, chunk_size=8)).train()
    grads = gradients(model, 24)
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        step, losses = 1e-6, []
        with torch.no_grad():
            for sign in (1, -1):
                parameter += sign * step * direction
                tokens = hard_tokens(model.config, 2, 24)
                resets = torch.zeros(2, 24, dtype=torch.bool)
                resets[0, 8] = True
                torch.manual_seed(3)
                losses.append(model.loss(tokens, tokens, resets=resets)[0])
                parameter -= sign * step * direction
        slope = (losses[0] - losses[1]) / (2 * step)
        assert_equal((grads[name] * direction).sum(), slope, 1e-4, name)
