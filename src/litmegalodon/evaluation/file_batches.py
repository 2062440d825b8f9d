"""Files of documents and of prompts, checked line by line, and batches of them.

Shapes: b rows of a batch on one process, n tokens of its longest row.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from litmegalodon.data.columns import Columns
from litmegalodon.data.documents import Document, LeftOut
from litmegalodon.data.readers import FORMATS, TEXT_FORMATS, CorpusFile, documents
from litmegalodon.data.store import IGNORED, MemoryStore
from litmegalodon.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextFile:
    """The documents of a file as tokens, and the number of their words, parted by white space."""

    path: str
    store: MemoryStore
    words: int


class FileBatches(Dataset):
    """Rows of documents, a file after the other, from the longest to the shortest; then prompts.

    A batch of documents is `file`, `tokens` and `targets` int64 [b, n], and `longest`, the largest
    n of the ranks' batches at this place: whoever has to make as many calls as the others makes as
    many as that takes. A rank without a row left has n = 0. A batch of prompts is `prompts`, the
    same ones on every rank.
    """

    def __init__(
        self,
        files: Sequence[TextFile],
        prompts: Sequence[bytes],
        batch_size: int,
        rank: Callable[[], tuple[int, int]],
    ) -> None:
        self.files, self.batch_size, self.rank = files, batch_size, rank
        self._prompts = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]

    @cached_property
    def _places(self) -> list[tuple[int, list[int]]]:
        """(file, documents of all ranks) of each batch of documents."""
        size, found = self.batch_size * self.rank()[1], []
        for i, file in enumerate(self.files):
            count = file.store.num_documents
            order = sorted(range(count), key=lambda d, file=file: -_length(file.store, d))
            found += [(i, order[start : start + size]) for start in range(0, count, size)]
        return found

    def __len__(self) -> int:
        return len(self._places) + len(self._prompts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} is not in range({len(self)})")
        if number >= len(self._places):
            return {"prompts": self._prompts[number - len(self._places)]}
        rank, world = self.rank()
        i, rows = self._places[number]
        store = self.files[i].store
        # Dealt out, so that every rank's rows are about as long.
        batch = _padded(store, rows[rank::world])
        return {"file": i, "longest": _length(store, rows[0]), **batch}


def _length(store: MemoryStore, document: int) -> int:
    return store.start(document + 1) - store.start(document)


def _padded(store: MemoryStore, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    longest = max((_length(store, d) for d in rows), default=0)
    # A row without a document on this rank: the model is called all the same.
    tokens = torch.zeros(max(1, len(rows)), longest, dtype=torch.int64)
    targets = torch.full_like(tokens, IGNORED)
    for row, d in enumerate(rows):
        first = store.start(d)
        text = torch.from_numpy(store.tokens(first, store.start(d + 1)).astype(np.int64))
        tokens[row, : len(text)] = text
        targets[row, : len(text) - 1] = text[1:]
    return {"tokens": tokens, "targets": targets}


def read_files(paths: Iterable[str], column: str, tokenizer: Tokenizer) -> list[TextFile]:
    """The documents of files, a line of JSON, a row of a table or a whole text each.

    Raises:
        ValueError: a file is not there, of another kind or holds no document, or one of its lines
            is none: with the file's name and the line's number.
    """
    found = []
    for path in paths:
        words = 0

        def counted(path: str = path) -> Iterator[Document]:
            nonlocal words
            for document in _documents(path, column, "paths", "text_column"):
                words += len(bytes(document.text).split())
                yield document

        store = MemoryStore(counted(), tokenizer)
        found.append(TextFile(path, store, words))
    return found


def read_prompts(path: str, column: str) -> list[bytes]:
    """The prompts of a file, a line of JSON or of text each; empty lines are passed over.

    Raises:
        ValueError: as `read_files`.
    """
    if not path.endswith(TEXT_FORMATS):
        found = _documents(path, column, "prompts", "prompt_column")
        return [bytes(document.text) for document in found]
    setting = f"evaluation.prompts={path}"
    _file_of(path, "prompts")
    prompts = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = line.rstrip(b"\r\n")
            try:
                if text.decode().strip():
                    prompts.append(text)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{setting}: line {number} is no UTF-8: its byte {error.start + 1:,} is"
                    f" {text[error.start]:#04x}"
                ) from None
    if not prompts:
        raise ValueError(f"{setting}: holds no prompt")
    return prompts


def _documents(path: str, column: str, name: str, column_name: str) -> Iterator[Document]:
    """The documents of a file, which holds at least one."""
    count = 0
    for _, item in documents(_file_of(path, name), Columns(column)):
        if isinstance(item, LeftOut):
            if item.error:
                reason = item.reason.replace("data.source.text", f"evaluation.{column_name[:-7]}")
                raise ValueError(f"evaluation.{name}={path}: {item.where}: {reason}")
            continue
        count += 1
        yield item
    if not count:
        raise ValueError(f"evaluation.{name}={path}: holds no text; give a file that does")


def _file_of(path: str, name: str) -> CorpusFile:
    setting = f"evaluation.{name}={path}"
    if not os.path.isfile(path):
        raise ValueError(f"{setting}: there is no such file")
    file = CorpusFile(os.path.basename(path), path, os.path.getsize(path))
    if file.format is None:
        raise ValueError(
            f"{setting}: must end with {', '.join(FORMATS)}, or one of these and .gz or .zst"
        )
    return file
