"""SentencePiece models: ids as SentencePiece gives them, bytes as they were in the text."""

import hashlib
import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from litmegalodon.data import SentencePieceTokenizer
from litmegalodon.data.tokenizer import PIECE, pieces
from tokenizer_helpers import TEXT, train

untimed = settings(deadline=None, max_examples=60)
texts = st.text(alphabet="the 1\n\té\U0001f600\x00▁", max_size=40) | st.text(max_size=20)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": train(folder / "llama.model"),
        "no_prefix": train(folder / "no_prefix.model", add_dummy_prefix=False),
        "unigram": train(folder / "unigram.model", 330, model_type="unigram"),
        "collapsing": train(
            folder / "collapsing.model",
            remove_extra_whitespaces=True,
            normalization_rule_name="nmt_nfkc",
        ),
        "no_bytes": train(folder / "no_bytes.model", 150, byte_fallback=False),
    }


@pytest.fixture(scope="module")
def both(models):
    """The tokenizer and SentencePiece's own processor of each model."""
    return {
        name: (
            SentencePieceTokenizer(str(path)),
            sentencepiece.SentencePieceProcessor(model_file=str(path)),
        )
        for name, path in models.items()
    }


@pytest.fixture(scope="module")
def llama(both):
    return both["llama"][0]


def joined(tokenizer, text, size):
    parts = pieces(text.encode(), size)
    ids = [tokenizer.encode_piece(piece, first=i == 0) for i, piece in enumerate(parts)]
    return [i for part in ids for i in part.tolist()]


KINDS = ["llama", "no_prefix", "unigram", "collapsing", "no_bytes"]


@pytest.mark.parametrize("kind", KINDS)
@untimed
@given(text=texts)
def test_ids_are_those_of_sentencepiece(both, kind, text):
    tokenizer, processor = both[kind]
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == processor.encode(text) == tokenizer.encode(text.encode()).tolist()


@untimed
@given(lines=st.lists(st.text(alphabet="the 1é▁\t", min_size=5, max_size=8), max_size=9))
def test_pieces_join_to_the_whole_texts_ids_where_they_end_at_line_ends(both, lines):
    text = "\n".join(lines)
    for kind in ("llama", "no_prefix"):
        tokenizer, processor = both[kind]
        # A line has at most 16 bytes: one ends in every second half of a piece.
        assert joined(tokenizer, text, 40) == processor.encode(text)


@untimed
@given(words=st.lists(st.text(alphabet="the1é", min_size=1, max_size=4), max_size=20))
def test_pieces_join_to_the_whole_texts_ids_where_they_end_at_single_spaces(both, words):
    text = " ".join(words)
    for kind in ("llama", "no_prefix", "collapsing", "no_bytes"):
        tokenizer, processor = both[kind]
        assert joined(tokenizer, text, 20) == processor.encode(text)


def test_a_piece_opens_with_the_models_space_only_where_the_text_does(llama):
    word = llama.encode("the").tolist()
    assert llama.encode_piece(b"the", first=True).tolist() == word
    assert llama.decode(llama.encode_piece(b"the", first=True)) == "the"
    assert llama.encode_piece(b" the", first=False).tolist() == word


def test_a_long_text_is_read_in_pieces_and_equals_the_whole(both):
    tokenizer, processor = both["llama"]
    text = TEXT * (2 * PIECE // len(TEXT.encode()))
    ids = tokenizer.encode(memoryview(text.encode()))
    assert ids.tolist() == processor.encode(text)
    assert tokenizer.bytes_of(ids) == text.encode()


@untimed
@given(data=st.binary(max_size=30) | texts.map(str.encode))
def test_bytes_come_back_as_they_were_broken_utf8_too(both, data):
    for kind in ("llama", "no_prefix"):
        tokenizer = both[kind][0]
        # SentencePiece takes its own sign for a space.
        expected = data.replace("▁".encode(), b" ")
        ids = tokenizer.encode(data)
        assert tokenizer.bytes_of(ids) == expected
        assert tokenizer.decode(ids) == expected.decode(errors="replace")


def test_broken_utf8_is_an_unknown_character_without_byte_tokens(both):
    tokenizer, processor = both["no_bytes"]
    assert tokenizer.encode(b"the\xff").tolist() == processor.encode("the\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("kind", KINDS)
@untimed
@given(text=texts)
def test_text_of_ids_is_that_of_sentencepiece(both, kind, text):
    tokenizer, processor = both[kind]
    ids = processor.encode(text)
    assert tokenizer.decode(ids) == processor.decode(ids)
    bounded = [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert tokenizer.decode(bounded) == processor.decode(bounded)


def test_a_character_of_several_byte_tokens_is_joined_before_decoding(llama):
    ids = llama.encode("a\U0001f600")
    assert len(ids) >= 5
    assert llama.decode(ids) == "a\U0001f600"
    assert llama.decode(ids[:-1]) == "a\N{REPLACEMENT CHARACTER}"


def test_ids_and_flags_are_those_of_llama_2(llama):
    assert (llama.bos_id, llama.eos_id, llama.vocab_size) == (1, 2, 400)
    # 256 byte tokens from 3 on; a line's end is one of them.
    assert llama.encode("\n").tolist()[-1] == 3 + ord("\n")
    assert llama.bos_id not in llama.encode("<s>").tolist()
    digits = [llama.encode(digit).tolist()[-1] for digit in "1998"]
    assert llama.encode("1998").tolist()[-4:] == digits


def test_the_fingerprint_is_the_files(models, llama):
    data = models["llama"].read_bytes()
    assert llama.fingerprint == hashlib.sha256(data).hexdigest()[:16]
    assert llama.model == data
    assert len({SentencePieceTokenizer(str(path)).fingerprint for path in models.values()}) == 5


def test_a_worker_gets_the_same_tokenizer_though_the_file_is_gone(models, tmp_path):
    path = tmp_path / "gone.model"
    path.write_bytes(models["llama"].read_bytes())
    tokenizer = SentencePieceTokenizer(str(path))
    path.unlink()
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert again.fingerprint == tokenizer.fingerprint
    assert again.bytes_of(again.encode(TEXT)) == TEXT.encode()


@pytest.mark.parametrize("token", [-1, 400])
def test_a_token_outside_the_vocabulary_is_named(llama, token):
    with pytest.raises(ValueError, match=f"token {token} is outside .* vocabulary of 400"):
        llama.bytes_of([5, token])


@pytest.mark.parametrize("content", [None, b"", b"words\n", b"\x0a\x05hello"])
def test_what_is_no_model_is_named(tmp_path, content):
    path = tmp_path / "a.model"
    if content is not None:
        path.write_bytes(content)
    reason = "no such file" if content is None else rf"is no .* model \({len(content)} bytes\)"
    with pytest.raises(ValueError, match=rf"data\.tokenizer\.path={path}: {reason}"):
        SentencePieceTokenizer(str(path))


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_model_without_a_boundary_token_is_refused_with_the_fix(tmp_path, name):
    path = train(tmp_path / "a.model", **{f"{name}_id": -1})
    with pytest.raises(ValueError, match=f"has no {name} token, .* train it with {name}_id="):
        SentencePieceTokenizer(str(path))


def test_a_model_with_spaces_as_suffixes_is_refused(tmp_path):
    path = train(tmp_path / "a.model", treat_whitespace_as_suffix=True)
    with pytest.raises(ValueError, match="treat_whitespace_as_suffix=false"):
        SentencePieceTokenizer(str(path))
