"""A SentencePiece model trained on a source's text, and how well it fits held-out text."""

import contextlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from litmegalodon.data.documents import Document, LeftOut, Shard, Source
from litmegalodon.data.mixture import parts_of
from litmegalodon.data.sentencepiece import SentencePieceTokenizer
from litmegalodon.data.store import OnError
from litmegalodon.data.tokenizer import pieces

# Llama 2's: text as it is, digits by themselves, what is rare as bytes.
LLAMA: dict[str, Any] = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "split_digits": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
}

# SentencePiece leaves out longer sentences than it is told; no sentence here is longer.
SENTENCE = 4096

# Seconds between two words on how far training has come.
EVERY = 5.0


class TrainingText:
    """The lines of a source's training documents, prompts too, `max_bytes` of them at most.

    They are taken evenly from all shards, from the front of each. Counts what was taken and what
    was left: `documents`, `bytes`, `broken_lines` (bytes in them that are no UTF-8 are left out),
    `left_out`, and `is_cut`, whether there was more.
    """

    def __init__(self, source: Source, max_bytes: int, on_error: str = "raise") -> None:
        for part, _ in parts_of(source):
            if hasattr(part, "store"):
                raise ValueError(
                    "data.source: a prepared corpus holds tokens and no text, which a tokenizer is"
                    " trained on; name the source that it was made from"
                )
        self._shards = source.shards("train")
        self._max_bytes = max_bytes
        self._on_error = OnError(on_error)
        self.documents = self.bytes = self.broken_lines = self.left_out = 0
        self.is_cut = False

    def __iter__(self) -> Iterator[str]:
        for i, shard in enumerate(self._shards):
            # What a short shard leaves is for those after it.
            yield from self._lines(shard, (self._max_bytes - self.bytes) // (len(self._shards) - i))

    def _lines(self, shard: Shard, budget: int) -> Iterator[str]:
        end = self.bytes + budget
        for _, document in shard.documents():
            if isinstance(document, LeftOut):
                self.left_out += self._on_error(document)
                continue
            self.documents += 1
            # Through pieces, since a document may be large.
            for piece in chain(pieces(document.prompt), pieces(document.text)):
                for line in piece.split(b"\n"):
                    if not line:
                        continue
                    if self.bytes + len(line) > end:
                        self.is_cut = True
                        return
                    self.bytes += len(line)
                    text = line.decode(errors="ignore")
                    self.broken_lines += len(text.encode()) != len(line)
                    # A null character would end the sentence there.
                    for part in pieces(text.replace("\0", "").encode(), SENTENCE):
                        yield part.decode()


def train(
    text: TrainingText,
    vocab_size: int,
    model_type: str,
    character_coverage: float,
    threads: int,
    log: Path,
    progress: Callable[[str], None],
) -> bytes:
    """The model file of a tokenizer like Llama 2's; SentencePiece's own words go to `log`.

    ValueError where the vocabulary does not suit the text.
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        with _logged(log, text, progress):
            SentencePieceTrainer.train(
                sentence_iterator=iter(text),
                model_writer=model,
                vocab_size=vocab_size,
                model_type=model_type,
                character_coverage=character_coverage,
                max_sentence_length=SENTENCE,
                num_threads=threads,
                # Its words are what `progress` is told from.
                minloglevel=0,
                **LLAMA,
            )
    except RuntimeError as error:
        raise ValueError(_explained(str(error), vocab_size, log)) from error
    return model.getvalue()


def _explained(error: str, vocab_size: int, log: Path) -> str:
    if found := re.search(r"value <= (\d+)", error):
        return (
            f"vocab_size={vocab_size}: the text does not give so many tokens; set at most"
            f" {found[1]}, or train on more text"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"vocab_size={vocab_size}: bytes and single characters alone are {found[1]} tokens; set"
            " more, or a lower character_coverage"
        )
    if "sentences_.empty()" in error:
        return "data.source: its training documents hold no text to train a tokenizer on"
    return f"SentencePiece could not train: {error} (see {log})"


@contextlib.contextmanager
def _logged(log: Path, text: TrainingText, progress: Callable[[str], None]) -> Iterator[None]:
    """Send what is written to stderr to a file, and tell from it how far training has come."""
    ended = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        while not ended.wait(EVERY):
            merges = re.findall(rb"(?:merges|size)=(\d+)", log.read_bytes()[-4096:])
            far = f"{text.bytes / 1e6:.0f} MB read"
            if merges:
                far += f", {int(merges[-1]):,} tokens made"
            progress(f"training: {time.monotonic() - began:.0f} s, {far}")

    stderr = os.dup(2)
    watcher = threading.Thread(target=watch, daemon=True)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        watcher.start()
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        ended.set()
        watcher.join()


@dataclass(frozen=True)
class Fit:
    """A tokenizer on held-out text.

    `covered` is the share of characters that have a token, alone or with others, and are not
    spelt in bytes; `byte_tokens` the share of tokens that are bytes. Line ends count for neither:
    they are bytes, as in Llama 2. `is_cut` says that there was more text.
    """

    documents: int
    bytes: int
    tokens: int
    covered: float
    byte_tokens: float
    seconds: float
    is_cut: bool

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)


def fit(
    tokenizer: SentencePieceTokenizer, source: Source, max_bytes: int, on_error: str = "raise"
) -> Fit:
    """Measure a tokenizer on the first `max_bytes` of a source's held-out text, prompts too."""
    documents = size = tokens = characters = lines = spelt = byte_tokens = 0
    seconds = 0.0
    is_cut = False
    for document in _held_out(source, OnError(on_error)):
        if size == max_bytes:
            is_cut = True
            break
        documents += 1
        for part in filter(len, (document.prompt, document.text)):
            text = bytes(part[: max_bytes - size])
            is_cut = is_cut or len(text) < len(part)
            began = time.process_time()
            ids = tokenizer.encode(text)
            seconds += time.process_time() - began
            raw = tokenizer.byte_values(ids)
            size += len(text)
            tokens += len(ids)
            lines += text.count(b"\n")
            # Bytes 10xxxxxx continue a character.
            characters += int((np.frombuffer(text, np.uint8) & 0xC0 != 0x80).sum())
            spelt += int((raw & 0xC0 != 0x80).sum() - (raw == ord("\n")).sum())
            byte_tokens += int((raw != ord("\n")).sum())
    return Fit(
        documents=documents,
        bytes=size,
        tokens=tokens,
        covered=1 - spelt / max(1, characters - lines),
        byte_tokens=byte_tokens / max(1, tokens - lines),
        seconds=seconds,
        is_cut=is_cut,
    )


def _held_out(source: Source, on_error: OnError) -> Iterator[Document]:
    for shard in source.shards("val"):
        for _, document in shard.documents():
            if isinstance(document, LeftOut):
                on_error(document)
            else:
                yield document
