"""Whatever bytes a corpus holds, reading gives documents and what was left out, never an error."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damaged, little_memory
from data_helpers import written_corpus
from litmegalodon.data import Document, LeftOut, readers
from litmegalodon.data.columns import Columns
from litmegalodon.data.readers import CorpusFile

KINDS = [stem + end for stem in (".txt", ".jsonl", ".parquet") for end in ("", ".gz", ".zst")]


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """A corpus file of a kind, and its bytes."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = ["one\n", "zwei \u00e4", "x" * 50]
    [path] = written_corpus(folder, request.param, texts[: 1 if "txt" in request.param else 3])
    return path, path.read_bytes()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_bytes_give_documents_or_are_left_out(whole, data):
    path, content = whole
    path.write_bytes(data.draw(damaged(content) | st.binary(max_size=60)))
    file = CorpusFile(path.name, str(path), os.stat(path).st_size)
    with little_memory():
        for _, item in readers.documents(file, Columns()):
            assert isinstance(item, Document | LeftOut)
            if isinstance(item, Document):
                bytes(item.text).decode()
