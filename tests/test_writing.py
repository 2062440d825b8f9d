"""Text appears as soon as it is certain, in whole characters and never a part of a stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litmegalodon.data import ByteTokenizer
from litmegalodon.inference import check_stops
from litmegalodon.inference.writing import Writer


def written(data, stops=()):
    """What a writer returns for each byte, and at the end."""
    writer = Writer(ByteTokenizer(), ByteTokenizer.bos_id, stops)
    texts = []
    for token in data:
        texts.append(writer.push(token))
        if writer.stopped:
            break
    return [*texts, writer.finish()], writer.stopped


def test_a_character_appears_with_its_last_byte():
    assert written("aé€".encode())[0] == ["a", "", "é", "", "", "€", ""]


def test_what_is_no_character_is_replaced_when_that_is_certain():
    assert written(b"a\xffb\xe2\x82")[0] == ["a", "\ufffd", "b", "", "", "\ufffd"]


def test_what_may_become_a_stop_string_is_held_back_and_given_out_when_it_does_not():
    assert written(b"a ENx", ["END"])[0] == ["a", " ", "", "", "ENx", ""]
    assert written(b"a EN", ["END"])[0] == ["a", " ", "", "", "EN"]


def test_the_stop_string_that_is_complete_first_ends_the_text_and_is_left_out():
    assert written(b"xabc", ["abc", "b"]) == (["x", "", "a", ""], True)
    assert written(b"xaabaab", ["aab"]) == (["x", "", "", "", ""], True)


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(st.text("abé", max_size=12), st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_the_texts_joined_are_the_text_up_to_the_first_stop_string(text, stops):
    texts, stopped = written(text.encode(), stops)
    ends = [(i, s) for i in range(len(text) + 1) for s in stops if text[:i].endswith(s)]
    assert stopped == bool(ends)
    first = min((i for i, _ in ends), default=len(text))
    # Of those that end there the longest begins first.
    longest = max((len(s) for i, s in ends if i == first), default=0)
    assert "".join(texts) == text[: first - longest]


class Words:
    """Tokens of whole words; the space before the first word of a text is not part of it."""

    SURFACES = ("", " one", " two", "three")

    def bytes_of(self, ids):
        data = "".join(self.SURFACES[i] for i in ids)
        return data.removeprefix(" ").encode()


def test_a_token_s_text_is_the_one_it_has_after_what_came_before():
    writer = Writer(Words(), last=0)
    assert [writer.push(i) for i in (1, 2, 1, 3, 2, 1, 2)] == [
        "one", " two", " one", "three", " two", " one", " two",
    ]  # fmt: skip
    assert Writer(Words(), last=2).push(1) == " one"


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ([""], "stop=: must be a text of at least one character"),
        (
            ["x" * 1001],
            r"stop=xxxxxxxxxxxxxxxxxxxx\.\.\.: has 1,001 characters; give at most 1,000",
        ),
        (["x"] * 65, "stop: has 65 strings; give at most 64"),
        ([3], "stop=3: must be a text"),
    ],
)
def test_a_stop_list_that_is_no_stop_list_is_refused(stops, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_stops(stops)


def test_one_stop_string_is_a_list_of_one():
    assert check_stops("ab") == ("ab",)
