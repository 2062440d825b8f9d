from collections import Counter
from itertools import islice
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_helpers import EOS, IGNORED, datamodule, documents, expected_rows, rows_of, texts
from litmegalodon.data import ByteTokenizer, ListSource, TextDataModule

seq_lens = st.integers(1, 9)
worlds = st.integers(1, 3)
few = settings(max_examples=40, deadline=None)


def merged(rank_batches):
    """The rows of a global batch in the global order, from the batches of all ranks."""
    return [row for rows in zip(*map(rows_of, rank_batches), strict=True) for row in rows]


def global_batches(modules, count):
    """`count` global batches as lists of rows, from the data modules of all ranks."""
    loaders = [iter(module.train_dataloader()) for module in modules]
    return [merged([next(loader) for loader in loaders]) for _ in range(count)]


@few
@given(texts, seq_lens, worlds, st.integers(1, 3), st.booleans(), st.integers(0, 5))
def test_every_token_is_served_once_an_epoch(texts, seq_len, world, per_rank, shuffle, seed):
    assume(sum(map(len, texts)) + 2 * len(texts) >= seq_len)
    modules = [
        datamodule(
            texts,
            rank=rank,
            world=world,
            seq_len=seq_len,
            batch_size=world * per_rank,
            shuffle=shuffle,
            seed=seed,
        )
        for rank in range(world)
    ]
    expected = expected_rows(texts, seq_len)
    count = -(-2 * len(expected) // (world * per_rank))
    samples = [row for batch in global_batches(modules, count) for row in batch]
    for epoch in (samples[: len(expected)], samples[len(expected) : 2 * len(expected)]):
        if shuffle:
            assert Counter(map(tuple, epoch)) == Counter(map(tuple, expected))
        else:
            assert epoch == expected


@few
@given(st.integers(0, 40), worlds, st.integers(1, 4))
def test_a_resumed_run_reads_the_next_batches_on_any_number_of_ranks(cursor, world, batch_size):
    text = [bytes(range(60))]
    batch_size *= world
    count = 4
    whole = datamodule(text, batch_size=1)
    samples = [b[0] for b in global_batches([whole], cursor + count * batch_size)]
    whole.trained(cursor)
    state = whole.state_dict()
    resumed = [
        datamodule(text, rank=rank, world=world, batch_size=batch_size) for rank in range(world)
    ]
    for module in resumed:
        module.load_state_dict(state)
    assert [row for b in global_batches(resumed, count) for row in b] == samples[cursor:]


def test_another_seed_gives_another_order():
    text = [bytes(range(100))]
    orders = [str(global_batches([datamodule(text, seed=seed)], 20)) for seed in range(4)]
    assert len(set(orders)) == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_order_does_not_depend_on_the_number_of_workers():
    def batches(num_workers):
        module = datamodule([bytes(range(100))], batch_size=3, num_workers=num_workers, seed=4)
        module.trained(5)
        taken = list(islice(module.train_dataloader(), 7))
        return [rows_of(batch) for batch in taken], [int(batch["cursor"]) for batch in taken]

    alone = batches(0)
    assert alone[1] == [8, 11, 14, 17, 20, 23, 26]
    for num_workers in (1, 2, 3):
        assert batches(num_workers) == alone


def test_a_batch_carries_the_cursor_of_the_sample_after_it():
    module = datamodule([bytes(range(60))], batch_size=4)
    first, second = islice(module.train_dataloader(), 2)
    assert first["cursor"].dtype == torch.int64 and first["cursor"].shape == ()
    module.trained(first["cursor"])
    assert module.cursor == 4
    assert rows_of(next(iter(module.train_dataloader()))) == rows_of(second)


def test_iterating_a_loader_again_goes_on_after_the_last_trained_batch():
    module = datamodule([bytes(range(60))], batch_size=2)
    loader = module.train_dataloader()
    first, second, third = (rows_of(batch) for batch in islice(loader, 3))
    assert rows_of(next(iter(loader))) == first
    module.trained(2)
    assert [rows_of(batch) for batch in islice(loader, 2)] == [second, third]


@few
@given(texts, seq_lens, worlds, st.integers(1, 3))
def test_validation_covers_all_held_out_bytes_once(texts, seq_len, world, per_rank):
    batch_size = world * per_rank
    ranks = [
        list(
            datamodule(
                val=texts,
                rank=rank,
                world=world,
                val_seq_len=seq_len,
                val_batch_size=batch_size,
            ).val_dataloader()
        )
        for rank in range(world)
    ]
    rows = [row for batches in zip(*ranks, strict=True) for row in merged(batches)]
    expected = expected_rows(texts, seq_len)
    assert rows[: len(expected)] == expected
    ignored = [(EOS, IGNORED, position == 0) for position in range(seq_len)]
    assert rows[len(expected) :] == [ignored] * (-len(expected) % batch_size)
    shapes = {batch["tokens"].shape for batches in ranks for batch in batches}
    assert shapes == {(per_rank, seq_len)}


def test_test_batches_are_the_held_out_ones():
    module = datamodule(val=[b"held out", b"text"])
    loaders = module.val_dataloader(), module.test_dataloader()
    val, test = ([rows_of(batch) for batch in loader] for loader in loaders)
    assert len(module.val_dataloader()) == len(val) > 1
    assert val == test


@pytest.mark.parametrize(
    ("setting", "value", "trained_with"),
    [("seq_len", 5, 4), ("seed", 1, 0), ("shuffle", False, True), ("reset_documents", False, True)],
)
def test_resuming_with_another_order_is_refused(setting, value, trained_with):
    state = datamodule().state_dict()
    message = (
        rf"data\.{setting}={value}: the checkpoint was trained with {trained_with}, .*init_from"
    )
    with pytest.raises(ValueError, match=message):
        datamodule(**{setting: value}).load_state_dict(state)


def test_resuming_with_another_corpus_or_tokenizer_is_refused():
    module = datamodule()
    other = datamodule(train=(b"other text",))
    with pytest.raises(ValueError, match=r"data\.source\.fingerprint=.*trained with"):
        other.load_state_dict(module.state_dict())
    module.tokenizer.fingerprint = "another"
    with pytest.raises(ValueError, match=r"data\.tokenizer\.fingerprint=.*trained with another"):
        datamodule().load_state_dict(module.state_dict())


def test_evaluating_a_checkpoint_leaves_the_position_alone():
    trained, module = datamodule(), datamodule(seq_len=5)
    trained.trained(12)
    module.trainer.state.fn = "validate"
    module.load_state_dict(trained.state_dict())
    assert module.cursor == 0
    module.tokenizer = SimpleNamespace(fingerprint="another")
    with pytest.raises(ValueError, match=r"data\.tokenizer\.fingerprint=another: .*bytes-"):
        module.load_state_dict(trained.state_dict())


@pytest.mark.parametrize(
    ("setting", "value", "least"),
    [
        ("seq_len", 0, 1),
        ("seq_len", 2.5, 1),
        ("batch_size", 0, 1),
        ("batch_size", True, 1),
        ("num_workers", -1, 0),
        ("val_seq_len", 0, 1),
        ("val_batch_size", -2, 1),
        ("seed", -1, 0),
    ],
)
def test_a_setting_out_of_range_is_named(setting, value, least):
    message = rf"data\.{setting}={value}: must be a whole number, at least {least}"
    with pytest.raises(ValueError, match=message):
        datamodule(**{setting: value})


@pytest.mark.parametrize(("batch_size", "works"), [(2, 3), (4, 3), (5, 6), (7, 6)])
def test_a_batch_that_ranks_cannot_share_says_which_size_works(batch_size, works):
    message = rf"data\.batch_size={batch_size}: .* all 3 data.*; set data\.batch_size={works}"
    with pytest.raises(ValueError, match=message):
        datamodule(world=3, batch_size=batch_size, val_batch_size=3).setup()
    with pytest.raises(ValueError, match=r"data\.val_batch_size="):
        datamodule(world=3, batch_size=3, val_batch_size=batch_size).setup()


def test_rows_longer_than_the_data_say_how_long_they_may_be():
    with pytest.raises(ValueError, match=r"data\.seq_len=7: .* 6 tokens; set data\.seq_len=6 "):
        datamodule([b"text"], seq_len=7).setup()
    datamodule([b"text"], seq_len=6).setup()


@pytest.mark.parametrize(("train", "val"), [([], [b"a"]), ([b""], [b"a"]), ([b"abcd"], [])])
def test_a_split_without_text_is_refused(train, val):
    with pytest.raises(
        ValueError, match=r"data\.source: the .* documents of ListSource hold no text"
    ):
        datamodule(train, val).setup()


def test_the_summary_counts_both_splits():
    module = datamodule([b"abcd", b"ef"], [b"ghi"], seq_len=4)
    module.setup()
    summary = module.summary()
    assert summary == {
        "fingerprint": module.source.fingerprint,
        "tokenizer": module.tokenizer.fingerprint,
        "train_documents": 2,
        "train_bytes": 6,
        "train_tokens": 10,
        "train_rows": 3,
        "train_utilisation": pytest.approx(10 / 12),
        "val_documents": 1,
        "val_bytes": 3,
        "val_tokens": 5,
        "val_rows": 2,
        "val_utilisation": pytest.approx(5 / 8),
        "left_out_files": 0,
        "left_out_bytes": 0,
        "left_out_places": 0,
    }
    assert module.val_bytes == 3
    assert module.val_targets == 4
    assert [document.text for document in module.validation_documents()] == [b"ghi"]
    assert module.baselines().keys() == {"gzip", "xz"}


def test_the_documents_are_read_once():
    class Counting(ListSource):
        reads = 0

        def shards(self, split):
            self.reads += 1
            return super().shards(split)

    source = Counting(documents([b"some text"]), documents([b"text"]))
    module = TextDataModule(source, ByteTokenizer(), seq_len=4)
    module.setup("fit")
    module.setup("validate")
    assert source.reads == 2, "train and val"


def test_validating_reads_the_held_out_documents_alone():
    class HeldOutOnly(ListSource):
        def shards(self, split):
            assert split == "val"
            return super().shards(split)

    module = datamodule(source=HeldOutOnly(documents([b"text"]), documents([b"ghi"])))
    module.setup("validate")
    assert [rows_of(batch) for batch in module.val_dataloader()]
    assert module.summary()["val_bytes"] == 3
    assert not any(name.startswith("train") for name in module.summary())


class Reader(pl.LightningModule):
    """Trains nothing; notes what it reads."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch["tokens"].tolist())
        self.last = batch["cursor"]
        return self.weight.sum()

    def on_train_batch_end(self, *_):
        self.trainer.datamodule.trained(self.last)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(module, max_steps, ckpt_path=None, **settings):
    reader = Reader()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(reader, datamodule=module, ckpt_path=ckpt_path)
    return reader.seen, trainer


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_run_resumes_with_the_next_batch(tmp_path):
    text = [bytes(range(200))]
    whole, _ = fit(datamodule(text, batch_size=2), 8)
    first, trainer = fit(datamodule(text, batch_size=2), 3)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    second, _ = fit(datamodule(text, batch_size=2), 8, tmp_path / "run.ckpt", limit_train_batches=4)
    assert first == whole[:3]
    assert first + second == whole


@pytest.mark.filterwarnings("ignore")
def test_overfitting_sees_the_same_batches_in_every_pass():
    seen, _ = fit(datamodule([bytes(range(200))], batch_size=2), 6, overfit_batches=2)
    assert seen[0] != seen[1]
    assert seen == seen[:2] * 3
