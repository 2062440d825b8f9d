"""Documents' tokens in an Arrow IPC stream file, which `datasets` opens too.

    name string | tokens large_list<uint16 or int32> | prompt_tokens int32 | bytes int64

A row is a document: its tokens with BOS and EOS, how many of the first ones are not predicted (BOS
and its prompt), and the bytes of its predicted text.
"""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from litmegalodon.data.documents import Document
from litmegalodon.data.store import token_dtype, tokenized
from litmegalodon.data.tokenizer import Tokenizer

# A record batch ends with the document that reaches one of these: what a writer holds in memory,
# unless one document alone has more tokens.
BATCH_TOKENS = 1 << 22
BATCH_DOCUMENTS = 1 << 16


class TokenWriter:
    """Writes documents to an open file as they come; `counts` says what is written.

    Memory: the tokens of a record batch, so those of the longest document at least.
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self._stream = pa.ipc.new_stream(file, _schema(self._dtype))
        self.counts = {"documents": 0, "tokens": 0, "targets": 0, "bytes": 0}
        self._clear()

    def add(self, document: Document) -> None:
        """Append a document."""
        before = len(self._tokens) // self._dtype.itemsize
        prompt = 0
        for ids, unpredicted, _ in tokenized(document, self._tokenizer):
            self._tokens += ids.astype(self._dtype).tobytes()
            prompt += unpredicted
        end = len(self._tokens) // self._dtype.itemsize
        # A file's name may hold bytes that are no text.
        self._names.append(document.name.encode("utf-8", "backslashreplace").decode())
        self._offsets.append(end)
        self._prompts.append(prompt)
        self._bytes.append(len(document.text))
        self.counts["documents"] += 1
        self.counts["tokens"] += end - before
        self.counts["targets"] += end - before - prompt
        self.counts["bytes"] += len(document.text)
        if end >= BATCH_TOKENS or len(self._names) >= BATCH_DOCUMENTS:
            self._flush()

    def close(self) -> None:
        """Write what is left and the end of the stream; the file stays open."""
        if self._names:
            self._flush()
        self._stream.close()

    def _flush(self) -> None:
        schema = _schema(self._dtype)
        values = pa.Array.from_buffers(
            schema.field("tokens").type.value_type,
            self._offsets[-1],
            [None, pa.py_buffer(self._tokens)],
        )
        tokens = pa.LargeListArray.from_arrays(pa.array(self._offsets, pa.int64()), values)
        columns = [
            pa.array(self._names, pa.string()),
            tokens,
            pa.array(self._prompts, pa.int32()),
            pa.array(self._bytes, pa.int64()),
        ]
        self._stream.write_batch(pa.record_batch(columns, schema=schema))
        self._clear()

    def _clear(self) -> None:
        # Bytes grow in place: a long document's tokens are never there twice.
        self._tokens = bytearray()
        self._names: list[str] = []
        self._offsets = [0]
        self._prompts: list[int] = []
        self._bytes: list[int] = []


class TokenBatch(NamedTuple):
    """A record batch as views of the mapped file; `first_*` are numbers within the file."""

    first_document: int
    first_token: int
    names: pa.StringArray
    # Within the batch, [documents + 1].
    offsets: np.ndarray
    tokens: np.ndarray
    prompts: np.ndarray
    bytes: np.ndarray


class TokenFile:
    """A file of TokenWriter, memory-mapped; the system needs no open file for it.

    ValueError that names the file where it is none, or ends too early.
    """

    def __init__(self, path: Path) -> None:
        self.batches: list[TokenBatch] = []
        documents = tokens = 0
        try:
            with pa.memory_map(str(path)) as file:
                for batch in _record_batches(file):
                    columns = {name: batch.column(name) for name in batch.schema.names}
                    offsets = _view(columns["tokens"].offsets)
                    self.batches.append(
                        TokenBatch(
                            documents,
                            tokens,
                            columns["name"],
                            offsets,
                            _view(columns["tokens"].values),
                            _view(columns["prompt_tokens"]),
                            _view(columns["bytes"]),
                        )
                    )
                    documents += batch.num_rows
                    tokens += int(offsets[-1])
        except (pa.ArrowException, KeyError) as error:
            raise ValueError(f"{path}: is no file of tokens, or damaged: {error}") from error
        self.num_documents, self.num_tokens = documents, tokens
        self._first_documents = [batch.first_document for batch in self.batches]
        self._first_tokens = [batch.first_token for batch in self.batches]

    def with_document(self, document: int) -> TokenBatch:
        """The batch that holds a document of the file."""
        return self.batches[bisect_right(self._first_documents, document) - 1]

    def with_token(self, token: int) -> TokenBatch:
        """The batch that holds a token of the file."""
        return self.batches[bisect_right(self._first_tokens, token) - 1]


def _schema(dtype: np.dtype) -> pa.Schema:
    fields = {
        "name": pa.string(),
        "tokens": pa.large_list(pa.from_numpy_dtype(dtype)),
        "prompt_tokens": pa.int32(),
        "bytes": pa.int64(),
    }
    return pa.schema(list(fields.items()))


def _record_batches(file: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_stream(file)
    while True:
        try:
            yield reader.read_next_batch()
        except StopIteration:
            return


def _view(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=True)
