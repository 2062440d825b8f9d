"""Exports hold the checkpoint's weights bit for bit, appear whole or not at all, and say what they
are.
"""

import json
import re

import pytest
import torch
from export_checkpoint import export_checkpoint
from hydra.utils import instantiate
from import_checkpoint import import_checkpoint
from omegaconf import OmegaConf
from safetensors import safe_open

from config_helpers import CONFIGS, composed
from hard import hard_config, hard_model
from inference_helpers import byte_model, write_checkpoint
from interop_helpers import assert_same_weights, reference_tensors
from litmegalodon import checkpoints
from litmegalodon.data import ByteTokenizer, SentencePieceTokenizer
from litmegalodon.inference import load_model
from litmegalodon.interop import exporting
from litmegalodon.interop.exporting import FORMATS, export
from litmegalodon.models import Megalodon, MegalodonConfig
from tokenizer_helpers import train as train_tokenizer


@pytest.fixture(scope="module")
def model():
    return byte_model(torch.float32)


@pytest.fixture
def checkpoint(model, tmp_path):
    return write_checkpoint(model, tmp_path / "run")


def composed_import(source, path, output, *more):
    return composed(
        f"from={source}", f"path={path}", f"output={output}", *more,
        folder=output.parent, name="import_checkpoint",
    )  # fmt: skip


REFERENCE_FIELDS = """
    vocab_size num_layers model_dim z_dim value_dim num_heads ffn_hidden_dim cema_ndim chunk_size
    norm_num_groups norm_affine norm_eps rope_base swiglu rescale_nffn scale_emb share_emb
    output_size dropout hidden_dropout attention_dropout init_mode
"""
SOURCE = {"hf": "export", "safetensors": "export", "reference": "reference"}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share_emb", (False, True), ids=("untied", "tied"))
def test_what_is_exported_and_imported_again_is_the_same_bit_for_bit(format, share_emb, tmp_path):
    model = byte_model(torch.float32, share_emb=share_emb, rope_base=50_000.0)
    checkpoint = write_checkpoint(model, tmp_path / "run")
    export(checkpoint, tmp_path / "export", format, shard_bytes=3000)
    again = import_checkpoint(
        composed_import(SOURCE[format], tmp_path / "export", tmp_path / "again")
    )
    loaded, tokenizer = load_model(again)
    assert_same_weights(loaded, model)
    assert loaded.config == model.config
    assert tokenizer.fingerprint == ByteTokenizer.fingerprint
    export(again, tmp_path / "export2", format, shard_bytes=3000)
    for file in (tmp_path / "export").iterdir():
        # Its card says that it was imported; a pickle has the names of its folder in it.
        if file.suffix not in (".md", ".pth"):
            assert file.read_bytes() == (tmp_path / "export2" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("format", ("hf", "safetensors"))
def test_an_export_is_read_directly_to_write_text_with(model, checkpoint, format, tmp_path):
    export(checkpoint, tmp_path / "export", format, shard_bytes=3000)
    loaded, tokenizer = load_model(tmp_path / "export")
    assert_same_weights(loaded, model)
    assert isinstance(tokenizer, ByteTokenizer)
    half, _ = load_model(tmp_path / "export", dtype="bfloat16")
    wanted, _ = load_model(checkpoint, dtype="bfloat16")
    assert_same_weights(half, wanted)


def test_a_tokenizer_of_a_model_file_goes_with_the_weights(tmp_path):
    path = train_tokenizer(tmp_path / "t.model")
    wanted = SentencePieceTokenizer(str(path))
    model = hard_model(hard_config(vocab_size=400), torch.float32)
    node = {"_target_": "litmegalodon.data.SentencePieceTokenizer", "path": str(path)}
    checkpoint = write_checkpoint(model, tmp_path / "run", node)
    export(checkpoint, tmp_path / "export", "hf")
    path.unlink()
    assert load_model(tmp_path / "export")[1].fingerprint == wanted.fingerprint
    again = import_checkpoint(composed_import("export", tmp_path / "export", tmp_path / "again"))
    loaded, tokenizer = load_model(again)
    assert tokenizer.fingerprint == wanted.fingerprint
    assert_same_weights(loaded, model)
    train_tokenizer(tmp_path / "export" / "tokenizer.model", vocab_size=390)
    with pytest.raises(ValueError, match=r"its files make .*give it the tokenizer.model"):
        load_model(tmp_path / "export")


def test_an_import_says_what_has_no_effect_and_what_may_be_another_s(tmp_path, capsys):
    model = hard_model(hard_config(vocab_size=400), torch.float32)
    checkpoint = write_checkpoint(model, tmp_path / "run")
    export(checkpoint, tmp_path / "reference", "reference")
    given = ("reference", tmp_path / "reference", tmp_path / "a", "accept_different_norm=true")
    import_checkpoint(composed_import(*given))
    said = capsys.readouterr().out
    assert "accept_different_norm=true: has no effect" in said
    assert "data.tokenizer: has only 258 ids and the model knows 400 tokens" in said
    export(checkpoint, tmp_path / "export", "hf")
    sentencepiece = ("data/tokenizer=sentencepiece", "data.tokenizer.path=none.model")
    given = ("export", tmp_path / "export", tmp_path / "b", *sentencepiece, "model=llama")
    import_checkpoint(composed_import(*given))
    said = capsys.readouterr().out
    assert "data.tokenizer: has no effect, an export brings the one" in said
    assert "has only" not in said
    saved = OmegaConf.load(tmp_path / "b" / ".hydra" / "config.yaml")
    assert instantiate(saved.model.config) == model.config
    for path, message in ((tmp_path / "none", "no such folder"), (tmp_path / "run", "no config.j")):
        with pytest.raises(ValueError, match=f"path=.*there is {message}"):
            import_checkpoint(composed_import("export", path, tmp_path / "c"))


def test_a_shard_is_no_larger_than_asked_and_no_more_is_read_at_once(
    model, checkpoint, tmp_path, monkeypatch
):
    read, real = [], exporting.read_tensors

    def counted(path, tensors, setting):
        read.append(sum(value.nbytes for value in tensors.values()))
        assert not any("optimizer" in name for name in tensors)
        real(path, tensors, setting)

    monkeypatch.setattr(exporting, "read_tensors", counted)
    export(checkpoint, tmp_path / "export", "hf", shard_bytes=6000)
    largest = max(p.nbytes for p in model.parameters())
    assert len(read) > 3
    assert all(size <= max(6000, largest) for size in read)
    assert len({file.stat().st_mode for file in (tmp_path / "export").iterdir()}) == 1
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    names = {f"model.{name}" for name, _ in model.named_parameters()}
    assert index["weight_map"].keys() == names
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert set(index["weight_map"].values()) == {
        file.name for file in (tmp_path / "export").glob("*.safetensors")
    }


def test_seven_billion_parameters_are_written_with_one_file_s_worth_in_memory():
    sizes = OmegaConf.load(CONFIGS / "model" / "mega7b3.yaml").config
    config = MegalodonConfig(**{k: v for k, v in sizes.items() if k != "_target_"})
    with torch.device("meta"):
        model = Megalodon(config)
    groups = list(exporting._files(exporting._distinct(model), 5 * 10**9))
    assert sum(value.nbytes for group in groups for value in group.values()) == 4 * 7_385_817_088
    assert max(sum(value.nbytes for value in group.values()) for group in groups) <= 5 * 10**9


def test_bfloat16_is_for_matrices_only(model, checkpoint, tmp_path):
    export(checkpoint, tmp_path / "export", "hf", "bfloat16")
    with safe_open(tmp_path / "export" / "model.safetensors", "pt") as file:
        found = {name.removeprefix("model."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in model.named_parameters():
        wide = re.search(r"cema|norm", name) is not None
        assert found[name].dtype == (torch.float32 if wide else torch.bfloat16), name
        assert torch.equal(found[name], value.to(found[name].dtype)), name


def test_a_rounded_export_comes_back_as_the_rounded_model(checkpoint, tmp_path):
    wanted, _ = load_model(checkpoint, dtype="bfloat16")
    for format, source in SOURCE.items():
        export(checkpoint, tmp_path / format, format, "bfloat16")
        again = import_checkpoint(
            composed_import(source, tmp_path / format, tmp_path / f"{format}-again")
        )
        assert_same_weights(load_model(again)[0], wanted.float())
        # Not a second rounding either.
        assert_same_weights(load_model(again, dtype="bfloat16")[0], wanted.to(torch.bfloat16))


def test_training_and_evaluation_are_told_how_to_take_an_export(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "export", "hf")
    for name in ("ckpt_path", "init_from"):
        with pytest.raises(ValueError, match=rf"{name}=.*is an export.*from=export path=.*export"):
            checkpoints.find(name, str(tmp_path / "export"), tmp_path)


def test_the_reference_s_form_has_its_names_shapes_and_buffers(model, checkpoint, tmp_path):
    export(checkpoint, tmp_path / "export", "reference")
    found = torch.load(tmp_path / "export" / "consolidated.pth", weights_only=True)
    wanted = reference_tensors(model)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name == "rope.freqs":
            assert torch.allclose(found[name], value, rtol=1e-6, atol=0)
        else:
            assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name
    about = json.loads((tmp_path / "export" / "consolidate_config.json").read_text())
    assert about == {"model_parallel_size": 1, "dtype": "fp32"}
    # Of its ModelConf, which takes no other names.
    sizes = json.loads((tmp_path / "export" / "config.json").read_text())["model"]
    assert sizes.keys() == set(REFERENCE_FIELDS.split())


def test_nothing_is_left_of_an_export_that_fails(checkpoint, tmp_path, monkeypatch):
    calls, real = [], exporting.read_tensors

    def fails(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the disk is gone")
        real(*arguments)

    monkeypatch.setattr(exporting, "read_tensors", fails)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="the disk is gone"):
        export(checkpoint, tmp_path / "export", "hf", shard_bytes=3000)
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    # As a killed process would leave it.
    (tmp_path / ".export.part").mkdir()
    (tmp_path / ".export.part" / "old").touch()
    export(checkpoint, tmp_path / "export", "hf")
    assert not (tmp_path / ".export.part").exists()
    assert not (tmp_path / "export" / "old").exists()
    with pytest.raises(ValueError, match=r"output=.*export: is there already; name another"):
        export(checkpoint, tmp_path / "export", "hf")


def test_a_damaged_or_cut_export_is_refused_in_one_sentence(checkpoint, tmp_path):
    folder = tmp_path / "export"
    export(checkpoint, folder, "hf", shard_bytes=3000)
    files = sorted(folder.glob("*.safetensors"))
    whole = files[1].read_bytes()
    for content, message in ((whole[:-10], "is damaged"), (b"", "is damaged")):
        files[1].write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            load_model(folder)
        assert "\n" not in str(error.value)
    files[1].unlink()
    with pytest.raises(ValueError, match=f"there is no file {files[1].name}|{files[1].name} is"):
        load_model(folder)
    files[1].write_bytes(whole)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"ffn_hidden_dim": 13}))
    with pytest.raises(ValueError, match=r"fc1.weight has shape .*its config says"):
        load_model(folder)
    # Sizes beyond any memory, of which none is taken before the files are looked at.
    (folder / "config.json").write_text(json.dumps(settings | {"ffn_hidden_dim": 10**13}))
    with pytest.raises(ValueError, match=r"fc1.weight has shape .*its config says"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "megalodon"}))
    with pytest.raises(ValueError, match=r"of a model megalodon, not of an export"):
        load_model(folder)


def test_the_card_says_what_the_checkpoint_tells_and_what_is_unknown(model, tmp_path):
    checkpoint = write_checkpoint(model, tmp_path / "my-run")
    meta = torch.load(checkpoint / "meta.pt", weights_only=True)
    meta |= {"tokens": 123456, "TextDataModule": {"source.fingerprint": "abcd", "seq_len": 64}}
    torch.save(meta, checkpoint / "meta.pt")
    source = {"_target_": "litmegalodon.data.FilesSource", "paths": ["/home/someone/books"]}
    # As a mixture's sources are.
    source["nested"] = {"mine": {"paths": ["~someone/letters", "../someone/diary", "kept/as/is"]}}
    saved = {"data": {"tokenizer": {"_target_": "litmegalodon.data.ByteTokenizer"}}}
    saved["init_from"] = "/home/someone/their-run"
    saved["data"]["source"] = source
    OmegaConf.save(saved, tmp_path / "my-run" / ".hydra" / "config.yaml")
    rows = "step,val/loss,val/ppl,val/bpb\n10,3.0,20.1,4.5\n20,2.0,7.4,3.25\n30,1.0,2.7,1.5\n"
    (tmp_path / "my-run" / "metrics.csv").write_text(rows)
    export(checkpoint, tmp_path / "export", "hf")
    card = (tmp_path / "export" / "README.md").read_text()
    count = sum(p.numel() for p in model.parameters())
    for text in (
        "# my-run",
        f"| parameters | {count:,}, ",
        "| optimizer steps | 20 |",
        "| tokens trained on | 123,456 |",
        "| val/bpb | 3.2500 after step 20,",
        "| source | FilesSource |",
        "| source.paths | ['books'] |",
        "| source.nested | {'mine': {'paths': ['letters', 'diary', 'kept/as/is']}} |",
        "| began from | the weights of their-run, whose training is not counted |",
        "| source.fingerprint | abcd |",
        "| chunk_size | 16 |",
        "Licence: unknown. The author has to fill it in",
    ):
        assert text in card, text
    # Nor may it tell of this machine.
    assert "someone" not in card
    assert str(tmp_path) not in card
    (tmp_path / "my-run" / "metrics.csv").unlink()
    export(checkpoint, tmp_path / "export2", "reference")
    assert "| validation | unknown |" in (tmp_path / "export2" / "README.md").read_text()
    again = import_checkpoint(composed_import("export", tmp_path / "export", tmp_path / "again"))
    export(again, tmp_path / "export3", "safetensors")
    card = (tmp_path / "export3" / "README.md").read_text()
    assert "its training and quality are unknown here" in card
    assert "What it was trained on is unknown." in card


def test_the_command_finds_the_newest_checkpoint_and_tells_of_the_licence(model, tmp_path, capsys):
    write_checkpoint(model, tmp_path / "train" / "runs" / "a")
    settings = ("ckpt_path=last", f"output={tmp_path}/export", "dtype=bfloat16")
    export_checkpoint(composed(*settings, folder=tmp_path, name="export_checkpoint"))
    assert "the licence is yours to fill in" in capsys.readouterr().out
    assert (tmp_path / "export" / "model.safetensors").is_file()
