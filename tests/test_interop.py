"""Checkpoints of the released reference load by their own names; no mistake stays silent."""

import re

import pytest
import torch

from golden_data import FOLDER
from litmegalodon.interop import load_reference_state_dict
from litmegalodon.models import Megalodon, MegalodonConfig

LINE = re.compile(r"(\S+) \(([\d, ]*)\) (\w+) (param|buffer)")
CONFIG = dict(
    vocab_size=61,
    num_layers=1,
    model_dim=64,
    z_dim=32,
    value_dim=128,
    num_heads=2,
    ffn_hidden_dim=96,
    cema_ndim=4,
    chunk_size=16,
    norm_num_groups=8,
    swiglu=True,
    rescale_nffn=True,
    share_emb=True,
)
BUFFERS = 1 + 2 * 3


def reference_state_dict():
    """Random tensors under the names, shapes and dtypes of a checkpoint of the reference."""
    generator = torch.Generator().manual_seed(0)
    given = {}
    for line in (FOLDER / "state_dict_keys.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, shape, dtype, kind = LINE.match(line).groups()
        sizes = [int(n) for n in shape.split(",") if n.strip()]
        value = torch.randn(sizes, generator=generator, dtype=torch.float64)
        given[name] = value if dtype == "float64" else torch.zeros(sizes, dtype=torch.int64)
        assert kind == "param" or "prior" in name or name == "rope.freqs"
    given["output.output.weight"] = given["embed.weight"]
    return given


def model_like(**changes):
    return Megalodon(MegalodonConfig(**(CONFIG | changes))).double()


@pytest.mark.parametrize("share_emb", (True, False), ids=("tied", "untied"))
def test_every_parameter_of_the_reference_is_loaded_and_nothing_is_missing(share_emb):
    given, model = reference_state_dict(), model_like(share_emb=share_emb)
    report = load_reference_state_dict(model, given)
    assert report.missing == []
    assert report.unexpected == []
    assert len(report.ignored) == BUFFERS
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert torch.equal(parameter, given[name]), name
    assert given.keys() - dict(model.named_parameters(remove_duplicate=False)) == {*report.ignored}
    model(torch.zeros(1, 3, dtype=torch.int64))


def test_loading_keeps_the_model_s_dtype_and_tie():
    model = model_like().float()
    load_reference_state_dict(model, reference_state_dict())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.output.output.weight is model.embed.weight


def test_missing_and_unexpected_names_are_refused_or_reported():
    given = reference_state_dict()
    del given["layers.0.mega.wz.bias"]
    given["layers.1.mega.wz.bias"] = torch.zeros(32)
    model = model_like()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    message = r"missing \['layers.0.mega.wz.bias'\].*unexpected \['layers.1.mega.wz.bias'\]"
    with pytest.raises(ValueError, match=message):
        load_reference_state_dict(model, given)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name

    report = load_reference_state_dict(model, given, strict=False)
    assert report.missing == ["layers.0.mega.wz.bias"]
    assert report.unexpected == ["layers.1.mega.wz.bias"]
    assert torch.equal(model.embed.weight, given["embed.weight"])
    assert torch.equal(model.layers[0].mega.wz.bias, before["layers.0.mega.wz.bias"])


def test_a_part_that_only_one_side_has_is_named():
    for changes, names in (
        ({"swiglu": False}, ["layers.0.nffn.fc3.weight"]),
        ({"rescale_nffn": False}, ["layers.0.nffn.alpha"]),
    ):
        model = model_like(**changes)
        assert load_reference_state_dict(model, reference_state_dict(), False).unexpected == names
    given = {k: v for k, v in reference_state_dict().items() if "fc3" not in k}
    with pytest.raises(ValueError, match=r"missing .'layers.0.nffn.fc3.weight'"):
        load_reference_state_dict(model_like(), given)


@pytest.mark.parametrize(
    "name",
    (
        "embed.weight",
        "layers.0.mega.wz.weight",
        "layers.0.mega.cema.theta",
        "output.final_norm.bias",
    ),
)
def test_a_wrong_shape_is_refused_before_anything_is_loaded(name):
    given = reference_state_dict()
    given[name] = torch.zeros(2, *given[name].shape)
    model = model_like()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, .*model.config"):
        load_reference_state_dict(model, given)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_prior_is_refused():
    for name in ("layers.0.mega.timenorm.prior_count", "output.final_norm.prior_count"):
        given = reference_state_dict() | {name: torch.tensor(2)}
        for strict in (True, False):
            with pytest.raises(ValueError, match=f"{name}=2.*must be 0"):
                load_reference_state_dict(model_like(), given, strict)


def test_a_tied_checkpoint_may_leave_out_its_output():
    given = reference_state_dict()
    del given["output.output.weight"]
    assert load_reference_state_dict(model_like(), given).missing == []
    with pytest.raises(ValueError, match=r"missing .'output.output.weight'"):
        load_reference_state_dict(model_like(share_emb=False), given)


def test_an_untied_checkpoint_is_refused_by_a_tied_model():
    given = reference_state_dict()
    given["output.output.weight"] = given["output.output.weight"] + 1
    with pytest.raises(ValueError, match=r"share_emb.*differ.*share_emb=false"):
        load_reference_state_dict(model_like(), given)
