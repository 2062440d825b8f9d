import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litmegalodon.data import ByteTokenizer
from litmegalodon.data.tokenizer import pieces

tokenizer = ByteTokenizer()


@settings(deadline=None)
@given(st.binary())
def test_bytes_come_back_as_they_were(data):
    ids = tokenizer.encode(data)
    assert ids.tolist() == list(data)
    assert tokenizer.bytes_of(ids) == data


def test_text_is_utf8_and_what_is_none_becomes_a_replacement_character():
    assert tokenizer.encode("é").tolist() == [0xC3, 0xA9]
    assert tokenizer.decode([0xC3, 0xA9, 0xC3]) == "é\N{REPLACEMENT CHARACTER}"


def test_boundary_tokens_have_no_text():
    assert tokenizer.decode([tokenizer.bos_id, 104, 105, tokenizer.eos_id]) == "hi"


@pytest.mark.parametrize("token", [-1, 258])
def test_a_token_outside_the_vocabulary_is_named(token):
    with pytest.raises(ValueError, match=f"token {token} is outside"):
        tokenizer.bytes_of([104, token])


@settings(deadline=None)
@given(st.text(alphabet="ab \né\U0001f600", max_size=60), st.integers(4, 20))
def test_pieces_join_to_the_text_and_cut_no_character(text, size):
    found = list(pieces(memoryview(text.encode()), size))
    assert b"".join(found) == text.encode()
    assert all(0 < len(piece) <= size and piece.decode() for piece in found)


def test_a_piece_ends_before_the_end_of_a_line_or_a_space():
    assert list(pieces(b"one two\nthree four five", 10)) == [b"one two", b"\nthree", b" four five"]
    assert list(pieces(bytes([0x80]) * 9, 4)) == [bytes([0x80])] * 5 + [bytes([0x80]) * 4]
