"""Checkpoints of the reference and of megalodon-hf come in whole, or are refused in a sentence."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden_data import MODELS, assert_equal, describe, tensors
from hard import hard_config, hard_model
from interop_helpers import (
    assert_same_weights,
    megalodon_hf_tensors,
    reference_tensors,
    write_megalodon_hf,
    write_reference,
)
from litmegalodon.interop import as_model, read_foreign
from litmegalodon.models import LlamaConfig, Megalodon, MegalodonConfig
from litmegalodon.ops.chunk_attention.rope import rotate, rotation


class Command:
    """An object whose unpickling runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def model():
    # Heads and groups that divide among four.
    return hard_model(hard_config(num_heads=4, z_dim=16, value_dim=24), torch.float32)


def imported(source, path, **settings):
    return as_model(read_foreign(source, path, **settings), f"path={path}")


@pytest.mark.parametrize("ranks", (1, 2, 4))
def test_the_reference_s_file_and_its_shards_give_the_same_weights(model, ranks, tmp_path):
    folder = write_reference(model, tmp_path / "reference", ranks)
    loaded = imported("reference", folder)
    assert_same_weights(loaded, model)
    ours, theirs = loaded.config.to_dict(), model.config.to_dict()
    assert ours == theirs


@pytest.mark.parametrize("name", MODELS)
def test_golden_weights_in_a_reference_s_file_give_the_golden_logits(name, tmp_path):
    about = describe(name)
    model = Megalodon(MegalodonConfig(**about["config"]))
    model.load_state_dict(tensors(name, "param"), strict=False)
    write_reference(model, tmp_path / "reference")
    loaded = imported("reference", tmp_path / "reference").double()
    tokens = tensors(name)["tokens"]
    if (before := tensors(name).get("prefix_tokens")) is not None:
        logits, _ = loaded(torch.cat([before, tokens], 1))
        logits = logits[:, before.shape[1] :]
    else:
        logits, _ = loaded(tokens)
    assert_equal(logits, tensors(name)["logits"], 1e-10)


def test_a_file_alone_takes_the_sizes_that_it_is_given(model, tmp_path):
    folder = write_reference(model, tmp_path / "reference", config=False)
    file = folder / "consolidated.pth"
    assert_same_weights(imported("reference", file, config=model.config), model)
    with pytest.raises(ValueError, match=r"there is no config.json beside it; give the model's"):
        read_foreign("reference", file)
    other = LlamaConfig(vocab_size=264, num_layers=1, model_dim=16, num_heads=2, ffn_hidden_dim=16)
    with pytest.raises(ValueError, match=r"is a Megalodon, and model= gives a llama; leave it out"):
        read_foreign("reference", file, other)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"num_heads": 2}, r"num_heads=2: .*heads of 4 features, and these have 8"),
        ({"rope_base": 100_000.0}, r"rope_base=100000.0: .*another base, about 10000"),
    ),
    ids=("heads", "base"),
)
def test_sizes_that_no_shape_tells_are_checked_by_the_rotary_frequencies(
    model, change, message, tmp_path
):
    folder = write_reference(model, tmp_path / "reference", config=False)
    config = MegalodonConfig(**model.config.to_dict() | change)
    with pytest.raises(ValueError, match=message):
        read_foreign("reference", folder, config)
    rounded = reference_tensors(model)
    rounded["rope.freqs"] = rounded["rope.freqs"].bfloat16()
    torch.save(rounded, folder / "consolidated.pth")
    notes = read_foreign("reference", folder, model.config).notes
    assert "rotary frequencies were rounded" in notes[-1]


def test_missing_and_unequal_shards_are_told_of(model, tmp_path):
    folder = write_reference(model, tmp_path / "reference", 4)
    changed = torch.load(folder / "consolidated.02.pth", weights_only=True)
    changed["layers.0.mega.rmsnorm.weight"] += 1
    torch.save(changed, folder / "consolidated.02.pth")
    found = read_foreign("reference", folder)
    assert any("1 tensors" in note and "rmsnorm" in note for note in found.notes)
    torch.save(changed | {"other": torch.zeros(1)}, folder / "consolidated.02.pth")
    with pytest.raises(ValueError, match=r"shard 2 has other tensors than shard 0, as other"):
        read_foreign("reference", folder)
    (folder / "consolidated.03.pth").unlink()
    with pytest.raises(ValueError, match=r"has 3 shards of 4: consolidated.03.pth is missing"):
        read_foreign("reference", folder)


def test_a_pickle_that_would_run_code_is_refused_in_one_sentence(model, tmp_path):
    trace = tmp_path / "trace"
    evil = Command(f"touch {trace}")
    for content in ({"embed.weight": evil}, evil):
        torch.save(content, tmp_path / "consolidated.pth")
        with pytest.raises(ValueError, match="would run code and is refused") as error:
            read_foreign("reference", tmp_path / "consolidated.pth", model.config)
        assert "posix.system" in str(error.value)
        assert "\n" not in str(error.value)
    (tmp_path / "consolidated.pth").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(ValueError, match=r"consolidated.pth") as error:
        read_foreign("reference", tmp_path / "consolidated.pth", model.config)
    assert "\n" not in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", (b"", b"nothing of the kind", None), ids=("empty", "text", "cut")
)
def test_a_damaged_file_is_refused_in_one_sentence(model, content, tmp_path):
    file = write_reference(model, tmp_path / "reference") / "consolidated.pth"
    file.write_bytes(file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ValueError, match=r"consolidated.pth (is damaged|cannot be read)") as error:
        read_foreign("reference", tmp_path / "reference")
    assert "\n" not in str(error.value)


def test_what_holds_more_than_tensors_is_refused(model, tmp_path):
    torch.save({"model": reference_tensors(model)}, tmp_path / "consolidated.pth")
    with pytest.raises(ValueError, match="holds more than tensors by their names"):
        read_foreign("reference", tmp_path / "consolidated.pth", model.config)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (lambda value: value.long(), r"embed.weight is torch.int64, .*floating-point"),
        (lambda value: value + 0j, r"embed.weight is torch.complex64, .*floating-point"),
        (lambda value: value.to_sparse(), r"embed.weight is .*sparse_coo.*dense"),
        (lambda value: value.to("meta"), r"embed.weight is .*on meta"),
        (lambda value: value.log(), r"embed.weight holds NaN or infinite values"),
    ),
    ids=("int", "complex", "sparse", "meta", "nan"),
)
def test_weights_that_are_no_finite_numbers_are_refused(model, change, message, tmp_path):
    file = write_reference(model, tmp_path / "reference") / "consolidated.pth"
    tensors = reference_tensors(model)
    torch.save(tensors | {"embed.weight": change(tensors["embed.weight"])}, file)
    with pytest.raises(ValueError, match=message):
        imported("reference", tmp_path / "reference")


@pytest.mark.parametrize("name", ("chunk_size", "norm_num_groups", "norm_eps", "num_layers"))
def test_a_config_that_leaves_out_what_no_shape_tells_is_refused(model, name, tmp_path):
    for source, write in (("reference", write_reference), ("megalodon-hf", write_megalodon_hf)):
        file = write(model, tmp_path / source) / "config.json"
        found = json.loads(file.read_text())
        del found.get("model", found)[name]
        file.write_text(json.dumps(found))
        with pytest.raises(ValueError, match=rf"config.json lacks {name}, which the model cannot"):
            read_foreign(source, tmp_path / source, accept_different_norm=True)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json cannot be read \(it is nested too deep"):
        read_foreign(source, tmp_path / source, accept_different_norm=True)


def test_what_is_not_there_is_said(tmp_path):
    for source, message in (
        ("reference", "neither consolidated.pth nor consolidated.00.pth"),
        ("megalodon-hf", "there is no config.json in it"),
        ("export", "neither model.safetensors nor pytorch_model.bin"),
    ):
        with pytest.raises(ValueError, match=message):
            read_foreign(source, tmp_path, accept_different_norm=True)
        with pytest.raises(ValueError, match="there is no such file or folder"):
            read_foreign(source, tmp_path / "nothing")


def test_megalodon_hf_comes_in_with_its_pairs_and_norms_in_our_layout(tmp_path):
    model = hard_model(hard_config(num_heads=2, z_dim=24), torch.float32)
    for i, layer in enumerate(model.layers):
        # There it is a number that is never trained.
        torch.nn.init.constant_(layer.nffn.alpha, 0.1 * 0.5**i)
        # One more and one less is exact only for values that were made so.
        layer.nffn.norm.weight.data = (layer.nffn.norm.weight.data + 1) - 1
    folder = write_megalodon_hf(model, tmp_path / "hf")
    foreign = read_foreign("megalodon-hf", folder, accept_different_norm=True)
    assert_same_weights(as_model(foreign, "path=hf"), model)
    assert "TimestepNorm is another function" in foreign.notes[0]
    assert len(foreign.notes) == 1


def test_scores_of_half_split_pairs_are_those_of_our_pairs():
    heads, z, length = 2, 8, 5
    model = hard_model(hard_config(num_heads=heads, z_dim=heads * z))
    theirs = megalodon_hf_tensors(model)["model.layers.0.attn.wz.weight"]
    ours = model.layers[0].mega.wz.weight
    hidden = torch.randn(2, length, 16, dtype=torch.float64)
    angle = torch.arange(length).double()[:, None] * 10_000.0 ** (
        -torch.arange(z // 2).double() / (z // 2)
    )

    def half_split(u):
        a, b = u.chunk(2, -1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q, k = (half_split((x @ theirs.T).view(length, heads, z)) for x in hidden)
    factors = rotation(torch.arange(length)[None], z, 16, 10_000.0, hidden)
    own_q, own_k = (rotate((x @ ours.T).view(1, length, heads, z), factors)[0] for x in hidden)
    assert_equal(torch.einsum("qhz,khz->hqk", own_q, own_k), torch.einsum("qhz,khz->hqk", q, k))


def test_megalodon_hf_needs_consent_and_its_biases_must_be_zero(model, tmp_path):
    folder = write_megalodon_hf(model, tmp_path / "hf", cache_unbounded=True)
    with pytest.raises(ValueError, match="set accept_different_norm=true"):
        read_foreign("megalodon-hf", folder)
    notes = read_foreign("megalodon-hf", folder, accept_different_norm=True).notes
    assert "reach across chunks" in notes[1]
    changed = load_file(folder / "model.safetensors")
    for name in ("attn.wh2.bias", "ffn.fc1.bias", "ffn.fc2.bias", "ffn.fc3.bias"):
        named = f"model.layers.1.{name}"
        save_file(changed | {named: changed[named] + 1e-3}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=rf"{named}: is not zero"):
            read_foreign("megalodon-hf", folder, accept_different_norm=True)
    # Older forms of it stored some weights without the minus one.
    for name in ("model.other", "model.layers.0.attn.rmsnorm.weight"):
        save_file(changed | {name: torch.zeros(1)}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=rf"{name}: megalodon-hf in its current form has no"):
            read_foreign("megalodon-hf", folder, accept_different_norm=True)


def test_megalodon_hf_ties_its_head_where_the_file_does(tmp_path):
    tied = hard_model(hard_config(share_emb=True), torch.float32)
    folder = write_megalodon_hf(tied, tmp_path / "hf", share_emb=False)
    assert read_foreign("megalodon-hf", folder, accept_different_norm=True).config.share_emb


@pytest.mark.parametrize(
    "file", ("../secret.safetensors", "/secret.safetensors", "..", "", None, "config.json")
)
def test_an_index_that_points_elsewhere_is_refused(file, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names files outside the folder|which holds no weights"):
        read_foreign("megalodon-hf", tmp_path, accept_different_norm=True)


def test_a_tensor_that_is_there_twice_is_refused(model, tmp_path):
    folder = write_megalodon_hf(model, tmp_path / "hf")
    for number in (1, 2):
        save_file({"same": torch.zeros(number)}, folder / f"{number}.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"same is in 2.safetensors and in a file before it"):
        read_foreign("megalodon-hf", folder, accept_different_norm=True)
