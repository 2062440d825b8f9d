"""Texts made on demand: the same ones always, of the length and distance asked for."""

import pickle
import re
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_helpers import splits_of
from litmegalodon.data import Document, SyntheticSource
from litmegalodon.data.synthetic import TASKS, question

lengths = st.integers(120, 3000)
WITH_DISTANCE = ["copy", "recall", "passkey"]


@st.composite
def placed(draw):
    """(task, length, distance) that fit."""
    task, length = draw(st.sampled_from(WITH_DISTANCE)), draw(lengths)
    low, high = TASKS[task].nearest(length), TASKS[task].farthest(length)
    return task, length, draw(st.integers(low, high))


def recalled_at(task, prompt, answer):
    """Where in the prompt the answer stands, found as a reader would."""
    if task == "copy":
        return 0
    if task == "passkey":
        return prompt.index(b"The pass key is ") + len(b"The pass key is ")
    key = prompt[-7:-1]
    return prompt.index(key) + 7


@settings(max_examples=200, deadline=None)
@given(placed(), st.integers(0, 3), st.integers(0, 50))
def test_the_answer_stands_in_the_prompt_at_the_set_distance(of, seed, index):
    task, length, distance = of
    prompt, answer = question(task, length, distance, seed, index)
    assert len(prompt) + len(answer) == length and answer and prompt.isascii()
    start = recalled_at(task, prompt, answer)
    assert len(prompt) - start == distance
    assert prompt[start : start + len(answer)] == answer


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WITH_DISTANCE), lengths, st.integers(0, 50))
def test_without_a_distance_one_that_fits_is_drawn(task, length, index):
    prompt, answer = question(task, length, index=index)
    distance = len(prompt) - recalled_at(task, prompt, answer)
    assert question(task, length, distance, index=index)[0] is not None
    assert len(prompt) + len(answer) == length


def test_drawn_distances_differ_and_the_longest_copy_is_half():
    distances = set()
    for index in range(40):
        prompt, answer = question("passkey", 2000, index=index)
        distances.add(len(prompt) - recalled_at("passkey", prompt, answer))
    assert len(distances) > 30 and max(distances) - min(distances) > 1000
    assert len(question("copy", 1001)[1]) == 500


def test_a_question_about_pairs_has_one_answer():
    prompt, answer = question("recall", 20_000, 9_000)
    pairs = re.findall(rb"^([a-z]{6}) ([a-z]{4})$", prompt, re.MULTILINE)
    assert len(pairs) > 1600
    assert [value for key, value in pairs if key == prompt[-7:-1]] == [answer]


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_document_is_a_function_of_seed_split_and_number_alone(task, data):
    length = data.draw(lengths)
    seed = data.draw(st.integers(0, 9))
    source = SyntheticSource(task, length, documents=1003, val_documents=2, seed=seed)
    split, number = data.draw(st.sampled_from([("train", 1002), ("train", 0), ("val", 1)]))
    shards = source.shards(split)
    made = dict(shards[number // 1000].documents(number % 1000))[number % 1000]
    again = SyntheticSource(task, length, documents=5000, val_documents=99, seed=seed)
    assert made == again.document(split, number)
    assert made.name == f"{split}/{number}"
    assert len(made.prompt) + len(made.text) == length
    others = [
        again.document(split, number + 1),
        again.document("val" if split == "train" else "train", number),
        SyntheticSource(task, length, seed=seed + 10).document(split, number),
    ]
    assert all((made.prompt, made.text) != (other.prompt, other.text) for other in others)


def test_shards_go_on_at_any_number_and_to_other_processes():
    source = SyntheticSource("recall", 100, documents=2005, val_documents=3)
    assert [len(list(shard.documents())) for shard in source.shards("train")] == [1000, 1000, 5]
    shard = pickle.loads(pickle.dumps(source.shards("train")[2]))
    whole = list(shard.documents())
    assert [number for number, _ in whole] == [0, 1, 2, 3, 4]
    for first in range(7):
        assert list(shard.documents(first)) == whole[first:]
    names = [item.name for items in splits_of(source).values() for item in items]
    assert len(set(names)) == len(names) == 2008
    assert source.num_bytes == 100 * 2008


def test_random_text_is_predicted_whole_and_holds_six_bits_a_byte():
    document = SyntheticSource("random", 100_000).document("train", 0)
    assert (
        document.prompt == b"" and document.text.isascii() and document.text.decode().isprintable()
    )
    counts = Counter(document.text)
    assert len(counts) == 64 and max(counts.values()) < 1.15 * 100_000 / 64


def test_documents_are_these():
    # Other ones would make every run that trains on them another run.
    copied = b"W/26iV42lbr7/dEx"
    assert SyntheticSource("copy", 33).document("train", 0) == Document(
        "train/0", copied, copied + b"\n"
    )


def test_the_fingerprint_changes_with_every_setting():
    sources = [
        SyntheticSource("recall", 100),
        SyntheticSource("random", 100),
        SyntheticSource("recall", 101),
        SyntheticSource("recall", 100, documents=9),
        SyntheticSource("recall", 100, val_documents=9),
        SyntheticSource("recall", 100, distance=50),
        SyntheticSource("recall", 100, seed=1),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert sources[0].fingerprint == SyntheticSource("recall", 100).fingerprint


@given(st.sampled_from(WITH_DISTANCE), lengths, st.integers(1, 5000))
def test_a_distance_that_does_not_fit_is_refused_with_the_nearest_that_does(task, length, distance):
    assume(not TASKS[task].nearest(length) <= distance <= TASKS[task].farthest(length))
    with pytest.raises(ValueError) as raised:
        SyntheticSource(task, length, distance=distance)
    text = str(raised.value)
    assert text.startswith(
        f"data.source.distance={distance}: does not fit documents of data.source.length={length};"
    )
    nearest = int(text.rpartition(" ")[2])
    SyntheticSource(task, length, distance=nearest)
    step = 1 if nearest < distance else -1
    with pytest.raises(ValueError):
        SyntheticSource(task, length, distance=nearest + step)


@pytest.mark.parametrize("task", TASKS)
def test_the_shortest_document_of_a_task_can_be_made(task):
    least = TASKS[task].least_length
    prompt, answer = question(task, least)
    assert len(prompt) + len(answer) == least and answer
    with pytest.raises(ValueError, match=rf"^data\.source\.length={least - 1}: must be a whole"):
        SyntheticSource(task, least - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "sort"}, "task=sort: must be random, copy, recall or passkey"),
        ({"length": None}, "length=null: must be a whole number, at least 1 for the task random"),
        ({"documents": 0}, "documents=0: must be a whole number, at least 1"),
        ({"val_documents": 1.5}, "val_documents=1.5: must be a whole number, at least 1"),
        ({"seed": -1}, "seed=-1: must be a whole number, at least 0"),
        ({"distance": 5}, "distance=5: the task random has none; set null"),
        ({"task": "copy", "distance": True}, "distance=True: must be a whole number, at least 1"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError) as raised:
        SyntheticSource(**{"task": "random", "length": 100, **settings})
    assert str(raised.value) == f"data.source.{message}"
