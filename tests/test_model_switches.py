"""Each switch of MegalodonConfig alone, and all of them: what holds of the paper's model holds."""

import threading
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

from golden_data import assert_equal, relative_error
from hard import (
    IMPLS,
    draws,
    fresh_at,
    hard_config,
    hard_model,
    hard_resets,
    hard_state,
    hard_tokens,
)
from litmegalodon.models import Megalodon, MegalodonConfig, MegalodonState
from litmegalodon.models.config import SWITCHES
from litmegalodon.models.span import Span
from naive import naive_nll

ALONE = [{name: value} for name, values in SWITCHES.items() for value in values[1:]]
MEGA = {"ema": "real", "norm": "layer", "residual": "plain", "attention": "plain"}
CASES = [*ALONE, {"chunk_size": None}, MEGA, MEGA | {"chunk_size": None}]
LENGTH, ROWS = 70, 2
POSITIONS = [21, 32]


def ids(cases):
    names = ["mega" if "ema" in case and len(case) > 1 else "" for case in cases]
    parts = [" ".join(f"{k}={v}" for k, v in case.items() if k not in MEGA) for case in cases]
    alone = ["".join(case.values()) if case in ALONE else "" for case in cases]
    return [" ".join(filter(None, part)) for part in zip(names, alone, parts, strict=True)]


switched = pytest.mark.parametrize("changes", CASES, ids=ids(CASES))


def hard(changes):
    return hard_model(hard_config(**changes))


def gradients(model, objective):
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(objective, named.values()), strict=True))


@switched
def test_it_computes_what_its_definition_says_with_its_gradients(changes):
    model = hard(changes)
    tokens, resets = hard_tokens(model.config, ROWS, LENGTH), hard_resets(ROWS, LENGTH)
    want = naive_nll(model, tokens, resets)
    got = model.loss(tokens, tokens, resets=resets)[0]
    assert_equal(got, want, name="loss")
    want_grads = gradients(model, want)
    for name, value in gradients(model, got).items():
        assert_equal(value, want_grads[name], name=name)


@switched
def test_it_makes_another_model_of_the_same_weights(changes):
    model, other = hard(changes), hard({})
    ours = model.state_dict()
    kept = {k: v for k, v in other.state_dict().items() if k in ours}
    model.load_state_dict({k: v[..., : ours[k].shape[-1]] for k, v in kept.items()})
    tokens = hard_tokens(model.config, ROWS, LENGTH)
    assert relative_error(model(tokens)[0], other(tokens)[0]) > 1e-3


@switched
def test_any_split_into_calls_equals_one_call(changes):
    model = hard(changes)
    tokens, resets = hard_tokens(model.config, ROWS, LENGTH, 3), hard_resets(ROWS, LENGTH)
    start = hard_state(model, POSITIONS)
    want, want_end = model(tokens, start, resets)
    state, parts = start, []
    for a, b in pairwise((0, 1, 14, 16, 43, LENGTH)):
        logits, state = model(tokens[:, a:b], state, resets[:, a:b])
        parts.append(logits)
    assert_equal(torch.cat(parts, dim=1), want, name="logits")
    for name, value in want_end.tensors().items():
        assert_equal(state.tensors()[name].double(), value.double(), name=name)


@switched
def test_a_packed_row_equals_its_documents_alone(changes):
    model = hard(changes)
    tokens, resets = hard_tokens(model.config, 1, LENGTH, 6), hard_resets(1, LENGTH)
    packed = model(tokens, fresh_at(model.config, [0]), resets)[0]
    edges = sorted({0, *resets[0].nonzero().flatten().tolist(), LENGTH})
    for a, b in pairwise(edges):
        fresh = MegalodonState.fresh(model.config, 1, a, torch.float64)
        assert_equal(packed[:, a:b], model(tokens[:, a:b], fresh)[0], name=f"document at {a}")


class Beside:
    """An exchange between threads, whose gradients flow through what is gathered."""

    def __init__(self, rank, size, shared, barrier):
        self.rank, self.size, self.shared, self.barrier = rank, size, shared, barrier

    def start(self, local):
        self.barrier.wait(30)
        self.shared[self.rank] = local
        self.barrier.wait(30)
        gathered = torch.stack([self.shared[i] for i in range(self.size)])
        return lambda: gathered


def in_stretches(model, tokens, state, resets, size):
    """The loss of each of `size` processes' stretches, and the memory that each returns."""
    shared, barrier, results = {}, threading.Barrier(size), {}

    def work(rank):
        span = Span(Beside(rank, size, shared, barrier), resets)
        mine = [span.part(u) for u in (tokens, resets)]
        results[rank] = model.loss(mine[0], mine[0], state, mine[1], span)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[rank] for rank in range(size)]


@pytest.mark.parametrize("changes", [{}, *ALONE, MEGA], ids=["as it is", *ids([*ALONE, MEGA])])
def test_a_shared_row_equals_a_whole_one_with_its_gradients(changes):
    model = hard(changes)
    tokens, resets = hard_tokens(model.config, ROWS, 64, 4), hard_resets(ROWS, 64)
    start = hard_state(model, [32, 48])
    nll, _, end = model.loss(tokens, tokens, start, resets)
    parts = in_stretches(model, tokens, start, resets, size=2)
    total = sum(part[0] for part in parts)
    assert_equal(total, nll, name="loss")
    want = gradients(model, nll)
    for name, value in gradients(model, total).items():
        assert_equal(value, want[name], name=name)
    for _, _, state in parts:
        for name, value in end.tensors().items():
            if value.numel():
                assert_equal(state.tensors()[name].double(), value.double(), name=name)


def test_the_reference_operators_give_the_same():
    config = hard_config(**MEGA)
    tokens, resets = hard_tokens(config, ROWS, LENGTH), hard_resets(ROWS, LENGTH)
    results = []
    for impl in ("reference", "torch"):
        model = hard_model(config, impl=impl)
        nll = model.loss(tokens, tokens, hard_state(model, POSITIONS), resets)[0]
        results.append({"nll": nll} | gradients(model, nll))
    for name, value in results[0].items():
        assert_equal(value, results[1][name], name=name)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_real_average_is_computed_by_every_implementation(impl):
    layer = hard({"ema": "real"}).layers[0].mega.cema
    x = draws(3)(ROWS, LENGTH, layer.alpha.shape[0]) + 3
    resets, results = hard_resets(ROWS, LENGTH), []
    for which in (impl, "reference"):
        layer.impl = which
        y, h = layer(x, None, resets)
        results.append({"y": y, "h": h} | gradients(layer, (y * y).sum() + h.square().sum()))
    for name, value in results[0].items():
        assert_equal(value, results[1][name], name=name)


def test_rows_that_attention_spans_are_not_shared():
    model = hard({"chunk_size": None})
    resets = torch.zeros(1, 64, dtype=torch.bool)
    span = Span(Beside(0, 2, {}, None), resets)
    tokens = hard_tokens(model.config, 1, 32)
    with pytest.raises(ValueError, match=r"^model\.config\.chunk_size=None: .* set chunk_size$"):
        model.loss(tokens, tokens, span=span)


def test_whole_rows_are_one_chunk_as_long_as_the_row():
    whole, one = hard({"chunk_size": None}), hard({"chunk_size": LENGTH})
    tokens, resets = hard_tokens(whole.config, ROWS, LENGTH), hard_resets(ROWS, LENGTH)
    assert torch.equal(whole(tokens, None, resets)[0], one(tokens, None, resets)[0])


def test_a_real_average_never_has_an_imaginary_part():
    state = hard_state(hard({"ema": "real"}), POSITIONS)
    for layer in state.layers:
        assert layer.h[..., 0].abs().min() > 0
        assert not layer.h[..., 1].any()


def count(**changes):
    with torch.device("meta"):
        model = Megalodon(hard_config(**changes))
    return sum(p.numel() for p in model.parameters())


def test_a_switch_has_no_parameter_that_it_does_not_use():
    c = hard_config()
    dim, order, layers = c.model_dim, c.cema_ndim, c.num_layers
    less = {"real": layers * (dim + dim * order), "rms": (layers + 1) * dim}
    for case in ALONE:
        assert count(**case) == count() - less.get(*case.values(), 0), case
        model = hard(case)
        tokens = hard_tokens(model.config, 1, 20)
        for name, grad in gradients(model, model.loss(tokens, tokens)[0]).items():
            assert grad.any(), name


def test_a_config_from_before_the_switches_is_the_paper_s_model():
    plain = hard_config()
    before = {k: v for k, v in asdict(plain).items() if k not in SWITCHES}
    assert MegalodonConfig(**before) == plain
    assert replace(plain, **{k: v[0] for k, v in SWITCHES.items()}) == plain
