"""A checkpoint gives its model and tokenizer, and nothing that it names or holds is run."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from hard import hard_config, hard_model
from inference_helpers import byte_model, reader, text_of, tokens_of, write_checkpoint
from litmegalodon.checkpoints.files import read_tensors
from litmegalodon.data import ByteTokenizer
from litmegalodon.inference import Reader, load_model
from runs import ROOT
from tokenizer_helpers import train


class Trap:
    """An object whose unpickling leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def model():
    return byte_model(torch.float32)


@pytest.fixture
def checkpoint(model, tmp_path):
    return write_checkpoint(model, tmp_path / "run")


def refuses(checkpoint, pattern, **arguments):
    with pytest.raises(ValueError, match=pattern) as error:
        load_model(checkpoint, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("named", ["checkpoint", "run"])
def test_a_loaded_model_writes_what_the_saved_one_would(model, checkpoint, named):
    path = checkpoint if named == "checkpoint" else checkpoint.parents[1]
    loaded, tokenizer = load_model(path)
    assert isinstance(tokenizer, ByteTokenizer)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    made = Reader(loaded, tokenizer)
    made.read(text_of(40))
    want = tokens_of(reader(model, text_of(40)), 20, temperature=0)
    assert tokens_of(made, 20, temperature=0) == want


def test_a_model_that_shares_its_embedding_is_loaded_too(tmp_path):
    shared = byte_model(torch.float32, share_emb=True)
    loaded, _ = load_model(write_checkpoint(shared, tmp_path))
    assert loaded.output.output.weight is loaded.embed.weight
    assert torch.equal(loaded.embed.weight, shared.embed.weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_dtype_can_be_chosen(model, checkpoint, dtype):
    loaded, tokenizer = load_model(checkpoint, dtype=dtype)
    assert loaded.embed.weight.dtype == getattr(torch, dtype)
    made = Reader(loaded, tokenizer)
    made.read("abc")
    assert "".join(made.generate(5))
    assert loaded.layers[0].mega.cema.alpha.dtype == (
        torch.float64 if dtype == "float64" else torch.float32
    )
    for name, value in model.state_dict().items():
        got = loaded.state_dict()[name]
        assert torch.equal(got, value.to(got.dtype)), name


def test_damaged_settings_end_in_a_sentence(checkpoint):
    (checkpoint.parents[1] / ".hydra" / "config.yaml").write_text("a: [")
    refuses(checkpoint, "^ckpt_path=.*: .*config.yaml beside it is damaged")


def test_a_tokenizer_can_be_given(checkpoint):
    mine = ByteTokenizer()
    (checkpoint.parents[1] / ".hydra" / "config.yaml").unlink()
    assert load_model(checkpoint, tokenizer=mine)[1] is mine
    refuses(checkpoint, "^ckpt_path=.*: the run's .hydra/config.yaml .* is not beside it; keep")


def test_a_sentencepiece_tokenizer_is_loaded_from_its_file(tmp_path):
    path = train(tmp_path / "words.model")
    node = {"_target_": "litmegalodon.data.SentencePieceTokenizer", "path": str(path)}
    wide = hard_model(hard_config(vocab_size=400), torch.float32)
    checkpoint = write_checkpoint(wide, tmp_path / "run", node)
    loaded, tokenizer = load_model(checkpoint)
    made = Reader(loaded, tokenizer)
    assert made.read("the dog") == len(tokenizer.encode("the dog"))
    assert "".join(made.generate(9))
    path.unlink()
    refuses(checkpoint, "^data.tokenizer.path=.*: no such file")
    small = write_checkpoint(byte_model(torch.float32), tmp_path / "small")
    refuses(small, "knows 264 tokens and the tokenizer has 400; give the", tokenizer=tokenizer)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "litmegalodon.utils.command_line.os.system",
        "litmegalodon.utils.allocator.keep_freed_memory",
        "litmegalodon.models.MegalodonConfig",
        "litmegalodon.nowhere.Tokenizer",
        "litmegalodonia.Tokenizer",
    ],
)
def test_a_tokenizer_that_is_none_of_ours_is_not_made(model, tmp_path, target):
    path = write_checkpoint(model, tmp_path, {"_target_": target, "command": "false"})
    refuses(
        path, f"^ckpt_path=.*: .*_target_={target}, which is no tokenizer of litmegalodon; code"
    )


def test_a_node_inside_the_tokenizer_is_not_made(model, tmp_path):
    inner = {"_target_": "os.system", "command": "false"}
    node = {"_target_": "litmegalodon.data.ByteTokenizer", "inner": inner}
    refuses(write_checkpoint(model, tmp_path, node), "code that a checkpoint names is not run")


def test_settings_of_another_version_end_in_a_sentence(model, checkpoint, tmp_path):
    node = {"_target_": "litmegalodon.data.ByteTokenizer", "width": 3}
    refuses(
        write_checkpoint(model, tmp_path / "b", node), "was made by another version .ByteTokenizer"
    )
    meta = torch.load(checkpoint / "meta.pt")
    meta["hyper_parameters"]["config"]["depth"] = 3
    torch.save(meta, checkpoint / "meta.pt")
    refuses(checkpoint, "was made by another version .*depth")


def test_settings_that_refer_to_what_is_not_there_end_in_a_sentence(model, tmp_path):
    node = {"_target_": "litmegalodon.data.ByteTokenizer", "path": "${nowhere.at_all}"}
    refuses(write_checkpoint(model, tmp_path, node), "data.tokenizer of its settings can't be read")


def test_what_a_checkpoint_holds_is_not_run(model, checkpoint, tmp_path):
    trace = tmp_path / "trace"
    for name in (".metadata", "meta.pt"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickle.dumps(Trap(trace), protocol=2))
        refuses(checkpoint, "^ckpt_path=.*: cannot be read, it is damaged")
        assert not trace.exists()
        (checkpoint / name).write_bytes(whole)
    # Entries that are no tensors would be unpickled by torch's own reader.
    assert "note" in pickle.loads((checkpoint / ".metadata").read_bytes()).state_dict_metadata
    with pytest.raises(ValueError, match=r"^setting: cannot be read"):
        read_tensors(checkpoint, {"note": torch.zeros(1)}, "setting")


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__0_0.distcp"])
@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_checkpoint_cut_short_ends_in_a_sentence(checkpoint, name, kept):
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: int(kept * len(whole))])
    refuses(checkpoint, r"^ckpt_path=.*last-step=000020\.ckpt: cannot be read, it is damaged")


@pytest.mark.parametrize("name", [".metadata", "meta.pt"])
def test_an_incomplete_checkpoint_ends_in_a_sentence(checkpoint, name):
    (checkpoint / name).unlink()
    refuses(checkpoint, "^ckpt_path=.*: is not a checkpoint")


def test_weights_of_another_shape_end_in_a_sentence(checkpoint):
    meta = torch.load(checkpoint / "meta.pt")
    meta["hyper_parameters"]["config"]["model_dim"] = 32
    torch.save(meta, checkpoint / "meta.pt")
    refuses(checkpoint, "^ckpt_path=.*: cannot be read, it is damaged")


def test_wrong_arguments_are_named(checkpoint):
    refuses(checkpoint, "^dtype=float16: must be float32, bfloat16 or float64", dtype="float16")
    refuses(checkpoint, "^device=tpu: must be auto, cpu or cuda", device="tpu")
    refuses("nowhere", "^ckpt_path=nowhere: there is no such file or folder")


def test_loading_needs_no_lightning(checkpoint):
    code = (
        "import sys; from litmegalodon.inference import Drawing\n"
        "assert 'torch' not in sys.modules\n"
        f"from litmegalodon.inference import load_model; load_model({str(checkpoint)!r})\n"
        "assert 'lightning' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], check=True, cwd=ROOT / "src"
    )


def test_the_settings_of_a_real_run_hold_a_tokenizer_of_ours(tmp_path):
    from config_helpers import composed

    saved = composed(folder=tmp_path).data.tokenizer
    assert OmegaConf.to_container(saved) == {"_target_": "litmegalodon.data.ByteTokenizer"}
