"""A corpus that scripts/prepare_corpus.py has tokenised, read from memory-mapped files."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from litmegalodon.data import manifest
from litmegalodon.data.documents import SPLITS, Shard
from litmegalodon.data.store import token_dtype
from litmegalodon.data.token_files import TokenBatch, TokenFile
from litmegalodon.data.tokenizer import Tokenizer
from litmegalodon.data.whole_files import read_json, sha256

_AGAIN = "run scripts/prepare_corpus.py again as it was begun, which makes it anew"


class PreparedStore:
    """A TokenStore of one split's files; nothing is read before it is asked for.

    `fingerprint` is 16 hex digits of its tokens' hashes.
    """

    def __init__(
        self, folder: Path, entries: Sequence[Mapping[str, Any]], dtype: type[np.integer]
    ) -> None:
        self._folder = folder
        self._entries = entries
        self._dtype = dtype
        self._first_documents = list(accumulate((e["documents"] for e in entries), initial=0))
        self._first_tokens = list(accumulate((e["tokens"] for e in entries), initial=0))
        self.num_documents = self._first_documents.pop()
        self.num_tokens = self._first_tokens.pop()
        self.num_bytes = sum(entry["bytes"] for entry in entries)
        self.num_targets = sum(entry["targets"] for entry in entries)
        self._forget()

    def _forget(self) -> None:
        self._files: dict[int, TokenFile] = {}
        # The batch that was read last, and where its documents and tokens begin and end: most reads
        # are of the same one.
        self._batch: TokenBatch
        self._document, self._documents_end = self._token, self._tokens_end = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file does not travel to another process.
        return {k: v for k, v in vars(self).items() if k not in ("_files", "_batch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @cached_property
    def fingerprint(self) -> str:
        return _digest([entry["sha256"] for entry in self._entries])

    def document_of(self, token: int) -> int:
        """Number of the document that holds token number `token`."""
        if not self._token <= token < self._tokens_end:
            self._seek_token(token)
        batch = self._batch
        within = token - self._token
        return self._document + int(batch.offsets.searchsorted(within, side="right")) - 1

    def start(self, document: int) -> int:
        """Number of a document's first token, its BOS; `num_tokens` for `num_documents`."""
        if document == self.num_documents:
            return self.num_tokens
        if not self._document <= document < self._documents_end:
            self._seek_document(document)
        return self._token + self._batch.offsets.item(document - self._document)

    def prompt(self, document: int) -> int:
        """How many of a document's first tokens are not predicted: BOS and its prompt."""
        if not self._document <= document < self._documents_end:
            self._seek_document(document)
        return self._batch.prompts.item(document - self._document)

    def text_bytes(self, document: int) -> int:
        """Bytes of a document's predicted text."""
        if not self._document <= document < self._documents_end:
            self._seek_document(document)
        return self._batch.bytes.item(document - self._document)

    def name(self, document: int) -> str:
        """A document's name."""
        if not self._document <= document < self._documents_end:
            self._seek_document(document)
        return self._batch.names[document - self._document].as_py()

    def tokens(self, first: int, stop: int) -> np.ndarray:
        """The tokens from number `first` to before `stop`, [stop - first].

        A view of the file where they lie in one record batch, else a copy.
        """
        if first == stop:
            return np.empty(0, self._dtype)
        if not self._token <= first < self._tokens_end:
            self._seek_token(first)
        if stop <= self._tokens_end:
            return self._batch.tokens[first - self._token : stop - self._token]
        parts = [self._batch.tokens[first - self._token :]]
        while (first := self._tokens_end) < stop:
            self._seek_token(first)
            parts.append(self._batch.tokens[: stop - first])
        return np.concatenate(parts)

    def _seek_document(self, document: int) -> None:
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} is not in range({self.num_documents})")
        number = bisect_right(self._first_documents, document) - 1
        file = self._file(number)
        self._enter(number, file.with_document(document - self._first_documents[number]))

    def _seek_token(self, token: int) -> None:
        if not 0 <= token < self.num_tokens:
            raise IndexError(f"token {token} is not in range({self.num_tokens})")
        number = bisect_right(self._first_tokens, token) - 1
        file = self._file(number)
        self._enter(number, file.with_token(token - self._first_tokens[number]))

    def _enter(self, number: int, batch: TokenBatch) -> None:
        self._batch = batch
        self._document = self._first_documents[number] + batch.first_document
        self._documents_end = self._document + len(batch.prompts)
        self._token = self._first_tokens[number] + batch.first_token
        self._tokens_end = self._token + len(batch.tokens)

    def _file(self, number: int) -> TokenFile:
        if number not in self._files:
            entry = self._entries[number]
            path = self._folder / entry["file"]
            try:
                file = TokenFile(path)
            except OSError as error:
                raise ValueError(f"{path}: cannot be read: {error}") from error
            if (file.num_documents, file.num_tokens) != (entry["documents"], entry["tokens"]):
                raise ValueError(f"{path}: is not as it was prepared; {_AGAIN}")
            self._files[number] = file
        return self._files[number]


class PreparedCorpus:
    """A source whose documents are tokens already: `store(split)` in place of shards.

    It is opened when it is first asked for something. ValueError, which names the folder or the
    file, where the corpus is not complete, or a file is missing or of another size than the
    manifest says; with `verify` all files are read and their hashes compared.
    """

    def __init__(self, folder: str, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.verify = verify

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """What scripts/prepare_corpus.py says of it: see `litmegalodon.data.manifest`."""
        setting = f"data.source.folder={self.folder}"
        missing: list[str] = []
        found = read_json(self.folder / manifest.MANIFEST)
        if found is None:
            found, missing = manifest.merged(self.folder)
        if missing:
            named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ValueError(
                f"{setting}: the corpus is not complete, {len(missing)} of its files are missing"
                f" ({named}); run scripts/prepare_corpus.py again as it was begun"
            )
        if found is None:
            raise ValueError(
                f"{setting}: holds no prepared corpus; make one with scripts/prepare_corpus.py"
                f" output={self.folder}"
            )
        manifest.check_version(self.folder / manifest.MANIFEST, found)
        for entry in [entry for split in SPLITS for entry in found["files"][split]]:
            self._check(entry)
        return found

    def _check(self, entry: Mapping[str, Any]) -> None:
        path = self.folder / entry["file"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ValueError(f"{path}: {(error.strerror or '').lower()}; {_AGAIN}") from error
        if size != entry["size"]:
            raise ValueError(
                f"{path}: has {size} bytes and had {entry['size']} when it was prepared; {_AGAIN}"
            )
        if self.verify and sha256(path) != entry["sha256"]:
            raise ValueError(f"{path}: is not as it was prepared, its hash is another; {_AGAIN}")

    @cached_property
    def _stores(self) -> dict[str, PreparedStore]:
        dtype = token_dtype(self.manifest["tokenizer"]["vocab_size"])
        files = self.manifest["files"]
        return {split: PreparedStore(self.folder, files[split], dtype) for split in SPLITS}

    def store(self, split: str) -> PreparedStore:
        """The tokens of `train` or `val`."""
        return self._stores[split]

    def shards(self, split: str) -> list[Shard]:
        raise ValueError(
            f"data.source.folder={self.folder}: a prepared corpus holds tokens and no text; set"
            " data.streaming=false, or read the source that it was made from"
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the tokens, their order and their split."""
        return _digest([self.tokenizer_fingerprint, *(self.store(s).fingerprint for s in SPLITS)])

    @property
    def file_digests(self) -> dict[str, str]:
        """8 hex digits a file, by name."""
        files = self.manifest["files"]
        return {e["file"]: e["sha256"][:8] for split in SPLITS for e in files[split]}

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that made it."""
        return self.manifest["tokenizer"]["fingerprint"]

    @property
    def left_out(self) -> dict[str, int]:
        """What the source left out when it was prepared, and places that gave no document."""
        totals = self.manifest["totals"]
        places = sum(totals[split]["left_out_places"] for split in SPLITS)
        at_source = self.manifest["made_from"]["left_out"]
        return {"files": 0, "bytes": 0, **at_source, "documents": places}

    @property
    def num_bytes(self) -> int:
        """Bytes of the predicted text."""
        return sum(self.store(split).num_bytes for split in SPLITS)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """ValueError where `tokenizer` is not the one that made the corpus."""
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            model = self.manifest["tokenizer"]["model"]
            fix = (
                f"data/tokenizer=sentencepiece data.tokenizer.path={self.folder / model}"
                if model
                else "the one that it was prepared with"
            )
            raise ValueError(
                f"data.tokenizer: its fingerprint is {tokenizer.fingerprint} and {self.folder} was"
                f" prepared with {self.tokenizer_fingerprint}; set {fix}"
            )

    def validation_documents(self, tokenizer: Tokenizer) -> list["StoredDocument"]:
        """The held-out documents; what the tokenizer changed in their text stays changed.

        ValueError where `tokenizer` is not the one that made the corpus.
        """
        self.check_tokenizer(tokenizer)
        store = self.store("val")
        return [StoredDocument(store, i, tokenizer) for i in range(store.num_documents)]


@dataclass(frozen=True)
class StoredDocument:
    """A document of a store, as `Document`, which is decoded when it is asked for its text."""

    store: PreparedStore
    number: int
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        return self.store.name(self.number)

    @property
    def text(self) -> bytes:
        return self._bytes(self.store.prompt(self.number), None)

    @property
    def prompt(self) -> bytes:
        return self._bytes(0, self.store.prompt(self.number))

    def _bytes(self, first: int, stop: int | None) -> bytes:
        ids = self.store.tokens(self.store.start(self.number), self.store.start(self.number + 1))
        return self.tokenizer.bytes_of(ids[first:stop].tolist())


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
