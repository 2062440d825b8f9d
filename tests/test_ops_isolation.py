"""Whatever a document holds, NaN and 1e30 too, no bit of another's outputs or gradients changes."""

import pytest
import torch
from torch import is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hard import FORMS, OPERATORS, hard_resets

operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)
DISTURBANCES = {"random": None, "nan": torch.nan, "1e30": 1e30}
disturbances = pytest.mark.parametrize("kind", DISTURBANCES)
STATES = ("state.h", "state.mean", "state.var", "state.k", "state.v")
LENGTH = 150


def document_numbers(resets):
    """int64 [B, L]: 0 for the incoming document of a row, then 1, 2, ..."""
    return resets.long().cumsum(1)


def disturbed(given, names, where, kind):
    """The inputs with other values where bool [B, L] is True."""
    out = dict(given)
    for name in names:
        value = given[name]
        other = torch.randn(value.shape, generator=torch.Generator().manual_seed(5)).to(value)
        if DISTURBANCES[kind] is not None:
            other = torch.full_like(value, DISTURBANCES[kind])
        mask = where.view(*where.shape, *[1] * (value.dim() - 2))
        out[name] = torch.where(mask, other, value)
    return out


def run(operator, given, resets, clean, impl="torch"):
    """Outputs, and gradients of an objective of the clean tokens alone."""
    leaves = {k: given[k].detach().requires_grad_() for k in operator.along_time}
    out = operator.call(given | leaves, resets, impl)
    cotangent = torch.randn(out["y"].shape, generator=torch.Generator().manual_seed(6)).to(out["y"])
    cotangent = cotangent * clean.view(*clean.shape, *[1] * (cotangent.dim() - 2))
    grads = torch.autograd.grad(out["y"], list(leaves.values()), cotangent)
    return out, dict(zip(leaves, grads, strict=True))


@operators
@disturbances
@pytest.mark.parametrize(
    "row, number", ((0, 0), (0, 2), (0, 8), (0, 10), (0, 12), (1, 1), (1, 2), (2, 0))
)
def test_a_document_changes_no_bit_of_another(operator, kind, row, number):
    given = operator.rounded(operator.inputs(3, LENGTH, 14), torch.float32)
    resets = hard_resets(3, LENGTH)
    where = document_numbers(resets) == number
    where[torch.arange(3) != row] = False
    if number == 0 and resets[row, 0]:
        # The incoming document of this row has no token here: disturb its state instead.
        bad = dict(given)
        for name in STATES:
            if name in given:
                bad[name] = given[name].clone()
                bad[name][row] = DISTURBANCES[kind] or 5.0
    else:
        assert where.any()
        bad = disturbed(given, operator.along_time, where, kind)
    want, want_grad = run(operator, given, resets, ~where)
    got, got_grad = run(operator, bad, resets, ~where)
    assert torch.equal(got["y"][~where], want["y"][~where])
    for name in operator.along_time:
        assert torch.equal(got_grad[name][~where], want_grad[name][~where]), f"gradient of {name}"
    for name, value in want.items():
        # The last document's memory, unless that is the disturbed one.
        rows = ~where[:, -1]
        if name.startswith("state."):
            assert torch.equal(got[name][rows], value[rows]), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("operator, impl", [form for form in FORMS if form[1] == "triton"], ids=str)
@pytest.mark.parametrize(
    "kind, parity",
    [
        pytest.param(kind, parity, marks=() if (kind, parity) == ("nan", 1) else pytest.mark.slow)
        for kind in DISTURBANCES
        for parity in (0, 1)
    ],
)
def test_every_second_document_changes_no_bit_of_the_others(operator, impl, kind, parity):
    # The interpreter is slow: half of all documents at once.
    length = 75
    given = operator.rounded(operator.inputs(3, length, 14), torch.float32)
    resets = hard_resets(3, length)
    resets[0, 0] = False
    numbers = document_numbers(resets)
    numbers[1] += 1
    where = numbers % 2 == parity
    bad = disturbed(given, operator.along_time, where, kind)
    for name in STATES:
        if name in given:
            bad[name] = given[name].clone()
            bad[name][where[:, 0]] = DISTURBANCES[kind] or 5.0
    want, want_grad = run(operator, given, resets, ~where, impl)
    got, got_grad = run(operator, bad, resets, ~where, impl)
    assert torch.equal(got["y"][~where], want["y"][~where])
    for name in operator.along_time:
        assert torch.equal(got_grad[name][~where], want_grad[name][~where]), f"gradient of {name}"
    for name, value in want.items():
        rows = ~where[:, -1]
        if name.startswith("state."):
            assert torch.equal(got[name][rows], value[rows]), name


@operators
@disturbances
def test_a_row_changes_no_bit_of_another_row(operator, kind):
    given = operator.rounded(operator.inputs(3, LENGTH, 15), torch.float32)
    where = torch.zeros(3, LENGTH, dtype=torch.bool)
    where[1, 40:] = True
    bad = disturbed(given, operator.along_time, where, kind)
    rows = torch.tensor([0, 2])
    clean = torch.ones_like(where)
    clean[1] = False
    want, want_grad = run(operator, given, None, clean)
    got, got_grad = run(operator, bad, None, clean)
    for name, value in want.items():
        assert torch.equal(got[name][rows], value[rows]), name
    for name in operator.along_time:
        assert torch.equal(got_grad[name][rows], want_grad[name][rows]), f"gradient of {name}"


class Largest(TorchDispatchMode):
    """The most elements that a tensor has which is made meanwhile."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(made) if is_tensor(t)]
        self.elements = max([self.elements, *sizes])
        return made


@operators
@pytest.mark.parametrize("every", (1, 3, 20))
def test_short_documents_take_memory_in_proportion_to_their_tokens(operator, every):
    length = 512
    given = operator.inputs(1, length, 16)
    resets = torch.zeros(1, length, dtype=torch.bool)
    resets[:, ::every] = True
    with Largest() as largest:
        run(operator, given, resets, torch.ones_like(resets))
    assert largest.elements <= 10 * max(given[name].numel() for name in operator.along_time)
