"""The Triton form of chunk attention, kernels and all, through Triton's interpreter.

Shapes are tiny, and so are the tiles there: 16 or 32 tokens, 16 columns; a call has several.
"""

import pytest
import torch

import test_ops_golden as golden
from golden_data import assert_equal, assert_precise, describe
from hard import (
    ATTENTION_WITH_DROPKEY,
    OPERATORS,
    draws,
    hard_resets,
    random_qkv,
    with_gradients,
)
from litmegalodon.ops import chunk_attention

pytest.importorskip("triton", reason="needs Triton")
from litmegalodon.ops.chunk_attention import passes
from litmegalodon.ops.chunk_attention.kernels import APART
from litmegalodon.ops.launch import INTERPRETED

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs where Triton interprets")

ALIGNED, STAGGERED, LONG_CHUNK = (o for o in OPERATORS if o.name.startswith("attention"))


def cases(names, quick, slow):
    """Parametrisation by `names` with an id made of the values; `slow` ones are marked so."""

    def case(values, marks=()):
        labels = [getattr(v, "name", str(v)).removeprefix("attention-") for v in values]
        return pytest.param(*values, marks=marks, id="-".join(labels))

    marked = [case(values, pytest.mark.slow) for values in slow]
    return pytest.mark.parametrize(names, [*map(case, quick), *marked])


def resets_of(batch, length, documents):
    return hard_resets(batch, length) if documents == "resets" else None


def results(operator, given, resets, impl, **kwargs):
    return with_gradients(lambda t: operator.call(t, resets, impl), given, **kwargs)


def assert_same(got, want, tolerance=1e-10):
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.is_floating_point():
            assert_equal(got[name], value, tolerance, name)
        else:
            assert torch.equal(got[name], value), name


@interpreted
@pytest.mark.parametrize("case", describe("op_chunk_attention")["cases"], ids=lambda c: c["name"])
def test_it_equals_the_golden_vectors(case):
    golden.test_chunk_attention(case, "triton")


@interpreted
@cases(
    "operator, length, documents",
    ((ALIGNED, 17, "resets"), (LONG_CHUNK, 40, "whole")),
    ((ALIGNED, 2, "resets"), (STAGGERED, 16, "resets"), (LONG_CHUNK, 150, "resets")),
)
def test_it_equals_the_reference_in_outputs_states_and_gradients(operator, length, documents):
    given, resets = operator.inputs(3, length, length), resets_of(3, length, documents)
    want, got = (results(operator, given, resets, impl) for impl in ("reference", "triton"))
    assert_same(got, want)


@interpreted
@pytest.mark.parametrize(
    "heads, z, e, chunk, position",
    (
        (1, 16, 16, 32, 0),
        (3, 20, 24, 23, 0),
        (1, 2, 1, 7, 3),
        (2, 32, 17, 100, 90),
        (1, 6, 33, 1, 5),
    ),
)
def test_any_head_sizes_chunk_and_position(heads, z, e, chunk, position):
    leaves = [u.requires_grad_() for u in random_qkv(2, 26, heads, z, e)]
    resets = torch.zeros(2, 26, dtype=torch.bool)
    resets[1, [9, 10, 22, 23, 25]] = True
    outputs = []
    for impl in ("torch", "triton"):
        out, end = chunk_attention(
            *leaves,
            chunk_size=chunk,
            position=position,
            resets=resets,
            dropkey=0.2,
            seed=5,
            impl=impl,
        )
        loss = sum((u * draws(2)(*u.shape)).sum() for u in (out, end.k, end.v))
        grads = torch.autograd.grad(loss, leaves)
        outputs.append(dict(enumerate((out.detach(), *end, *grads))))
    assert_same(outputs[1], outputs[0])


@interpreted
def test_strided_inputs_and_one_cotangent_of_two():
    q, k, v = (u.transpose(1, 2).contiguous().transpose(1, 2) for u in random_qkv(2, 20, 2, 4, 6))
    assert not q.is_contiguous()
    for choose in (lambda out, end: out, lambda out, end: end.k):
        grads = []
        for impl in ("torch", "triton"):
            leaves = [u.detach().requires_grad_() for u in (q, k, v)]
            out, end = chunk_attention(*leaves, chunk_size=16, impl=impl)
            loss = choose(out, end).square().sum()
            grads.append(torch.autograd.grad(loss, leaves, materialize_grads=True))
        for got, want in zip(grads[1], grads[0], strict=True):
            assert_equal(got, want)


@interpreted
# Bytes for a few chunks at a time, for one chunk of a row, for all.
@cases(
    "scratch, documents",
    ((60_000, "resets"), (1, "whole")),
    ((2**29, "resets"), (1, "resets"), (60_000, "whole")),
)
def test_nothing_is_read_before_it_is_written(scratch, documents, monkeypatch):
    operator = ATTENTION_WITH_DROPKEY[2]
    given, resets = operator.inputs(3, 40, 3), resets_of(3, 40, documents)
    want = results(operator, given, resets, "reference")
    monkeypatch.setattr(passes, "SCRATCH", scratch)
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)

        def poisoned(*args, make=make, **kwargs):
            new = make(*args, **kwargs)
            return new.fill_(torch.nan) if new.is_floating_point() else new

        monkeypatch.setattr(owner, name, poisoned)
    assert_same(results(operator, given, resets, "triton"), want)


@interpreted
@cases(
    "operator, documents",
    ((STAGGERED, "resets"),),
    ((STAGGERED, "whole"), (ALIGNED, "whole"), (LONG_CHUNK, "resets")),
)
def test_a_cache_read_apart_as_for_amd_gives_the_same(operator, documents, monkeypatch):
    given, resets = operator.inputs(3, 40, 9), resets_of(3, 40, documents)
    want = results(operator, given, resets, "triton")
    monkeypatch.setattr(passes, "cache_access", lambda device: APART.value)
    got = results(operator, given, resets, "triton")
    for name, value in want.items():
        assert torch.equal(got[name], value), name


DISTURBANCES = {"nan": torch.nan, "1e30": 1e30, "inf": torch.inf}


def clean_results(operator, given, resets, clean):
    """Outputs, and gradients of an objective of the clean tokens alone."""
    leaves = {k: given[k].detach().requires_grad_() for k in operator.along_time}
    out = operator.call(given | leaves, resets, "triton")
    cotangent = draws(6)(*out["y"].shape).to(out["y"]) * clean[..., None, None]
    grads = torch.autograd.grad(out["y"], list(leaves.values()), cotangent)
    return out, dict(zip(leaves, grads, strict=True))


@interpreted
# Every other document of a row, then the ones between: each has a disturbed one on both sides.
@cases(
    "operator, kind, odd",
    ((STAGGERED, "nan", 0), (STAGGERED, "1e30", 1)),
    (
        (STAGGERED, "inf", 0),
        (LONG_CHUNK, "nan", 1),
        (LONG_CHUNK, "1e30", 0),
        (LONG_CHUNK, "inf", 1),
    ),
)
def test_documents_and_rows_change_no_bit_of_another(operator, kind, odd):
    length = 43
    given = operator.rounded(operator.inputs(3, length, 14), torch.float32)
    resets = hard_resets(3, length)
    number = resets.long().cumsum(1)
    where = number % 2 == odd
    where[2] = odd == 1
    bad = dict(given)
    for name in operator.along_time:
        bad[name] = torch.where(where[..., None, None], DISTURBANCES[kind], given[name])
    if odd == 0:
        # Document 0 of row 0 has no token here: it is the incoming cache.
        for name in ("state.k", "state.v"):
            bad[name] = given[name].clone()
            bad[name][0] = DISTURBANCES[kind]
    want, want_grad = clean_results(operator, given, resets, ~where)
    got, got_grad = clean_results(operator, bad, resets, ~where)
    assert torch.equal(got["y"][~where], want["y"][~where])
    for name in operator.along_time:
        assert want_grad[name][~where].isfinite().all()
        assert torch.equal(got_grad[name][~where], want_grad[name][~where]), f"gradient of {name}"
    for name, value in want.items():
        if name.startswith("state."):
            assert torch.equal(got[name][~where[:, -1]], value[~where[:, -1]]), name


@interpreted
@cases(
    "operator, cuts, documents",
    ((STAGGERED, (1, 11, 12, 32), "resets"), (LONG_CHUNK, (16, 33), "whole")),
    (
        (ALIGNED, (1, 11, 12, 32), "whole"),
        (ALIGNED, (16, 33), "resets"),
        (STAGGERED, (16, 33), "whole"),
        (LONG_CHUNK, (1, 11, 12, 32), "resets"),
    ),
)
def test_any_split_into_calls_equals_one_call(operator, cuts, documents):
    given, resets = operator.inputs(3, 40, 12), resets_of(3, 40, documents)
    whole = results(operator, given, resets, "triton")
    split = with_gradients(lambda t: operator.in_calls(t, resets, list(cuts), "triton"), given)
    assert_same(split, whole)


@interpreted
@pytest.mark.slow
def test_one_token_a_call_equals_one_call():
    operator = ATTENTION_WITH_DROPKEY[2]
    given, resets = operator.inputs(3, 20, 13), hard_resets(3, 20)
    whole = results(operator, given, resets, "triton")
    cuts = list(range(1, 20))
    split = with_gradients(lambda t: operator.in_calls(t, resets, list(cuts), "triton"), given)
    assert_same(split, whole)


@interpreted
@cases(
    "operator, documents",
    ((ATTENTION_WITH_DROPKEY[2], "resets"),),
    ((ATTENTION_WITH_DROPKEY[1], "whole"), (ATTENTION_WITH_DROPKEY[2], "whole")),
)
def test_dropkey_hides_the_pairs_that_the_reference_hides(operator, documents):
    given, resets = operator.inputs(3, 40, 21), resets_of(3, 40, documents)
    want, got = (results(operator, given, resets, impl) for impl in ("reference", "triton"))
    assert_same(got, want)


@interpreted
@cases(
    "operator, dtype, documents",
    ((ALIGNED, torch.bfloat16, "whole"), (LONG_CHUNK, torch.float32, "resets")),
    (
        (ALIGNED, torch.float32, "whole"),
        (LONG_CHUNK, torch.bfloat16, "whole"),
        (LONG_CHUNK, torch.bfloat16, "resets"),
    ),
)
def test_outputs_states_and_gradients_pass_the_precision_gate(operator, dtype, documents):
    given = operator.rounded(operator.inputs(3, 50, 5), dtype)
    exact_given = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    resets = resets_of(3, 50, documents)
    exact = results(operator, exact_given, resets, "reference", cotangents=dtype)
    plain, got = (
        results(operator, given, resets, impl, cotangents=dtype) for impl in ("reference", "triton")
    )
    for name, value in exact.items():
        if value.is_floating_point():
            assert got[name].dtype == plain[name].dtype, name
            assert_precise(got[name], plain[name], value, name)
