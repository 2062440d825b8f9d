"""A model's settings: a mistake gets one sentence that names it, a switch does what it says."""

import os
import subprocess
import sys

import pytest
import torch

from golden_data import assert_equal, relative_error
from hard import hard_config, hard_model, hard_tokens
from litmegalodon.models import Megalodon, MegalodonConfig

POSITIVE = (
    "vocab_size",
    "num_layers",
    "model_dim",
    "z_dim",
    "value_dim",
    "num_heads",
    "ffn_hidden_dim",
    "cema_ndim",
    "chunk_size",
    "norm_num_groups",
)
# Of a model with model_dim 16, z_dim 8, value_dim 12, 2 heads and 4 groups.
WRONG = [
    *((name, 0, "must be at least 1") for name in POSITIVE),
    *((name, 1.5, "must be a whole number") for name in POSITIVE),
    ("model_dim", None, "must be a whole number"),
    *((name, "8", "must be a whole number") for name in POSITIVE),
    ("vocab_size", True, "must be a whole number"),
    ("z_dim", 9, "must be a multiple of num_heads=2; the nearest is"),
    ("value_dim", 13, "must be a multiple of num_heads=2; the nearest is"),
    ("z_dim", 6, "even number; use a multiple of 4"),
    ("model_dim", 18, "must be a multiple of norm_num_groups=4; the nearest is"),
    ("norm_num_groups", 16, "at most 8"),
    ("cema_ndim", 33, "must be at most 32"),
    ("norm_affine", 1, "must be true or false"),
    ("norm_eps", 0.0, "must be between 0 and 1"),
    ("norm_eps", float("nan"), "must be between 0 and 1"),
    ("norm_eps", None, "must be a number"),
    ("rope_base", 1.0, "must be above 1"),
    ("rope_base", float("inf"), "must be above 1"),
    ("rope_base", "10k", "must be a number"),
    ("swiglu", "yes", "must be true or false"),
    ("rescale_nffn", None, "must be true or false"),
    ("scale_emb", 0, "must be true or false"),
    ("share_emb", "true", "must be true or false"),
    ("output_size", 0, "must be at least 1, or -1"),
    ("output_size", -2, "must be at least 1, or -1"),
    ("dropout", 1.0, "at least 0 and below 1"),
    ("hidden_dropout", -0.1, "at least 0 and below 1"),
    ("attention_dropout", float("nan"), "at least 0 and below 1"),
    ("attention_dropout", "0.1", "must be a number"),
    ("init_mode", "kaiming", "must be one of he, bert, xavier, gaussian, none"),
    ("init_mode", 3, "must be a word"),
    ("ema", "imaginary", "must be one of complex, real"),
    ("norm", "batch", "must be one of timestep, layer, rms"),
    ("residual", None, "must be a word"),
    ("attention", "linear", "must be one of normalised, plain"),
]


@pytest.mark.parametrize("field, value, fix", WRONG, ids=lambda v: str(v).split(" ")[0])
def test_a_wrong_value_is_refused_with_the_name_the_value_and_the_fix(field, value, fix):
    with pytest.raises(ValueError) as error:
        hard_config(**{field: value})
    message = str(error.value)
    assert message.startswith(f"model.config.{field}={value}")
    assert fix in message
    assert "\n" not in message


def test_every_field_is_wrong_in_at_least_one_test():
    assert {field for field, _, _ in WRONG} == set(hard_config().to_dict())


def test_the_value_that_a_message_names_is_accepted():
    with pytest.raises(ValueError, match="the nearest is 8"):
        hard_config(z_dim=9, num_heads=4, value_dim=12)
    hard_config(z_dim=8, num_heads=4, value_dim=12)
    hard_config(z_dim=4, num_heads=2)
    hard_config(norm_num_groups=8)


def test_a_tied_output_has_the_vocabulary_s_size():
    with pytest.raises(ValueError, match=r"model.config.output_size=40: must be -1 with share_emb"):
        hard_config(share_emb=True, output_size=40)
    hard_config(share_emb=True, output_size=31)


def test_a_config_is_rebuilt_from_its_plain_values():
    config = hard_config(rope_base=500.0, dropout=0.1)
    assert MegalodonConfig(**config.to_dict()) == config


def test_a_config_is_checked_without_loading_torch():
    code = (
        "import sys; from litmegalodon.models import MegalodonConfig; "
        "MegalodonConfig(31, 1, 16, 8, 8, 2, 8, norm_num_groups=4); "
        "sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], timeout=60, env=environment)
    assert done.returncode == 0


def test_num_outputs_is_the_width_of_the_logits():
    for config in (hard_config(), hard_config(output_size=7)):
        logits, _ = hard_model(config)(hard_tokens(config, 1, 3))
        assert logits.shape == (1, 3, config.num_outputs)
    assert hard_config(output_size=7).num_outputs == 7


def test_scaled_embeddings_are_embeddings_times_the_root_of_their_width():
    plain, scaled = hard_model(hard_config()), hard_model(hard_config(scale_emb=True))
    tokens = hard_tokens(plain.config, 2, 10)
    with torch.no_grad():
        plain.embed.weight.mul_(4)  # sqrt(16)
    assert_equal(scaled(tokens)[0], plain(tokens)[0], name="logits")


@pytest.mark.parametrize("kind", ("dropout", "hidden_dropout", "attention_dropout"))
def test_dropout_acts_in_training_only(kind):
    config = hard_config(**{kind: 0.3})
    tokens = hard_tokens(config, 2, 40)
    plain, model = hard_model(hard_config()), hard_model(config)
    want = plain(tokens)[0]
    assert torch.equal(model.eval()(tokens)[0], want)
    model.train()
    torch.manual_seed(0)
    first = model(tokens)[0]
    torch.manual_seed(0)
    assert torch.equal(model(tokens)[0], first)
    assert relative_error(first, want) > 1e-3
    assert relative_error(model(tokens)[0], first) > 1e-3


def test_no_rope_base_is_10_000():
    tokens = hard_tokens(hard_config(), 1, 16)
    logits = {b: hard_model(hard_config(rope_base=b))(tokens)[0] for b in (None, 10_000.0, 50.0)}
    assert torch.equal(logits[None], logits[10_000.0])
    assert relative_error(logits[50.0], logits[None]) > 1e-4


def test_norms_without_affine_have_no_weights_but_timestep_norms_do():
    names = [n for n, _ in Megalodon(hard_config(norm_affine=False)).named_parameters()]
    assert not [n for n in names if "rmsnorm" in n or "nffn.norm" in n]
    assert sum("timenorm" in n or "final_norm" in n for n in names) == 2 * (2 + 1)


@pytest.fixture(scope="module")
def model():
    return hard_model(hard_config())


def test_state_and_tokens_that_do_not_fit_are_refused(model):
    tokens = hard_tokens(model.config, 2, 8)
    _, state = model(tokens)
    with pytest.raises(ValueError, match="state has 2 rows, tokens 3"):
        model(hard_tokens(model.config, 3, 8), state)
    for bad in (tokens[0], tokens[:, :0]):
        with pytest.raises(ValueError, match=r"tokens has shape .*\[batch, length\]"):
            model(bad)
    for resets in (torch.zeros(2, 8), torch.zeros(2, 7, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"resets is .* must be bool \(2, 8\)"):
            model(tokens, None, resets)
    with pytest.raises(ValueError, match=r"targets has shape \(2, 7\)"):
        model.loss(tokens, tokens[:, :7])


@pytest.mark.parametrize(
    "changes",
    (
        {"num_layers": 3},
        {"model_dim": 24},
        {"cema_ndim": 4},
        {"norm_num_groups": 1},
        {"norm_num_groups": 2},
        {"num_heads": 1},
        {"z_dim": 12},
        {"value_dim": 8},
        {"chunk_size": 8},
    ),
    ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()),
)
def test_a_state_of_another_model_is_refused(model, changes):
    other = Megalodon(hard_config(**changes)).double()
    _, state = other(hard_tokens(other.config, 2, 13))
    with pytest.raises(ValueError, match="state"):
        model(hard_tokens(model.config, 2, 8), state)
