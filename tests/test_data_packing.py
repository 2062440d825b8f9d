import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import BOS, EOS, IGNORED, documents, expected_rows, texts
from litmegalodon.data import ByteTokenizer, MemoryStore, PackedRows

seq_lens = st.integers(1, 9)
untimed = settings(deadline=None)


def pack(texts, seq_len, **settings):
    return PackedRows(MemoryStore(documents(texts), ByteTokenizer()), seq_len, EOS, **settings)


def triples(row):
    return list(zip(*(part.tolist() for part in row), strict=True))


with_prompts = st.lists(
    st.tuples(st.binary(max_size=6), st.binary(max_size=6)), min_size=1, max_size=5
)


@untimed
@given(st.one_of(texts, with_prompts), seq_lens, st.booleans())
def test_rows_hold_every_token_with_its_target_and_resets(texts, seq_len, reset_documents):
    rows = pack(texts, seq_len, reset_documents=reset_documents)
    assert [triples(row) for row in rows] == expected_rows(texts, seq_len, reset_documents)


@untimed
@given(texts, seq_lens)
def test_every_byte_and_every_eos_is_predicted_once_and_bos_never(texts, seq_len):
    rows = pack(texts, seq_len)
    targets = np.concatenate([row[1] for row in rows])
    predicted = targets[targets != IGNORED].tolist()
    assert predicted == [token for text in texts for token in [*text, EOS]]
    assert rows.store.num_targets == len(predicted)


@untimed
@given(texts, seq_lens)
def test_counts_are_those_of_the_documents(texts, seq_len):
    rows = pack(texts, seq_len)
    tokens = sum(map(len, texts)) + 2 * len(texts)
    assert rows.store.num_bytes == sum(map(len, texts))
    assert rows.store.num_tokens == tokens
    assert rows.filled == tokens


def test_a_long_document_continues_in_the_next_row():
    tokens, targets, resets = zip(*pack([b"abcdef"], 4), strict=True)
    assert np.array(tokens).tolist() == [[BOS, 97, 98, 99], [100, 101, 102, EOS]]
    assert np.array(targets).tolist() == [[97, 98, 99, 100], [101, 102, EOS, IGNORED]]
    assert np.array(resets).tolist() == [[True, False, False, False], [False] * 4]


def test_padding_opens_with_a_reset_of_its_own():
    tokens, targets, resets = pack([b"a"], 6)[0]
    assert tokens.tolist() == [BOS, 97, EOS, EOS, EOS, EOS]
    assert targets.tolist() == [97, EOS] + [IGNORED] * 4
    assert resets.tolist() == [True, False, False, True, False, False]


def test_rows_have_the_types_that_the_model_takes():
    assert [part.dtype for part in pack([b"text"], 3)[0]] == [np.int64, np.int64, np.bool_]


def test_tokens_are_stored_in_as_few_bytes_as_the_vocabulary_allows():
    large = ByteTokenizer()
    large.vocab_size = 100_000
    for tokenizer, dtype in ((ByteTokenizer(), np.uint16), (large, np.int32)):
        assert MemoryStore(documents([b"text"]), tokenizer).tokens(0, 3).dtype == dtype


def test_a_row_that_does_not_exist_raises():
    rows = pack([b"text"], 3)
    assert len(rows) == 2
    for i in (-1, 2):
        with pytest.raises(IndexError):
            rows[i]
