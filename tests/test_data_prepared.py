"""A prepared corpus gives the tokens of its documents, wherever one reads, and tells damage."""

import json
import pickle
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import datamodule, document, documents, rows_of
from litmegalodon.data import (
    ByteTokenizer,
    Document,
    ListSource,
    MemoryStore,
    PreparedCorpus,
    SentencePieceTokenizer,
    token_files,
)
from litmegalodon.data.preparing import prepare
from litmegalodon.data.token_files import TokenFile, TokenWriter
from litmegalodon.data.whole_files import sha256
from tokenizer_helpers import train

bytes_tokenizer = ByteTokenizer()
untimed = settings(deadline=None, max_examples=40)
texts = st.lists(st.binary(max_size=12) | st.tuples(st.binary(max_size=5), st.binary(max_size=12)))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    return SentencePieceTokenizer(str(train(tmp_path_factory.mktemp("model") / "a.model")))


def prepared(folder, train=(b"some text", b"more"), val=(b"held out",), **settings):
    """A corpus of the texts in their order."""
    tokenizer = settings.pop("tokenizer", bytes_tokenizer)
    settings = {"units": {"train": 1, "val": 1}, **settings}
    assert prepare(ListSource(items(train), items(val)), tokenizer, folder, **settings) == []
    return PreparedCorpus(str(folder))


def items(texts):
    """Documents of texts, each bytes or (prompt, bytes)."""
    return [document(f"document {i}", text) for i, text in enumerate(texts)]


def same(store, expected, documents):
    """Whether a store gives what one in memory gives, wherever one reads."""
    for name in ("documents", "tokens", "bytes", "targets"):
        assert getattr(store, f"num_{name}") == getattr(expected, f"num_{name}")
    size = expected.num_tokens
    # Backwards too: nothing depends on what was read before.
    for i in [*range(size), *reversed(range(size))]:
        assert store.document_of(i) == expected.document_of(i)
    for i in range(expected.num_documents):
        assert store.start(i) == expected.start(i)
        assert store.prompt(i) == expected.prompt(i)
        assert store.text_bytes(i) == len(documents[i].text)
        assert store.name(i) == documents[i].name
    assert store.start(expected.num_documents) == size
    for first in range(0, size, max(1, size // 9)):
        for stop in {first, min(size, first + 1), min(size, first + 7), size}:
            found = store.tokens(first, stop)
            assert found.tolist() == expected.tokens(first, stop).tolist()
            assert found.dtype == expected.tokens(0, 0).dtype


@untimed
@given(texts=texts, batch=st.integers(1, 30))
def test_a_file_gives_every_token_of_every_document_once(tmp_path_factory, texts, batch):
    path = tmp_path_factory.mktemp("file") / "a.arrow"
    with pytest.MonkeyPatch.context() as patch, path.open("wb") as file:
        patch.setattr(token_files, "BATCH_TOKENS", batch)
        writer = TokenWriter(file, bytes_tokenizer)
        for item in items(texts):
            writer.add(item)
        writer.close()
    found = TokenFile(path)
    expected = MemoryStore(items(texts), bytes_tokenizer)
    tokens = [token for part in found.batches for token in part.tokens.tolist()]
    assert tokens == expected.tokens(0, expected.num_tokens).tolist()
    assert sum(len(part.prompts) for part in found.batches) == len(texts)
    assert writer.counts["tokens"] == len(tokens) == found.num_tokens


@settings(deadline=None, max_examples=15)
@given(train=texts, val=texts, batch=st.integers(1, 30), units=st.integers(1, 3))
def test_stores_are_those_in_memory(tmp_path_factory, sentencepiece, train, val, batch, units):
    for tokenizer in (bytes_tokenizer, sentencepiece):
        folder = tmp_path_factory.mktemp("corpus") / "corpus"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(token_files, "BATCH_TOKENS", batch)
            source = ListSource(items(train), items(val))
            prepare(source, tokenizer, folder, units={"train": units, "val": 1})
        corpus = PreparedCorpus(str(folder), verify=True)
        # A unit holds the documents whose number has its remainder.
        order = [item for part in range(units) for item in items(train)[part::units]]
        same(corpus.store("train"), MemoryStore(order, tokenizer), order)
        same(corpus.store("val"), MemoryStore(items(val), tokenizer), items(val))
        assert corpus.num_bytes == source.num_bytes


def test_large_vocabularies_take_four_bytes_a_token(tmp_path):
    class Large(ByteTokenizer):
        vocab_size = 1 << 17

    corpus = prepared(tmp_path / "a", tokenizer=Large())
    assert corpus.store("train").tokens(0, 5).dtype == np.int32
    assert prepared(tmp_path / "b").store("train").tokens(0, 5).dtype == np.uint16


def test_a_span_within_a_batch_is_a_view_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "BATCH_DOCUMENTS", 2)
    store = prepared(tmp_path / "a", [b"abc", b"def", b"ghi"]).store("train")
    view = store.tokens(2, 8)
    assert np.shares_memory(view, store.tokens(3, 4))
    assert not view.flags.writeable
    # The first batch has two documents.
    assert store.tokens(8, 12).tolist() == [*b"f", 257, 256, *b"g"]
    assert not np.shares_memory(store.tokens(8, 12), view)


def test_datasets_opens_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    folder = tmp_path / "a"
    prepared(folder, [(b"prompt", b"text"), b"more"])
    rows = [
        {
            "name": "document 0",
            "tokens": [256, *b"prompttext", 257],
            "prompt_tokens": 7,
            "bytes": 4,
        },
        {"name": "document 1", "tokens": [256, *b"more", 257], "prompt_tokens": 1, "bytes": 4},
    ]
    path = str(folder / "train-00000-of-00001.arrow")
    assert datasets.Dataset.from_file(path).to_list() == rows
    loaded = datasets.load_dataset(
        "arrow", data_files={"train": path}, cache_dir=str(tmp_path / "cache")
    )
    assert loaded["train"].to_list() == rows


@pytest.mark.parametrize("cutting", [{}, {"cutting": "lanes", "chunk_size": 2, "batch_size": 2}])
def test_batches_are_those_of_the_same_documents_in_memory(tmp_path, cutting):
    texts = [b"some text", (b"ask", b"answer"), b"", b"more text than that"]
    val = [b"held out", b"\xff\xfe"]
    corpus = prepared(tmp_path / "a", texts, val)
    found = datamodule(source=corpus, seed=3, **cutting)
    expected = datamodule(source=ListSource(items(texts), items(val)), seed=3, **cutting)
    for loader in ("train_dataloader", "val_dataloader"):
        ones, others = (list(islice(getattr(module, loader)(), 20)) for module in (found, expected))
        assert list(map(rows_of, ones)) == list(map(rows_of, others))
    assert found.val_bytes == len(b"held out") + 2
    assert [d.text for d in found.validation_documents()] == val
    assert set(found.baselines()) == {"gzip", "xz"}


def test_held_out_documents_are_decoded(tmp_path, sentencepiece):
    val = [(b"the question", b" the answer"), b"caf\xe9\n", b"", "Straße 12\n  the end".encode()]
    corpus = prepared(tmp_path / "a", val=val, tokenizer=sentencepiece)
    found = corpus.validation_documents(sentencepiece)
    assert [Document(d.name, d.text, d.prompt) for d in found] == items(val)
    with pytest.raises(ValueError, match=rf"set data/tokenizer=sentencepiece .*={tmp_path}/a/tok"):
        corpus.validation_documents(bytes_tokenizer)
    # The copy of the model beside the tokens is the very tokenizer.
    again = SentencePieceTokenizer(str(tmp_path / "a" / "tokenizer.model"))
    assert again.fingerprint == corpus.tokenizer_fingerprint


def test_the_fingerprint_changes_with_tokens_order_split_and_tokenizer(tmp_path, sentencepiece):
    a, b = b"one text", b"another"
    found = [
        prepared(tmp_path / str(i), train, val, tokenizer=tokenizer).fingerprint
        for i, (train, val, tokenizer) in enumerate(
            [
                ([a, b], [a], bytes_tokenizer),
                ([b, a], [a], bytes_tokenizer),
                ([a], [b, a], bytes_tokenizer),
                ([a, b], [a], sentencepiece),
                ([(b"one ", b"text"), b], [a], bytes_tokenizer),
                ([a, b], [a], bytes_tokenizer),
            ]
        )
    ]
    assert len(set(found[:-1])) == len(found) - 1
    assert found[-1] == found[0]
    assert all(len(fingerprint) == 16 for fingerprint in found)


def test_a_corpus_goes_to_a_worker(tmp_path):
    corpus = prepared(tmp_path / "a")
    store = corpus.store("train")
    store.tokens(0, 3)
    for found in (pickle.loads(pickle.dumps(store)), pickle.loads(pickle.dumps(corpus))):
        found = found.store("train") if isinstance(found, PreparedCorpus) else found
        assert found.tokens(0, 11).tolist() == [256, *b"some text", 257]


@pytest.mark.parametrize("number", [-1, 2, 10**12])
def test_numbers_out_of_range_are_refused(tmp_path, number):
    store = prepared(tmp_path / "a", [b"a", b"b"]).store("train")
    for read in (store.prompt, store.text_bytes):
        with pytest.raises(IndexError, match=f"document {number} is not in range"):
            read(number)
    for token in (-1, store.num_tokens):
        with pytest.raises(IndexError, match=f"token {token} is not in range"):
            store.document_of(token)
    with pytest.raises(IndexError):
        store.tokens(0, store.num_tokens + 1)


def test_prepared_tokens_are_no_text(tmp_path):
    with pytest.raises(ValueError, match=rf"data\.source\.folder={tmp_path}/a: .*holds tokens"):
        prepared(tmp_path / "a").shards("train")


def test_a_folder_without_a_corpus_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        corpus = PreparedCorpus(str(folder))
        with pytest.raises(ValueError, match=rf"folder={folder}: holds no prepared corpus"):
            corpus.store("train")


def test_an_incomplete_corpus_is_refused_naming_what_is_missing(tmp_path):
    source = ListSource(documents([b"a", b"b", b"c"]), documents([b"d"]))
    two = {"train": 2, "val": 1}
    missing = prepare(source, bytes_tokenizer, tmp_path, machine=(1, 2), units=two)
    assert missing == ["train-00001-of-00002"]
    with pytest.raises(ValueError, match=r"1 of its files are missing \(train-00001-of-00002\)"):
        PreparedCorpus(str(tmp_path)).store("train")
    assert prepare(source, bytes_tokenizer, tmp_path, machine=(2, 2), units=two) == []
    whole = PreparedCorpus(str(tmp_path))
    # The manifest is only the entries together.
    (tmp_path / "manifest.json").unlink()
    assert PreparedCorpus(str(tmp_path)).manifest == whole.manifest


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-7])
    else:
        # One token.
        at = data.index(np.array([*b"some"], np.uint16).tobytes())
        path.write_bytes(data[:at] + b"S" + data[at + 1 :])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no such file"),
        ("cut", r"has \d+ bytes and had \d+"),
        ("changed", "is not as it was prepared"),
    ],
)
def test_a_damaged_file_is_named_and_made_anew(tmp_path, how, message):
    corpus = prepared(tmp_path / "a")
    path = tmp_path / "a" / "train-00000-of-00001.arrow"
    before = path.read_bytes()
    damage(path, how)
    with pytest.raises(ValueError, match=f"^{path}: {message}.*again as it was begun"):
        PreparedCorpus(str(tmp_path / "a"), verify=how == "changed").store("train")
    again = prepared(tmp_path / "a")
    assert path.read_bytes() == before
    assert again.fingerprint == corpus.fingerprint


def test_a_file_that_goes_while_it_is_read_is_named(tmp_path):
    store = prepared(tmp_path / "a").store("train")
    path = tmp_path / "a" / "train-00000-of-00001.arrow"
    path.unlink()
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read"):
        store.tokens(0, 1)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=rf"^{path}: is no file of tokens"):
        store.tokens(0, 1)


def test_files_of_another_version_are_refused(tmp_path):
    prepared(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(ValueError, match=rf"{path}: is of version 99 and this code reads 1"):
        PreparedCorpus(str(tmp_path / "a")).store("train")


def test_the_manifest_tells_hashes_counts_and_where_it_comes_from(tmp_path):
    corpus = prepared(tmp_path / "a", made_from={"source": {"root": "b"}})
    entry = corpus.manifest["files"]["train"][0]
    path = tmp_path / "a" / entry["file"]
    assert entry["sha256"] == sha256(path)
    assert entry["size"] == path.stat().st_size
    counts = {"documents": 2, "tokens": 17, "targets": 15, "bytes": 13}
    assert counts.items() <= entry.items()
    assert counts.items() <= corpus.manifest["totals"]["train"].items()
    assert corpus.manifest["made_from"]["source"] == {"root": "b"}
    assert corpus.manifest["tokenizer"]["fingerprint"] == bytes_tokenizer.fingerprint
    assert corpus.left_out == {"files": 0, "bytes": 0, "documents": 0}


def test_names_that_are_no_text_are_kept_readable(tmp_path):
    source = ListSource([Document("caf\udce9.py", b"a")], documents([b"b"]))
    prepare(source, bytes_tokenizer, tmp_path, units={"train": 1, "val": 1})
    assert PreparedCorpus(str(tmp_path)).store("train").name(0) == r"caf\udce9.py"


def test_a_long_document_takes_the_memory_of_its_tokens(tmp_path):
    text = memoryview(bytes(24 << 20))
    source = ListSource([Document("long", text)], documents([b"a"]))
    tracemalloc.start()
    prepare(source, bytes_tokenizer, tmp_path, units={"train": 1, "val": 1})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Two bytes a token, what a growing buffer keeps in hand, and a few copies of a piece.
    assert peak < 1.15 * 2 * len(text) + (64 << 20)
    assert PreparedCorpus(str(tmp_path)).store("train").num_tokens == len(text) + 2
