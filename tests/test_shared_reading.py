"""Texts that begin alike are read once, and every number is that of reading each alone."""

import weakref

import numpy as np
import pytest
import torch

from inference_helpers import BOS, byte_model
from litmegalodon.evaluation import SharedReader
from litmegalodon.evaluation.shared_reading import SHARED_LEAST, tree_of
from litmegalodon.models import Megalodon


@pytest.fixture(scope="module")
def model() -> Megalodon:
    return byte_model(torch.float32)


def letters(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(97, 123, count)


def opened(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate([[BOS], *parts])


@torch.no_grad()
def alone(model: Megalodon, context: np.ndarray, text: np.ndarray) -> tuple[float, bool]:
    """Log-likelihood and whether it is the greedy text, by one call."""
    tokens = torch.from_numpy(np.concatenate([context, text]))
    logits = model(tokens[None])[0][0, len(context) - 1 : -1 or None].double()[: len(text)]
    targets = tokens[len(context) :]
    found = logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
    return float(found), bool((logits.argmax(-1) == targets).all())


@torch.no_grad()
def greedy(model: Megalodon, context: np.ndarray, count: int) -> np.ndarray:
    tokens = context
    for _ in range(count):
        best = int(model(torch.from_numpy(tokens)[None])[0][0, -1].argmax())
        tokens = np.append(tokens, best)
    return tokens[len(context) :]


@pytest.mark.parametrize(("batch_size", "piece_tokens"), [(1, 4096), (3, 13), (16, 4096)])
def test_scores_are_those_of_one_call(model, batch_size, piece_tokens):
    base = letters(70, 0)
    contexts = [
        opened(base[:shared], letters(own, shared + own))
        for shared in (0, 40, 70)
        for own in (0, 3, 50)
    ]
    requests = [(c, letters(n, n)) for c in contexts for n in (0, 1, 2, 33)]
    likeliest = greedy(model, contexts[1], 5)
    requests += [(contexts[1], likeliest), (contexts[1], likeliest[:1])]
    requests.append((contexts[1], np.append(likeliest[:4], (likeliest[4] + 1) % 97)))
    reader = SharedReader(model, batch_size, piece_tokens)
    found = {i: (nats, is_greedy) for i, nats, is_greedy in reader.score(requests)}
    assert sorted(found) == list(range(len(requests)))
    for i, request in enumerate(requests):
        nats, is_greedy = alone(model, *request)
        assert found[i][0] == pytest.approx(nats, rel=1e-5, abs=1e-5)
        assert found[i][1] == is_greedy
    assert [found[i][1] for i in range(-3 + len(requests), len(requests))] == [True, True, False]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_context_is_read_once_however_many_continuations_it_has(model, batch_size):
    contexts = [opened(letters(n, n)) for n in (5, 50, 300)]
    texts = [letters(n, 7 * n) for n in (1, 4, 6)]
    reader = SharedReader(model, batch_size)
    list(reader.score([(c, t) for t in texts for c in contexts]))
    # A continuation's last token need not be read.
    assert reader.tokens_read == sum(map(len, contexts)) + 3 * (0 + 3 + 5)


def test_a_common_beginning_is_read_once(model):
    examples, questions = letters(200, 1), [letters(n, n) for n in (10, 11, 12)]
    reader = SharedReader(model)
    read = {
        i: logits
        for equal, _, logits in reader.read([opened(examples, q) for q in questions])
        for i in equal
    }
    assert sorted(read) == [0, 1, 2]
    assert reader.tokens_read == 1 + 200 + 10 + 11 + 12
    # One that is shorter than a call is worth is read again.
    reader = SharedReader(model)
    few = examples[: SHARED_LEAST - 2]
    list(reader.read([opened(few, q) for q in questions]))
    assert reader.tokens_read == 3 * (1 + len(few)) + 10 + 11 + 12


def test_a_text_that_another_begins_with_and_equal_ones_end_where_they_end():
    texts = [[1, 2, 3], [1, 2], [1, 2, 3], [], [1, 5], [4]]
    found, waiting = {}, [tree_of([np.array(t, np.int64) for t in texts])]
    while waiting:
        node = waiting.pop()
        waiting += node.children
        found |= {i: node.text[: node.depth].tolist() for i in node.ends}
        assert all(child.depth > node.depth for child in node.children)
    assert found == dict(enumerate(texts))


def test_a_short_text_is_not_read_on_beside_a_long_one(model):
    called = []
    reader = SharedReader(model, batch_size=3, piece_tokens=16)
    call = reader._call

    def counted(tokens, *arguments, **settings):
        called.append(tokens.size)
        return call(tokens, *arguments, **settings)

    reader._call = counted
    lengths = (200, 3, 30)
    list(reader.score([(opened(), letters(n, n)) for n in lengths]))
    # A text is padded to the end of a piece at most.
    assert sum(called) <= 1 + sum(-(-(n - 1) // 16) * 16 for n in lengths)


def test_few_memories_are_alive_however_many_texts_wait(model):
    texts = [opened(letters(60, i), letters(5, j)) for i in range(12) for j in range(3)]
    seen, most = [], 0
    for _, memory, _ in SharedReader(model, batch_size=2).read(texts):
        seen.append(weakref.ref(memory))
        del memory
        most = max(most, sum(made() is not None for made in seen))
    assert len(seen) == len(texts)
    assert most <= 2 * 2
