"""What a model computes and remembers in which precision."""

import pytest
import torch

from golden_data import assert_precise, relative_error
from hard import hard_config, hard_model, hard_resets, hard_tokens
from litmegalodon.models import Megalodon

KEPT = ("cema", "norm")


def kept(name):
    """Whether a parameter is CEMA's or a norm's."""
    return any(part in name for part in KEPT)


def test_a_bfloat16_model_keeps_cema_and_norms_in_float32_to_the_bit():
    before = hard_model(hard_config(), torch.float32)
    after = hard_model(hard_config(), torch.float32).to(torch.bfloat16)
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    for (name, old), new in pairs:
        assert new.dtype == (torch.float32 if kept(name) else torch.bfloat16), name
        assert torch.equal(new, old if kept(name) else old.bfloat16()), name
    assert sum(kept(name) for name, _ in before.named_parameters()) == 2 * (5 + 2 + 1 + 2) + 2


def test_a_float64_model_cast_to_bfloat16_keeps_them_in_float32():
    model = hard_model(hard_config(), torch.float64).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if kept(name) else torch.bfloat16), name
    model(hard_tokens(model.config, 1, 5))


@pytest.mark.parametrize("impl", ("reference", "torch"))
@pytest.mark.parametrize(
    "dtype, logits_dtype",
    (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ),
    ids=("fp32", "bf16", "fp64"),
)
def test_logits_loss_and_state_are_float32_or_better(dtype, logits_dtype, impl):
    model = hard_model(hard_config(), dtype, impl=impl)
    tokens = hard_tokens(model.config, 2, 20)
    logits, state = model(tokens)
    nll, valid, _ = model.loss(tokens, tokens)
    assert logits.dtype == nll.dtype == logits_dtype
    assert valid.dtype == torch.int64
    for name, value in state.tensors().items():
        if name.endswith((".k", ".v")):
            assert value.dtype == dtype, name
        elif name.endswith(".h"):
            assert value.dtype == logits_dtype, name
        elif name.endswith((".mean", ".var")):
            assert value.dtype == torch.float64, name
        else:
            assert value.dtype == torch.int64, name


def test_a_float16_model_is_refused():
    with pytest.raises(ValueError, match=r"float16.*use bfloat16"):
        hard_model(hard_config(), torch.float32).half()(hard_tokens(hard_config(), 1, 3))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("fp32", "bf16"))
def test_logits_pass_the_precision_gate(dtype):
    config = hard_config()
    tokens, resets = hard_tokens(config, 3, 70), hard_resets(3, 70)
    models = {impl: hard_model(config, dtype, impl=impl) for impl in ("reference", "torch")}
    exact = hard_model(config, torch.float64, impl="reference")
    exact.load_state_dict(models["torch"].state_dict())
    want = exact(tokens, None, resets)[0]
    plain, got = (models[impl](tokens, None, resets)[0] for impl in ("reference", "torch"))
    assert_precise(got, plain, want, "logits")


def test_autocast_trains_in_bfloat16_with_float32_weights():
    model = hard_model(hard_config(), torch.float32)
    tokens = hard_tokens(model.config, 2, 40)
    exact, _, _ = model.loss(tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        nll, _, state = model.loss(tokens, tokens)
        logits, _ = model(tokens)
    assert nll.dtype == logits.dtype == torch.float32
    assert relative_error(nll, exact) < 0.05
    assert state.layers[0].h.dtype == torch.float32
    nll.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


def test_a_model_on_the_meta_device_takes_no_memory_and_no_numbers():
    state = torch.random.get_rng_state()
    with torch.device("meta"):
        model = Megalodon(hard_config(share_emb=True))
    assert all(p.is_meta for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
