"""However a text is read, in which pieces and beside which others, it is continued the same way."""

import tracemalloc
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from golden_data import assert_equal
from inference_helpers import (
    BOS,
    EOS,
    TOKENIZER,
    assert_equal_while_certain,
    byte_model,
    greedy,
    reader,
    text_of,
    tokens_of,
)
from litmegalodon.data import SentencePieceTokenizer
from litmegalodon.inference import Reader, TextState, generate_together
from litmegalodon.inference.reader import text_pieces
from tokenizer_helpers import train

DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
# Up to and over the edges of chunks of 16 tokens; a BOS comes first.
LENGTHS = [0, 1, 14, 15, 16, 47, 50]


@pytest.fixture(scope="module", params=DTYPES)
def model(request):
    return byte_model(DTYPES[request.param])


@pytest.fixture(scope="module")
def exact():
    return byte_model()


@dataclass
class Count:
    """A memory that knows how many tokens were read."""

    position: torch.Tensor


class Scripted(nn.Module):
    """Says the tokens of a script after so many tokens of a prompt, and notes what it is given."""

    def __init__(self, script, vocab_size=264, outside=(BOS, 258, 263), prompt=3):
        super().__init__()
        self.outside, self.prompt = list(outside), prompt
        self.anchor = nn.Parameter(torch.zeros(()))
        self.script, self.vocab_size, self.calls = script, vocab_size, []

    def forward(self, tokens, state=None, resets=None, last_only=False):
        assert last_only
        self.calls.append((tokens.tolist(), self.training))
        count = (0 if state is None else state.position) + torch.tensor([tokens.shape[1]])
        logits = torch.zeros(1, 1, self.vocab_size)
        # Outside the vocabulary, and BOS: likelier than everything.
        logits[..., self.outside] = 100.0
        logits[:, -1, self.script[max(int(count) - self.prompt, 0)]] = 50.0
        return logits, Count(count)


def scripted(script, prompt=b"ab", **settings):
    """A reader on a script, after its prompt, and what it writes."""
    made = Reader(Scripted([*script]), TOKENIZER)
    made.read(prompt)
    return made, "".join(made.generate(**settings))


def test_a_prompt_is_read_once_and_then_each_token_on_the_state():
    made = Reader(Scripted([*b"cde"]).train(), TOKENIZER)
    assert made.read("ab") == 2
    assert "".join(made.generate(3, temperature=0)) == "cde"
    # The last token is read when what follows it is asked for.
    calls = [[[BOS, *b"a"]], [[*b"b"]], [[*b"c"]], [[*b"d"]]]
    assert made.model.calls == [(tokens, False) for tokens in calls]
    assert made.state.last == ord("e")
    assert made.model.training


def test_a_text_ends_where_the_model_ends_the_document_which_can_then_be_continued():
    made, text = scripted([*b"cd", EOS], max_new_tokens=10, temperature=0)
    assert (text, made.ended, made.state.last) == ("cd", "document", ord("d"))
    assert "".join(made.generate(5, temperature=0)) == ""
    assert made.ended == "document"


def test_bos_and_ids_above_the_vocabulary_are_never_drawn():
    assert scripted(b"x" * 50, max_new_tokens=50, temperature=1.0)[1] == "x" * 50


def test_a_text_ends_before_a_stop_string():
    made, text = scripted(b"cdefgh", max_new_tokens=10, temperature=0, stop="ef")
    assert (text, made.ended, made.state.last) == ("cd", "stop", ord("f"))


def test_all_processes_continue_with_the_tokens_they_agree_on():
    agreed = iter([*b"yz", EOS])
    made, text = scripted(b"x" * 9, temperature=0, agree=lambda tokens: [next(agreed)])
    assert text == "yz"
    assert [tokens for tokens, _ in made.model.calls[2:]] == [[[*b"y"]], [[*b"z"]]]


def test_a_text_keeps_its_first_space(tmp_path):
    tokenizer = SentencePieceTokenizer(str(train(tmp_path / "a.model")))
    script = tokenizer.encode("the dog").tolist()
    model = Scripted(script, tokenizer.vocab_size, outside=[tokenizer.bos_id], prompt=2)
    made = Reader(model, tokenizer)
    assert made.read("the") == 1
    assert "".join(made.generate(len(script), temperature=0)) == " the dog"


def test_no_tokens_wanted_is_no_text(exact):
    made = reader(exact, "ab")
    assert list(made.generate(0)) == []
    assert made.ended == "max_new_tokens"
    for wrong, said in (({"max_new_tokens": -1}, "max_new_tokens=-1"), ({"stop": ""}, "stop=")):
        # Said at once, before any text is asked for.
        with pytest.raises(ValueError, match=f"^{said}: must be"):
            made.generate(**wrong)
    with pytest.raises(ValueError, match=r"^piece_tokens=0: must be"):
        Reader(exact, TOKENIZER, piece_tokens=0)


@pytest.mark.parametrize("length", LENGTHS)
def test_writing_equals_reading_everything_again_for_each_token(model, length):
    prompt = text_of(length, seed=length)
    want, certain = greedy(model, prompt, 24)
    assert certain > 5
    assert_equal_while_certain(tokens_of(reader(model, prompt), 24, temperature=0), want, certain)


@settings(deadline=None, max_examples=15, derandomize=True, database=None)
@given(
    cuts=st.lists(st.integers(0, 90), max_size=5),
    piece=st.sampled_from([1, 3, 16, 17, 32, 64]),
)
def test_any_split_of_the_reading_gives_the_same_text_and_state(exact, cuts, piece):
    prompt = text_of(90)
    edges = [0, *sorted(cuts), 90]
    parts = [prompt[a:b] for a, b in pairwise(edges)]
    whole, split = reader(exact, prompt), reader(exact, *parts, piece_tokens=piece)
    assert split.state.last == whole.state.last
    want = whole.state.memory.tensors()
    for name, value in split.state.memory.tensors().items():
        assert_equal(value.double(), want[name].double(), name=name)
    assert tokens_of(split, 20, temperature=0) == tokens_of(whole, 20, temperature=0)


def test_any_split_of_the_reading_gives_the_same_text_in_float32():
    model = byte_model(torch.float32)
    prompt = text_of(90)
    want, certain = greedy(model, prompt, 30)
    assert certain > 5
    for piece in (1, 7, 16, 90):
        got = tokens_of(
            reader(model, prompt[:33], prompt[33:], piece_tokens=piece), 30, temperature=0
        )
        assert_equal_while_certain(got, want, certain)


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_prompts_of_unequal_length_in_one_batch_give_the_text_of_each_alone(exact, temperature):
    settings = {"temperature": temperature, "seed": 3, "top_p": 0.9, "repetition_penalty": 1.2}
    prompts = [text_of(length, seed=length) for length in LENGTHS]
    alone = ["".join(reader(exact, p).generate(40, **settings)) for p in prompts]
    readers = [reader(exact, p) for p in prompts]
    together = [""] * len(prompts)
    for index, text in generate_together(readers, 40, **settings):
        together[index] += text
    assert together == alone


def test_prompts_of_unequal_length_in_one_batch_give_the_text_of_each_alone_in_float32():
    model = byte_model(torch.float32)
    prompts = [text_of(length, seed=length) for length in LENGTHS]
    readers = [reader(model, p) for p in prompts]
    tokens = [[] for _ in prompts]
    for _ in range(24):
        list(generate_together(readers, 1, temperature=0))
        for mine, made in zip(tokens, readers, strict=True):
            mine.append(made.state.last)
    for prompt, mine in zip(prompts, tokens, strict=True):
        want, certain = greedy(model, prompt, 24)
        assert_equal_while_certain(mine, want, certain)


def test_a_text_that_ends_leaves_the_batch_and_changes_no_other(exact):
    prompts = [text_of(length, seed=length) for length in LENGTHS]
    alone = ["".join(reader(exact, p).generate(30, temperature=0)) for p in prompts]
    # A string that comes in some texts, early in one.
    stop = next(c for c in alone[2][1:4] if any(c not in text for text in alone))
    want, rows = [text.partition(stop)[0] for text in alone], []
    exact.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    readers = [reader(exact, p) for p in prompts]
    rows.clear()
    together = [""] * len(prompts)
    for index, text in generate_together(readers, 30, temperature=0, stop=stop):
        together[index] += text
    exact._forward_pre_hooks.clear()
    assert together == want
    assert [made.ended == "stop" for made in readers] == [stop in text for text in alone]
    assert rows[0] == len(prompts) and rows[-1] < len(prompts)
    # What each reader is left with is what it would be alone.
    for prompt, made in zip(prompts, readers, strict=True):
        other = reader(exact, prompt)
        list(other.generate(30, temperature=0, stop=stop))
        assert made.state.last == other.state.last
        theirs = other.state.memory.tensors()
        for name, value in made.state.memory.tensors().items():
            assert_equal(value.double(), theirs[name].double(), name=name)


def test_a_generator_that_is_closed_early_leaves_what_was_written(exact):
    whole, other = reader(exact, "some text"), reader(exact, "some text")
    want = tokens_of(whole, 12, temperature=0)
    for _ in zip(range(3), other.generate(12, temperature=0), strict=False):
        pass
    written = other.state.tokens - len("some text") - 1
    assert 0 < written < 12
    assert tokens_of(other, 12 - written, temperature=0) == want[written:]


def test_a_state_is_a_value_that_can_be_continued_many_times(exact):
    made = reader(exact, text_of(40))
    book = made.state
    texts = set()
    for question in ("who?", "what?", "who?"):
        made.state = book
        made.read(question)
        texts.add((question, "".join(made.generate(20, temperature=0))))
    assert len(texts) == 2
    assert isinstance(book, TextState) and book.tokens == 41


def test_the_seed_decides_what_is_drawn(exact):
    texts = [
        "".join(reader(exact, "ab").generate(30, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_readers_of_different_models_are_no_batch(exact):
    with pytest.raises(ValueError, match="different models"):
        generate_together([reader(exact), reader(byte_model())])
    with pytest.raises(ValueError, match="there is none"):
        generate_together([])


def test_weights_that_are_no_numbers_end_in_a_sentence(exact):
    model = byte_model()
    with torch.no_grad():
        model.output.output.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the logits hold NaN"):
        list(reader(model, "ab").generate(5))


def test_reading_computes_the_logits_of_last_tokens_only(exact):
    widths = []
    exact.output.output.register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    reader(exact, text_of(200), piece_tokens=64)
    exact.output.output._forward_hooks.clear()
    assert widths == [1] * 4


def test_the_logits_of_the_last_token_alone_are_those_among_all(exact):
    tokens = torch.tensor([[BOS, *text_of(40)]])
    (every, end), (last, same) = exact(tokens), exact(tokens, last_only=True)
    assert torch.equal(last, every[:, -1:])
    assert torch.equal(end.layers[1].h, same.layers[1].h)


@pytest.mark.parametrize("sizes", [[10], [1] * 3000, [999, 1, 2000], [2999, 1]])
def test_text_is_tokenised_in_the_same_pieces_however_it_comes(sizes):
    text = (b"ab cd\n" + "\N{EURO SIGN}".encode() * 9) * 91
    text, parts = text[:3000], []
    for size in sizes:
        parts.append(text[:size])
        text = text[size:]
    whole = list(text_pieces(b"".join(parts), 100))
    assert list(text_pieces(iter(parts), 100)) == whole
    assert b"".join(whole) == b"".join(parts)
    assert all(len(piece) <= 100 for piece in whole)


@pytest.mark.slow
def test_reading_a_million_tokens_takes_no_more_memory_than_a_fifth_of_it():
    resource = pytest.importorskip("resource")
    model = byte_model(torch.float32, chunk_size=256)
    peaks, resident = {}, {}

    def blocks(count):
        yield from (text_of(1000, seed=i % 7) for i in range(count // 1000))

    reader(model, b"".join(blocks(50_000)))
    for count in (200_000, 1_000_000):
        tracemalloc.start()
        made = Reader(model, TOKENIZER)
        # Text pieces of the tokenizer's size, so that both hold whole ones.
        assert made.read(blocks(count)) == count
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        resident[count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # A piece of text is up to a MiB, its ids eight.
    assert peaks[1_000_000] - peaks[200_000] < 12e6
    assert resident[1_000_000] - resident[200_000] < 40
