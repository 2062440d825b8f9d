"""Lanes and streams: each row of a batch goes on where the same row of the last one ended."""

import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import ShardedSource, datamodule, rows_of, slot_documents, slot_rows
from litmegalodon.data import LeftOut
from litmegalodon.data import tokenizer as tokenizer_module


def has_text(text):
    return bool(text[1] if isinstance(text, tuple) else text)


few = settings(max_examples=40, deadline=None)
# Unique texts, some with a prompt, some longer than a piece: in shards, some of them empty.
text = st.one_of(
    st.binary(max_size=40), st.tuples(st.binary(min_size=1, max_size=9), st.binary(max_size=9))
)
shards = st.lists(st.lists(text, max_size=4), min_size=1, max_size=4).filter(
    lambda shards: (
        sum(map(len, shards)) >= 6 and any(has_text(t) for texts in shards for t in texts)
    )
)
# What is made of slots, as (cutting, streaming): packed rows of a store are not.
kinds = st.sampled_from([("packed", True), ("lanes", True), ("lanes", False)])
L, CHUNK = 8, 4


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A document of 40 bytes is many pieces, as one of megabytes otherwise."""
    monkeypatch.setattr(tokenizer_module.pieces, "__defaults__", (7,))
    monkeypatch.setattr("litmegalodon.data.streams.STRETCH", 5)


def module_of(shards, slots, streaming=True, **settings):
    settings = {"seq_len": L, "chunk_size": CHUNK, "streaming": streaming, **settings}
    source = ShardedSource(shards)
    return datamodule(source=source, batch_size=slots, val_batch_size=6, **settings)


def rows_by_slot(modules, count):
    """For each slot its next `count` rows, from the data modules of all ranks."""
    batches = [list(islice(module.train_dataloader(), count)) for module in modules]
    ranks = [list(zip(*map(rows_of, of_rank), strict=True)) for of_rank in batches]
    return [list(rows) for rank in ranks for rows in rank]


def documents_by_slot(shards, slots, streaming):
    """What each slot reads, as endless (epoch, text)."""
    if streaming:
        return [slot_documents(shards, slot, slots) for slot in range(slots)]
    # A store knows documents only: each is a shard of its own.
    alone = [[text] for texts in shards for text in texts]
    return [slot_documents(alone, slot, slots) for slot in range(slots)]


@few
@given(shards, st.integers(1, 3), kinds, st.booleans())
def test_a_slot_reads_its_documents_whole_and_in_order(shards, slots, kind, reset):
    cutting, streaming = kind
    if sum(map(bool, shards)) < slots <= len(shards):
        return
    align = CHUNK if cutting == "lanes" and reset else 1
    module = module_of(shards, slots, streaming, cutting=cutting, reset_documents=reset)
    found = rows_by_slot([module], 20)
    for slot, documents in enumerate(documents_by_slot(shards, slots, streaming)):
        texts = (text for _, text in documents)
        assert found[slot] == list(islice(slot_rows(texts, L, align, reset), 20))


@few
@given(shards, st.integers(1, 6), st.booleans())
def test_every_document_is_read_once_an_epoch(shards, slots, streaming):
    everything = Counter(text for texts in shards for text in texts)
    alone = shards if streaming else [[text] for texts in shards for text in texts]
    if streaming and sum(map(bool, shards)) < slots <= len(shards):
        return
    read = {0: Counter(), 1: Counter()}
    for documents in documents_by_slot(shards, slots, streaming):
        # Empty shards give an epoch no document: three epochs of documents are enough to pass two.
        for epoch, text in islice(documents, 3 * sum(everything.values()) + len(alone)):
            if epoch in read:
                read[epoch][text] += 1
    assert read[0] == everything
    assert read[1] == everything


@few
@given(shards, st.integers(1, 3), kinds, st.integers(0, 9), st.integers(0, 5))
def test_reading_goes_on_from_a_place_on_any_number_of_ranks(shards, per_rank, kind, before, seed):
    cutting, streaming = kind
    slots = 6 * per_rank if not streaming else 6
    if streaming and sum(map(bool, shards)) < slots <= len(shards):
        return
    settings = {"cutting": cutting, "seed": seed}
    whole = module_of(shards, slots, streaming, **settings)
    expected = [rows[before:] for rows in rows_by_slot([whole], before + 5)]
    for batch in islice(whole.train_dataloader(), before):
        last = batch
    if before:
        whole.trained(last["cursor"], last["places"])
    state = whole.state_dict()
    for world in (1, 2, 3):
        ranks = [
            module_of(shards, slots, streaming, rank=rank, world=world, **settings)
            for rank in range(world)
        ]
        for rank in ranks:
            rank.load_state_dict(state)
            assert rank.cursor == before * slots
        assert rows_by_slot(ranks, 5) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("cutting", ["packed", "lanes"])
def test_rows_do_not_depend_on_the_number_of_workers(cutting):
    shards = [[bytes([65 + s]) * n for n in range(3, 30, 5)] for s in range(5)]

    def batches(workers):
        module = module_of(shards, 3, cutting=cutting, num_workers=workers)
        return [
            (rows_of(b), *(b[n].tolist() for n in ("places", "cursor", "padding", "left_out")))
            for b in islice(module.train_dataloader(), 9)
        ]

    alone = batches(0)
    for workers in (1, 2, 3, 4):
        assert batches(workers) == alone


def test_padding_of_lanes_is_counted_and_reaches_the_next_chunk():
    module = module_of([[b"abc", b"defgh"]], 1, cutting="lanes", shuffle=False)
    batches = list(islice(module.train_dataloader(), 3))
    # BOS a b c | EOS . . . || BOS d e f | g h EOS . || ...
    assert [batch["padding"].item() for batch in batches] == [3, 1, 3]


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_a_place_left_out_is_counted_by_one_slot(slots, capsys):
    damage = LeftOut("book.txt", "is no UTF-8")
    shards = [[b"one", b"two"], [b"three", b"four", b"five", damage]]
    module = module_of(shards, slots, on_error="skip", shuffle=False)
    module.setup()
    for slot in range(slots):
        reader = module._reader(slot)
        for piece in reader.pieces(np.zeros(reader.width, dtype=np.int64)):
            if (slot + slots * piece.place[0] if slots <= 2 else piece.place[0]) >= 2:
                break
    assert capsys.readouterr().out == "data: left out book.txt: is no UTF-8\n"
    for batch in islice(module.train_dataloader(), 20):
        left_out = batch["left_out"]
    assert left_out > 0


@pytest.mark.parametrize("streaming", [True, False])
def test_a_place_without_a_document_ends_the_run_unless_it_may_be_left_out(streaming):
    damage = LeftOut("book.jsonl:7", "is no JSON")
    shards = [[b"some text", damage]]
    module = module_of(shards, 1, streaming)
    message = r"book\.jsonl:7: is no JSON; .*data\.on_error=skip"
    with pytest.raises(ValueError, match=message):
        list(islice(module.train_dataloader(), 9))
    module = module_of(shards, 1, streaming, on_error="skip")
    assert len(list(islice(module.train_dataloader(), 9))) == 9


def test_a_row_without_a_document_of_its_own_is_refused():
    module = module_of([[b"one", b"two"]], 3)
    with pytest.raises(
        ValueError, match=r"data\.batch_size=3: .*none for row 3; .*streaming=false"
    ):
        next(iter(module.train_dataloader()))


def test_rows_of_lanes_are_whole_chunks():
    with pytest.raises(ValueError, match=r"data\.seq_len=10: .*chunk_size=4; set data\.seq_len=8"):
        module_of([[b"text"]], 1, cutting="lanes", seq_len=10)


def test_other_slots_are_refused_on_resuming():
    state = module_of([[b"text", b"more"]], 1).state_dict()
    for setting, value in (("batch_size", 2), ("cutting", "lanes"), ("streaming", False)):
        settings = {"slots": 1, setting if setting != "batch_size" else "slots": value}
        with pytest.raises(ValueError, match=rf"data\.{setting}={value}: the checkpoint was"):
            module_of([[b"text", b"more"]], **settings).load_state_dict(state)


def test_too_much_text_for_memory_is_refused_before_it_is_read():
    module = module_of([[b"x" * 5000]], 1, streaming=False, in_memory_limit=1e-6)
    with pytest.raises(ValueError, match=r"in_memory_limit=1e-06: .*data\.streaming=true"):
        module.setup()


def test_memory_is_flat_over_an_hour_of_a_stream(monkeypatch):
    """36 million tokens, what a run of 10,000 tokens a second reads in an hour."""
    monkeypatch.setattr(tokenizer_module.pieces, "__defaults__", (1 << 20,))
    texts = [[bytes([97 + i]) * size for i, size in enumerate((3_000_000, 20, 400_000))]]
    module = module_of(texts, 1, seq_len=1 << 16, val_seq_len=4)
    batches = iter(module.train_dataloader())
    tracemalloc.start()
    try:
        for _ in range(100):
            next(batches)
        _, early = tracemalloc.get_traced_memory()
        for _ in range(450):
            next(batches)
        _, late = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late < early + (1 << 18)
