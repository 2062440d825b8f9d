"""Every kind of parameter starts as the released reference's does, and the same on every device."""

import math

import pytest
import torch

from hard import hard_config
from litmegalodon.models import Megalodon
from litmegalodon.models.config import INIT_MODES

MATRICES = (
    "mega.wv",
    "mega.wz",
    "mega.wr",
    "mega.wh1",
    "mega.wh2",
    "nffn.fc1",
    "nffn.fc2",
    "nffn.fc3",
)
# Standard deviation of a standard normal cut at 3.
CUT_AT_3 = 0.98658


def wide_model(**changes):
    sizes = dict(
        vocab_size=300,
        model_dim=256,
        z_dim=64,
        value_dim=384,
        ffn_hidden_dim=320,
        cema_ndim=8,
        norm_num_groups=8,
    )
    model = Megalodon(hard_config(**(sizes | changes)))
    model.initialise(1)
    return model


@pytest.fixture(scope="module")
def parameters():
    return {k: v.detach() for k, v in wide_model().named_parameters()}


def assert_spread(value, std):
    """Mean 0 and the standard deviation given, to six standard errors."""
    error = 6 * std / math.sqrt(value.numel())
    assert abs(value.mean().item()) < error
    assert abs(value.std().item() - std) < error


@pytest.mark.parametrize("mode", INIT_MODES)
def test_matrices_start_as_the_mode_says(mode):
    model = wide_model(init_mode=mode, num_layers=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.initialise(2)
    named = dict(model.named_parameters())
    for name in MATRICES:
        value = named[f"layers.0.{name}.weight"].detach()
        out, inputs = value.shape
        if mode == "he":
            gain = torch.nn.init.calculate_gain("leaky_relu", math.sqrt(5))
            assert_spread(value, gain / math.sqrt(inputs))
        elif mode == "bert":
            assert_spread(value, 0.02)
        elif mode == "xavier":
            bound = math.sqrt(6 / (inputs + out))
            assert value.abs().max() <= bound
            assert_spread(value, bound / math.sqrt(3))
        elif mode == "gaussian":
            assert value.abs().max() <= 3
            assert_spread(value, CUT_AT_3)
        else:
            assert (value == 7).all()
    # The mode is for matrices only.
    assert_spread(named["embed.weight"].detach(), CUT_AT_3 / 16)
    assert not named["layers.0.mega.wv.bias"].any()


def test_embedding_and_output_are_normal_of_std_root_d_cut_at_three(parameters):
    for name in ("embed.weight", "output.output.weight"):
        assert parameters[name].abs().max() <= 3 / 16
        assert_spread(parameters[name], CUT_AT_3 / 16)


def test_biases_norms_gammas_and_betas_are_zero(parameters):
    zero = ("bias", "mega.gamma", "mega.beta", "norm.weight")
    names = [name for name in parameters if name.endswith(zero)]
    # A layer: 4 biases of matrices, 3 norms with 5 parameters, gamma and beta; the final norm's 2.
    assert len(names) == 2 * (4 + 5 + 2) + 2
    assert not any(parameters[name].any() for name in names)


def test_cema_starts_as_in_the_reference(parameters):
    for layer in ("layers.0", "layers.1"):
        cema = {
            k: parameters[f"{layer}.mega.cema.{k}"] for k in ("alpha", "delta", "gamma", "omega")
        }
        assert_spread(cema["alpha"], 0.2)
        assert_spread(cema["delta"], 0.2)
        assert_spread(cema["gamma"][..., 0], 1.0)
        assert not cema["gamma"][..., 1].any()
        assert cema["omega"].abs().max() <= 1
        assert_spread(cema["omega"], 0.25)


def test_theta_is_a_permutation_of_log_uniform_frequencies(parameters):
    thetas = [parameters[f"layers.{i}.mega.cema.theta"] for i in (0, 1)]
    want = [256 ** (-i / 256) for i in range(256, 0, -1)]
    for theta in thetas:
        frequency = theta.flatten().double().sigmoid()
        assert torch.allclose(frequency.sort().values, torch.tensor(want).double(), rtol=1e-5)
        assert not torch.equal(frequency.sort().values, frequency)
    assert not torch.equal(*thetas)


def test_the_feed_forward_scale_halves_with_every_layer():
    model = wide_model(num_layers=3, rescale_nffn=True)
    for i, expected in enumerate((0.1, 0.05, 0.025)):
        assert torch.equal(model.layers[i].nffn.alpha, torch.full((256,), expected))


@pytest.mark.parametrize("share_emb", (False, True), ids=("untied", "tied"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("fp32", "bf16"))
def test_weights_made_on_the_meta_device_are_those_made_directly(share_emb, dtype):
    config = hard_config(share_emb=share_emb)
    direct = Megalodon(config).to(dtype)
    direct.initialise(5)
    with torch.device("meta"):
        late = Megalodon(config).to(dtype)
    late.to_empty(device="cpu")
    late.initialise(5)
    want, got = (dict(m.named_parameters(remove_duplicate=False)) for m in (direct, late))
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name
    assert (late.output.output.weight is late.embed.weight) == share_emb


def test_a_seed_determines_the_weights_and_names_tell_them_apart():
    first, again, other = (Megalodon(hard_config()) for _ in range(3))
    first.initialise(1)
    again.initialise(1)
    other.initialise(2)
    seen = {}
    for (name, a), b, c in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        # The scale of the feed-forward network is a constant.
        if a.any() and not name.endswith("nffn.alpha"):
            assert not torch.equal(a, c), name
            for twin, value in seen.items():
                assert value.shape != a.shape or not torch.equal(value, a), f"{name} is {twin}"
            seen[name] = a


def test_torch_s_seed_determines_a_new_model():
    torch.manual_seed(3)
    first = Megalodon(hard_config())
    torch.manual_seed(3)
    again = Megalodon(hard_config())
    other = Megalodon(hard_config())
    assert torch.equal(first.embed.weight, again.embed.weight)
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_shared_embeddings_are_one_parameter_that_survives_casts():
    model = Megalodon(hard_config(share_emb=True))
    names = [name for name, _ in model.named_parameters()]
    assert "embed.weight" in names
    assert "output.output.weight" not in names
    for cast in (model, model.double(), model.to(torch.bfloat16)):
        assert cast.output.output.weight is cast.embed.weight


def test_a_new_model_has_no_uninitialised_memory():
    for parameter in Megalodon(hard_config()).parameters():
        assert parameter.isfinite().all()
        assert parameter.abs().max() < 20
