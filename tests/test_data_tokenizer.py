import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litmegalodon.data import ByteTokenizer

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
