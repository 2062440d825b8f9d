"""What holds for every source, cut in every way: each document once an epoch, exact resumption."""

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from data_helpers import (
    datamodule,
    expected_rows,
    rows_of,
    slot_documents,
    slot_rows,
    written_corpus,
)
from litmegalodon.data import (
    ByteTokenizer,
    FilesSource,
    HubSource,
    MixtureSource,
    PreparedCorpus,
    SyntheticSource,
    row_at,
)
from litmegalodon.data.preparing import prepare

L, CHUNK, SLOTS = 32, 8, 6
WORDS = ["a", "stream", "of", "words,", "some", "ends", "é", "and\nlines", ""]


def texts(count, seed=0):
    chance = random.Random(seed)
    return [
        f"{i} " + " ".join(chance.choices(WORDS, k=chance.randint(1, 40))) for i in range(count)
    ]


def files(folder, format, prompts=None):
    """A corpus in three files, or as many as there are texts."""
    for part in range(3):
        some = texts(9, seed=part)
        asked = [f"question {i}" for i in range(9)] if prompts else None
        written_corpus(folder / str(part), format, some, asked)
    columns = {"prompt_column": "prompt", "completion_column": "completion"} if prompts else {}
    return FilesSource([f"{folder}/*/*{format}"], validation_fraction=0.2, **columns)


def hub(folder, kind):
    paths = [
        str(path)
        for part in range(3)
        for path in written_corpus(folder / str(part), f".{kind}", texts(9, seed=part))
    ]
    path = {"jsonl": "json"}.get(kind, kind)
    return HubSource(path, data_files=paths, validation_fraction=0.2)


def prepared(folder):
    corpus = folder / "corpus"
    if not corpus.exists():
        prepare(files(folder, ".txt"), ByteTokenizer(), corpus, units={"train": 4, "val": 2})
    return PreparedCorpus(str(corpus))


SOURCES = {
    "text files": lambda folder: files(folder, ".txt"),
    "gz lines": lambda folder: files(folder, ".jsonl.gz"),
    "prompts": lambda folder: files(folder, ".parquet", prompts=True),
    "zst rows": lambda folder: files(folder, ".parquet.zst"),
    "hub lines": lambda folder: hub(folder, "jsonl"),
    "hub rows": lambda folder: hub(folder, "parquet"),
    "prepared": prepared,
    "synthetic": lambda folder: SyntheticSource("copy", 60, documents=20, val_documents=2),
}
KINDS = {
    "packed": {"cutting": "packed", "streaming": False},
    "lanes": {"cutting": "lanes", "streaming": False},
    "packed stream": {"cutting": "packed", "streaming": True},
    "lanes of a stream": {"cutting": "lanes", "streaming": True},
}


def module_of(source, kind, **settings):
    settings = KINDS[kind] | {"seq_len": L, "chunk_size": CHUNK, "batch_size": SLOTS} | settings
    return datamodule(source=source, val_batch_size=6, **settings)


def shards_of(source):
    if isinstance(source, PreparedCorpus):
        store = source.store("train")
        spans = [(store.start(i), store.start(i + 1)) for i in range(store.num_documents)]
        # Without BOS and EOS.
        return [[(b"", bytes(store.tokens(a + 1, b - 1).tolist())) for a, b in spans]]
    return [
        [(document.prompt, bytes(document.text)) for _, document in shard.documents()]
        for shard in source.shards("train")
    ]


def expected_by_slot(source, kind, count):
    """The first rows of each row of a batch, as plain loops make them."""
    shards = shards_of(source)
    documents = [document for shard in shards for document in shard]
    if kind == "packed":
        rows = expected_rows(documents, L)
        order = (rows[row_at(i, len(rows), 0)[1]] for i in range(count * SLOTS))
        every = list(order)
        return [every[slot::SLOTS] for slot in range(SLOTS)]
    read = shards if "stream" in kind else [[document] for document in documents]
    align = CHUNK if "lanes" in kind else 1
    return [
        list(islice(slot_rows((d for _, d in slot_documents(read, slot, SLOTS)), L, align), count))
        for slot in range(SLOTS)
    ]


def found_by_slot(source, kind, count, world, workers=0, state=None):
    """The first rows of each row of a batch, from the data modules of all ranks."""
    ranks = []
    for rank in range(world):
        module = module_of(source, kind, rank=rank, world=world, num_workers=workers)
        if state is not None:
            module.load_state_dict(state)
        batches = [rows_of(batch) for batch in islice(module.train_dataloader(), count)]
        ranks.append([list(rows) for rows in zip(*batches, strict=True)])
    if kind == "packed":
        # A rank takes every world-th row.
        return [ranks[slot % world][slot // world] for slot in range(SLOTS)]
    return [rows for rank in ranks for rows in rank]


# A prepared corpus holds tokens: there is nothing to read as it comes.
CASES = [(n, k) for n in SOURCES for k in KINDS if n != "prepared" or "stream" not in k]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_rows_are_those_of_plain_loops_whatever_ranks_and_workers(name, kind, tmp_path):
    source = SOURCES[name](tmp_path)
    expected = expected_by_slot(source, kind, 12)
    for world, workers in ((1, 0), (2, 0), (3, 0), (2, 2)):
        assert found_by_slot(source, kind, 12, world, workers) == expected, (world, workers)


@pytest.mark.parametrize("name", SOURCES)
def test_plain_loops_read_every_document_once_an_epoch(name, tmp_path):
    shards = shards_of(SOURCES[name](tmp_path))
    documents = Counter(document for shard in shards for document in shard)
    for read in (shards, [[document] for document in documents.elements()]):
        epoch = Counter()
        for slot in range(SLOTS):
            for number, document in islice(slot_documents(read, slot, SLOTS), 200):
                epoch[document] += number == 1
        assert +epoch == documents


def digest(batch):
    return hashlib.sha256(repr((rows_of(batch), int(batch["cursor"]))).encode()).hexdigest()


def train(make, folder, batches):
    """Read batches, note each, and save the position now and then, as a run does."""
    module = make()
    saved = folder / "state.pt"
    if saved.exists():
        module.load_state_dict(torch.load(saved, weights_only=True))
    with (folder / "log").open("a") as log:
        for i, batch in enumerate(islice(module.train_dataloader(), batches)):
            log.write(f"{int(batch['cursor'])} {digest(batch)}\n")
            log.flush()
            module.trained(batch["cursor"], batch.get("places"))
            if i % 4 == 3:
                torch.save(module.state_dict(), folder / "state.new")
                os.replace(folder / "state.new", saved)
            time.sleep(0.001)


@pytest.mark.parametrize("kind", ["packed", "lanes"])
def test_a_prepared_corpus_goes_on_on_any_number_of_ranks(kind, tmp_path):
    source = prepared(tmp_path)

    def ranks(world, state=None):
        made = [module_of(source, kind, rank=r, world=world, batch_size=12) for r in range(world)]
        for module in made:
            module.val_batch_size = 12
            if state is not None:
                module.load_state_dict(state)
        return made

    def batches(modules, count):
        loaders = [iter(module.train_dataloader()) for module in modules]
        for _ in range(count):
            yield [next(loader) for loader in loaders]

    def rows_in_order(found):
        found = [rows_of(batch) for batch in found]
        if kind == "packed":
            return [row for rows in zip(*found, strict=True) for row in rows]
        return [row for rows in found for row in rows]

    whole = [rows_in_order(found) for found in batches(ranks(1), 60)]
    two = ranks(2)
    for found in batches(two, 7):
        for module, batch in zip(two, found, strict=True):
            module.trained(batch["cursor"], batch.get("places"))
    places = [module._position.places for module in two]
    state = two[0].state_dict() if kind == "packed" else None
    if state is None:
        # What the ranks gather from each other when they save.
        alone = ranks(1)[0]
        alone.trained(found[0]["cursor"], torch.from_numpy(np.concatenate(places)))
        state = alone.state_dict()
    for world in (1, 3, 4):
        resumed = [rows_in_order(found) for found in batches(ranks(world, state), 50)]
        assert resumed == whole[7:57]


@pytest.mark.parametrize(("name", "kind"), [*CASES, *(("mixture", kind) for kind in KINDS)])
def test_killed_twice_the_next_batches_are_the_same(name, kind, tmp_path):
    def make():
        if name == "mixture":
            both = {n: SOURCES[n](tmp_path / n) for n in ("gz lines", "prepared")}
            source = MixtureSource(both, {"gz lines": 1, "prepared": 2})
        else:
            source = SOURCES[name](tmp_path)
        return module_of(source, kind)

    total = 90
    module = make()
    # Epochs end on the way.
    expected = {int(b["cursor"]): digest(b) for b in islice(module.train_dataloader(), total + 50)}
    forked = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    for batches in (31, 66):
        process = forked.Process(target=train, args=(make, tmp_path, total))
        process.start()
        while process.is_alive() and not (log.exists() and len(log.read_bytes()) > 60 * batches):
            time.sleep(0.002)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["cursor"]
    assert 0 < saved < total * SLOTS
    train(make, tmp_path, 50)
    lines = [line.split() for line in log.read_text().splitlines() if len(line.split()) == 2]
    assert int(lines[-1][0]) == saved + 50 * SLOTS
    for cursor, found in lines:
        assert len(found) < 64 or expected[int(cursor)] == found
