"""How fast documents become batches, and how long training waits for them."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

from litmegalodon.data import (
    ByteTokenizer,
    Document,
    FilesSource,
    ListSource,
    PreparedCorpus,
    SentencePieceTokenizer,
    StdlibSource,
    TextDataModule,
)
from litmegalodon.data.preparing import prepare
from litmegalodon.data.slots import Batch
from litmegalodon.data.tokenizer_training import TrainingText, train
from measure import Figure, paired, seconds_of
from subjects import megalodon

# Tokens of a row of most figures, and rows of a batch.
L, ROWS = 4096, 4
MILLION = 1e6


def data(pairs: int, lengths: dict[str, int]) -> Iterator[Figure]:
    """Rows from a prepared corpus, from text files and through SentencePiece; waiting for them."""
    folder = Path(tempfile.mkdtemp(prefix="litmegalodon-bench-"))
    try:
        yield from _data(pairs, lengths["long"] * 500, folder)
    finally:
        shutil.rmtree(folder)


def _data(pairs: int, tokens: int, folder: Path) -> Iterator[Figure]:
    corpus = StdlibSource()
    documents = [document for _, document in corpus.shards("train")[0].documents()]
    for number, document in enumerate(documents):
        (folder / f"{number:04}.txt").write_bytes(_utf8(document))

    prepare(corpus, ByteTokenizer(), folder / "prepared")
    prepared = PreparedCorpus(str(folder / "prepared"))
    files = FilesSource([f"{folder}/*.txt"], validation_fraction=0.02)
    for name, source, settings, unit, must in (
        ("prepared corpus, rows in a random order", prepared, {}, "M tok/s", 20),
        ("prepared corpus, lanes", prepared, {"cutting": "lanes"}, "M tok/s", 20),
        ("bytes of text files as they come", files, {"streaming": True}, "MB/s", 50),
    ):
        speed = _tokens_per_second(pairs, source, ByteTokenizer(), tokens, **settings)
        yield Figure(name, speed / MILLION, unit, must=must, higher_is_better=True)

    yield _sentencepiece(pairs, documents[:40], folder)
    yield from _waiting(files)


def _tokens_per_second(pairs: int, source, tokenizer, tokens: int, **settings) -> float:
    batches = iter(_module(source, tokenizer, **settings).train_dataloader())
    count = max(1, tokens // (L * ROWS))
    next(batches)
    times = [seconds_of(lambda: [None for _ in islice(batches, count)]) for _ in range(pairs)]
    return count * L * ROWS / sorted(times)[pairs // 2]


def _sentencepiece(pairs: int, documents: list[Document], folder: Path) -> Figure:
    """Reading and cutting through SentencePiece against encoding the same text alone."""
    source = ListSource(documents, [Document("held out", b"text")])
    text, log = TrainingText(source, 1 << 20), folder / "log"
    (folder / "bench.model").write_bytes(train(text, 1024, "bpe", 1.0, 1, log, lambda _: None))
    tokenizer = SentencePieceTokenizer(str(folder / "bench.model"))
    texts = [_utf8(document) for document in documents]
    total = sum(len(tokenizer.encode(text)) + 2 for text in texts)

    def encode() -> None:
        for text in texts:
            tokenizer.encode(text)

    def batches() -> None:
        module = _module(source, tokenizer, streaming=True, batch_size=1, shuffle=False)
        for _ in islice(module.train_dataloader(), -(-total // L)):
            pass

    name = "batches through SentencePiece against encoding alone"
    return paired(name, batches, encode, pairs, must=1.3)


def _waiting(source) -> Iterator[Figure]:
    """Share of the time that a loop waits for its next batch."""
    model = megalodon()

    def train_on(batch: Batch) -> None:
        nll, _, _ = model.loss(batch["tokens"], batch["targets"], resets=batch["resets"])
        nll.backward()

    def fast_step(_: Batch) -> None:
        # 0.8 million tokens a second, more than a GPU trains a model of 200 million parameters on.
        time.sleep(0.02)

    for name, step, workers, steps in (
        ("waiting for data, training steps of 16,384 tokens", train_on, 0, 10),
        ("waiting for data, 20 ms for 16,384 tokens, no worker", fast_step, 0, 200),
        ("waiting for data, 20 ms for 16,384 tokens, one worker", fast_step, 1, 200),
    ):
        module = _module(source, ByteTokenizer(), streaming=True, num_workers=workers)
        batches = iter(module.train_dataloader())
        next(batches)
        waited = 0.0
        began = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            step(batch)
        share = 100 * waited / (time.perf_counter() - began)
        yield Figure(name, share, "%", must=2)


def _module(source, tokenizer, **settings) -> TextDataModule:
    settings = {"seq_len": L, "batch_size": ROWS, "chunk_size": 512, **settings}
    module = TextDataModule(source, tokenizer, **settings)
    # What the data module asks of a trainer.
    module.trainer = SimpleNamespace(overfit_batches=0, distributed_sampler_kwargs=None)
    return module


def _utf8(document: Document) -> bytes:
    return bytes(document.text).decode(errors="replace").encode()
