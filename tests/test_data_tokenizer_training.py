"""Tokenizers trained on a source: all of its text up to a limit, and what they are worth."""

from time import sleep

import pytest

from corpus_helpers import Shards
from litmegalodon.data import (
    ByteTokenizer,
    Document,
    LeftOut,
    ListSource,
    PreparedCorpus,
    SentencePieceTokenizer,
    tokenizer_training,
)
from litmegalodon.data.preparing import prepare
from litmegalodon.data.tokenizer_training import SENTENCE, TrainingText, fit, train
from tokenizer_helpers import TEXT


def source(*shards, val=(TEXT,)):
    return Shards(
        [[text if isinstance(text, LeftOut) else document(text) for text in s] for s in shards],
        [document(text) for text in val],
    )


def document(text):
    return Document("name", text if isinstance(text, bytes) else text.encode())


def trained(folder, text, vocab_size=400, model_type="bpe", progress=print):
    settings = {"model_type": model_type, "character_coverage": 0.99995, "threads": 1}
    model = train(text, vocab_size, log=folder / "log", progress=progress, **settings)
    (folder / "a.model").write_bytes(model)
    return SentencePieceTokenizer(str(folder / "a.model"))


def test_text_is_its_lines():
    text = TrainingText(source(["one\n\n  two\n", "three"], ["four"]), 1000)
    assert list(text) == ["one", "  two", "three", "four"]
    assert (text.documents, text.bytes, text.is_cut) == (3, 17, False)


def test_prompts_are_trained_on_too():
    corpus = Shards([[Document("a", b"answer", prompt=b"the\nquestion")]], [])
    text = TrainingText(corpus, 1000)
    assert list(text) == ["the", "question", "answer"]
    assert (text.documents, text.bytes) == (1, 17)


def test_a_prepared_corpus_has_no_text_to_train_on(tmp_path):
    prepare(source(["some text"]), ByteTokenizer(), tmp_path, units={"train": 1, "val": 1})
    with pytest.raises(ValueError, match="holds tokens and no text, which a tokenizer") as raised:
        TrainingText(PreparedCorpus(str(tmp_path)), 1000)
    assert "streaming" not in str(raised.value)


def test_long_lines_are_cut_at_spaces_and_not_left_out():
    line = "word " * 3000
    lines = list(TrainingText(source([line]), 10**6))
    assert "".join(lines) == line
    assert max(map(len, lines)) <= SENTENCE
    assert not any(part.endswith("w") for part in lines)


def test_a_limit_takes_evenly_from_all_shards_and_says_so():
    shards = [["a" * 9] * 10, ["b" * 9] * 2, ["c" * 9] * 10]
    text = TrainingText(source(*shards), 90)
    lines = list(text)
    assert [sum(line[0] == letter for line in lines) for letter in "abc"] == [3, 2, 5]
    assert text.is_cut
    exact = TrainingText(source(*shards), 22 * 9 * 3)
    assert (len(list(exact)), exact.is_cut) == (22, False)


def test_what_is_no_text_is_counted():
    bad = LeftOut("a.txt", "is no text")
    text = TrainingText(source([b"caf\xe9 and\nmore", bad, "nul\0l"]), 1000, on_error="skip")
    assert list(text) == ["caf and", "more", "null"]
    assert (text.broken_lines, text.left_out) == (1, 1)
    with pytest.raises(ValueError, match=r"a\.txt: is no text"):
        list(TrainingText(source([bad]), 1000))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_trained_tokenizer_is_like_llama_2s(tmp_path, capfd, model_type):
    corpus = source([TEXT * 30])
    size = 400 if model_type == "bpe" else 330
    tokenizer = trained(tmp_path, TrainingText(corpus, 10**6), size, model_type=model_type)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, size)
    text = "  the\tdog\n\u4e2d 1999"
    assert tokenizer.bytes_of(tokenizer.encode(text)) == text.encode()
    # Digits are tokens by themselves, a line's end is a byte.
    assert len(tokenizer.encode("1999")) - len(tokenizer.encode("19")) == 2
    assert tokenizer.encode("a\na").tolist().count(3 + ord("\n")) == 1
    # SentencePiece's many words are in its log.
    assert capfd.readouterr().err == ""
    assert (tmp_path / "log").stat().st_size > 0


def test_training_tells_how_far_it_has_come(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "EVERY", 0.001)
    said = []
    # Reading takes a moment a line.
    text = TrainingText(source([TEXT * 30]), 10**6)
    lines = list(text)
    monkeypatch.setattr(TrainingText, "__iter__", lambda _: (sleep(1e-4) or line for line in lines))
    trained(tmp_path, text, progress=said.append)
    assert said
    assert all(line.startswith("training: 0 s, 0 MB read") for line in said)


def test_the_fit_counts_bytes_tokens_and_what_is_spelt_in_bytes(tmp_path):
    val = ["the dog\n", "the \u4e2d\u6587"]
    corpus = source([TEXT * 30], val=val)
    tokenizer = trained(tmp_path, TrainingText(corpus, 10**6))
    found = fit(tokenizer, corpus, 10**6)
    ids = [tokenizer.encode(text) for text in val]
    assert (found.documents, found.bytes) == (2, 18)
    assert found.tokens == sum(map(len, ids))
    assert found.bytes_per_token == 18 / found.tokens
    # Of 13 characters without the line's end two are in no token, of three bytes each.
    assert found.covered == pytest.approx(1 - 2 / 13)
    assert found.byte_tokens == pytest.approx(6 / (found.tokens - 1))
    assert not found.is_cut
    cut = fit(tokenizer, corpus, 10)
    assert (cut.documents, cut.bytes, cut.is_cut) == (2, 10, True)


def test_prompts_are_held_out_text_too(tmp_path):
    corpus = source([TEXT * 30])
    asked = ListSource([], [Document("asked", b"the fox", prompt=b"the dog")])
    tokenizer = trained(tmp_path, TrainingText(corpus, 10**6))
    found = fit(tokenizer, asked, 10**6)
    ids = [tokenizer.encode(text) for text in (b"the dog", b"the fox")]
    assert (found.documents, found.bytes, found.is_cut) == (1, 14, False)
    assert found.tokens == sum(map(len, ids))
    assert fit(tokenizer, asked, 9).bytes == 9


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([TEXT], 100_000, r"vocab_size=100000: .* set at most \d+, or train on more text"),
        ([TEXT], 200, r"vocab_size=200: .* alone are 3\d\d tokens; set more"),
        (["", "\n"], 400, "hold no text to train a tokenizer on"),
    ],
)
def test_a_vocabulary_that_does_not_suit_the_text_says_what_would(
    tmp_path, texts, vocab_size, message
):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, TrainingText(source(texts), 10**6), vocab_size)
