"""What was read can be kept in a file and continued by the same model and tokenizer only."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from golden_data import assert_equal
from inference_helpers import BOS, TOKENIZER, byte_model, reader, text_of, tokens_of
from litmegalodon.data import ByteTokenizer
from litmegalodon.inference import Reader, save_state
from litmegalodon.inference.snapshot import fingerprint
from litmegalodon.models import MegalodonState


@pytest.fixture(scope="module")
def model():
    return byte_model(torch.float32)


@pytest.fixture
def book(model, tmp_path):
    path = tmp_path / "book.safetensors"
    reader(model, text_of(60)).save_state(path)
    return path


@pytest.mark.parametrize("length", [0, 1, 31, 32, 60])
def test_a_snapshot_is_continued_as_the_text_itself(model, length, tmp_path):
    path, made = tmp_path / "book.safetensors", reader(model, text_of(length))
    made.save_state(path)
    loaded = Reader(model, TOKENIZER, state=path)
    assert loaded.state.last == made.state.last
    if length:
        # Bit for bit, which is more than asked for.
        for name, value in made.state.memory.tensors().items():
            assert torch.equal(loaded.state.memory.tensors()[name], value), name
    # Right from it, and after a question.
    assert tokens_of(Reader(model, TOKENIZER, state=path), 20, temperature=0) == tokens_of(
        reader(model, text_of(length)), 20, temperature=0
    )
    loaded.read("who?")
    asked = reader(model, text_of(length), "who?")
    assert tokens_of(loaded, 20, temperature=0) == tokens_of(asked, 20, temperature=0)


def test_the_logits_after_a_snapshot_equal_those_of_one_call(model, book):
    tokens = torch.tensor([[BOS, *text_of(60), *b"more"]])
    state = Reader(model, TOKENIZER, state=book).state
    got, _ = model(tokens[:, 60:], state.memory)
    assert_equal(got, model(tokens)[0][:, 60:], 1e-5, "logits")


def test_a_row_of_a_batch_is_kept_like_one_alone(model, tmp_path):
    from litmegalodon.inference import generate_together

    readers = [reader(model, text_of(n)) for n in (3, 44)]
    list(generate_together(readers, 5, temperature=0))
    for made in readers:
        made.save_state(tmp_path / "row.safetensors")
        assert Reader(model, TOKENIZER, state=tmp_path / "row.safetensors").state.last


def test_its_size_does_not_depend_on_the_length_of_the_text(model, tmp_path):
    sizes = set()
    for length in (21, 21 + 16, 21 + 16 * 40):
        path = tmp_path / "book.safetensors"
        reader(model, text_of(length)).save_state(path)
        sizes.add(path.stat().st_size)
    assert len(sizes) == 1


def test_it_is_written_whole_or_not_at_all(model, book, monkeypatch):
    before = book.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("litmegalodon.inference.snapshot.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        reader(model, "other").save_state(book)
    assert book.read_bytes() == before
    assert os.listdir(book.parent) == [book.name]


def test_it_is_refused_by_a_model_of_another_shape(model, book):
    other = byte_model(torch.float32, chunk_size=32)
    with pytest.raises(ValueError, match=r"state=.*another model: .*chunk_size=32 \(there 16\)"):
        Reader(other, TOKENIZER, state=book)


def test_it_is_refused_by_other_weights_with_both_fingerprints(model, book):
    other = byte_model(torch.float32, seed=5)
    mine, theirs = fingerprint(other), fingerprint(model)
    assert mine != theirs
    with pytest.raises(ValueError, match=f"is of weights {theirs}, and this model's is {mine}"):
        Reader(other, TOKENIZER, state=book)


def test_it_is_refused_in_another_dtype(model, book):
    other = byte_model(torch.float64)
    with pytest.raises(ValueError, match="is of dtype float32, and this model's is float64"):
        Reader(other, TOKENIZER, state=book)


def test_it_is_refused_with_another_tokenizer(model, book):
    class Other(ByteTokenizer):
        fingerprint = "words"

    with pytest.raises(ValueError, match=f"is of tokenizer {TOKENIZER.fingerprint}, .* is words"):
        Reader(model, Other(), state=book)


@pytest.mark.parametrize("name", [n for n, _ in byte_model().named_parameters()])
def test_the_fingerprint_reads_every_parameter(name):
    model = byte_model()
    before = fingerprint(model)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.001)
    # A zero stays zero.
    if model.get_parameter(name).any():
        assert fingerprint(model) != before


@pytest.mark.parametrize("kept", [0.7, 0.05, 0.0])
def test_a_file_cut_short_ends_in_a_sentence(model, book, kept):
    whole = book.read_bytes()
    book.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"state=.*book\.safetensors: is no whole snapshot"):
        Reader(model, TOKENIZER, state=book)


def test_another_file_ends_in_a_sentence(model, book):
    def refuses(pattern):
        with pytest.raises(ValueError, match=f"^state=.*: {pattern}"):
            Reader(model, TOKENIZER, state=book)

    tensors = load_file(book)
    save_file({"weight": torch.zeros(3)}, book)
    refuses(r"is no snapshot \(litmegalodon snapshot 1\) but another safetensors file")
    # The state alone has no last token and no model.
    MegalodonState.from_tensors(tensors).save(book)
    refuses("is no snapshot")
    book.write_text("Call me Ishmael.")
    refuses("is no whole snapshot")
    book.unlink()
    refuses("there is no such file; make one with save_state=")
    book.mkdir()
    refuses("is no whole snapshot")


def test_a_snapshot_with_other_tensors_ends_in_a_sentence(model, book):
    tensors = load_file(book)
    with safe_open(book, framework="pt") as file:
        about = file.metadata()
    config = model.config.to_dict()
    for changed in (
        {n: v for n, v in tensors.items() if n != "last"},
        {n: v for n, v in tensors.items() if n != "layers.1.h"},
        {n: v for n, v in tensors.items() if n != "layers.0.k"},
        {n: v for n, v in tensors.items() if n != "position"},
        {n: v for n, v in tensors.items() if not n.startswith("layers.1")},
        tensors | {"layers.0.k": tensors["layers.0.k"][:, 1:].contiguous()},
        tensors | {"last": torch.tensor([300])},
        {n: torch.cat([v, v]) for n, v in tensors.items()},
    ):
        save_file(changed, book, about)
        with pytest.raises(ValueError, match=r"^state=.*: its tensors are not those of a snapshot"):
            Reader(model, TOKENIZER, state=book)
    save_file(tensors, book, about | {"config": "{"})
    with pytest.raises(ValueError, match=r"^state=.*: names no model"):
        Reader(model, TOKENIZER, state=book)
    save_file(tensors, book, about | {"config": json.dumps(config | {"dropout": 0.5})})
    # Dropout changes nothing that is read.
    Reader(model, TOKENIZER, state=book)


def test_where_nothing_can_be_written_it_is_said(model, tmp_path):
    with pytest.raises(OSError):
        save_state(tmp_path / "nowhere" / "book.safetensors", reader(model).state, model, TOKENIZER)
