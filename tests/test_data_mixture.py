"""Several sources in one run, each with its share of the tokens."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import BOS, ShardedSource, datamodule, rows_of
from litmegalodon.data import MixtureSource
from litmegalodon.data.mixture import ROUND, part_at

few = settings(max_examples=30, deadline=None)


def mixture(weights=None, **sources):
    """A source of letters by name, as `a=[sizes of its documents]`."""
    made = {
        name: ShardedSource([[name.encode() * size for size in sizes]], val=[name.encode() * 5])
        for name, sizes in sources.items()
    }
    return MixtureSource(made, weights or dict.fromkeys(sources, 1))


def letters(rows):
    """How many tokens of each source there are in rows."""
    tokens = (token for row in rows for token, _, _ in row)
    return Counter(chr(token) for token in tokens if token < BOS)


@few
@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=4), st.integers(0, 5 * ROUND))
def test_parts_have_their_shares_and_no_sample_is_skipped(weights, start):
    weights = tuple(weights)
    found = [part_at(i, weights) for i in range(ROUND)]
    for part, weight in enumerate(weights):
        indices = [index for p, index in found if p == part]
        assert indices == list(range(len(indices)))
        assert abs(len(indices) - ROUND * weight / sum(weights)) < 1
    part, index = part_at(start, weights)
    assert index == sum(part_at(i, weights)[0] == part for i in range(start))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("cutting", ["packed", "lanes"])
def test_sources_give_their_shares_of_the_tokens(cutting, streaming):
    source = mixture({"a": 3, "b": 1}, a=[50, 70, 10] * 3, b=[11] * 40)
    module = datamodule(
        source=source,
        seq_len=16,
        batch_size=2,
        chunk_size=4,
        cutting=cutting,
        streaming=streaming,
    )
    rows = [row for b in islice(module.train_dataloader(), 400) for row in rows_of(b)]
    counts = letters(rows)
    assert 2.6 < counts["a"] / counts["b"] < 3.4


@few
@given(st.integers(0, 30), st.sampled_from(["packed", "lanes"]), st.booleans())
def test_a_mixture_goes_on_from_a_place(before, cutting, streaming):
    def module():
        return datamodule(
            source=mixture({"a": 1, "b": 2, "c": 1}, a=[9, 1, 20], b=[3] * 5, c=[40]),
            seq_len=8,
            batch_size=1,
            chunk_size=4,
            cutting=cutting,
            streaming=streaming,
        )

    whole, resumed = module(), module()
    batches = list(islice(whole.train_dataloader(), before + 6))
    if before:
        whole.trained(batches[before - 1]["cursor"], batches[before - 1].get("places"))
    resumed.load_state_dict(whole.state_dict())
    following = islice(resumed.train_dataloader(), 6)
    assert list(map(rows_of, following)) == list(map(rows_of, batches[before:]))


def test_held_out_documents_are_those_of_all_sources():
    module = datamodule(source=mixture(a=[50], b=[50]), val_seq_len=4, val_batch_size=1)
    rows = [row for batch in module.val_dataloader() for row in rows_of(batch)]
    assert letters(rows) == {"a": 5, "b": 5}
    assert module.val_bytes == 10


def test_a_mixture_of_mixtures_shares_the_share():
    inner = mixture({"b": 1, "c": 3}, b=[40], c=[40])
    outer = MixtureSource({"a": ShardedSource([[b"a" * 40]]), "in": inner}, {"a": 1, "in": 1})
    module = datamodule(source=outer, seq_len=8, batch_size=1)
    rows = [row for batch in islice(module.train_dataloader(), ROUND) for row in rows_of(batch)]
    counts = letters(rows)
    assert 2.7 < counts["c"] / counts["b"] < 3.3
    assert 3.7 < counts["a"] / counts["b"] < 4.3


@pytest.mark.parametrize("weight", [0, -1, True, "much", float("inf"), float("nan")])
def test_a_weight_that_is_no_share_is_named(weight):
    with pytest.raises(ValueError, match=r"data\.source\.weights\.b="):
        mixture({"a": 1, "b": weight}, a=[5], b=[5])


def test_weights_are_those_of_the_sources():
    with pytest.raises(ValueError, match=r"needs one number for each of a, b"):
        mixture({"a": 1, "c": 1}, a=[5], b=[5])
    with pytest.raises(ValueError, match="at least 1/1024"):
        mixture({"a": 1, "b": 1e-4}, a=[5], b=[5])


def test_another_weight_is_another_corpus():
    one, two = mixture({"a": 1, "b": 1}, a=[5], b=[5]), mixture({"a": 1, "b": 2}, a=[5], b=[5])
    assert one.fingerprint != two.fingerprint


def test_a_source_without_text_to_train_on_is_named():
    source = mixture(a=[50], b=[])
    with pytest.raises(ValueError, match="training documents of ShardedSource hold no text"):
        datamodule(source=source, seq_len=8).setup()


def test_memory_is_counted_over_all_sources_with_their_prompts():
    parts = {n: ShardedSource([[(b"p" * 400, n.encode() * 100)]]) for n in "abc"}
    source = MixtureSource(parts, dict.fromkeys(parts, 1))
    datamodule(source=source, seq_len=8, in_memory_limit=1600 / 2**30).setup()
    with pytest.raises(ValueError, match="have more than"):
        datamodule(source=source, seq_len=8, in_memory_limit=1400 / 2**30).setup()
