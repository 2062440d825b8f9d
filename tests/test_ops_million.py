"""A million tokens in float32: states that remember 70,000 of them stay within 1e-4."""

import pytest
import torch

from golden_data import assert_equal
from hard import hard_cema_parameters
from litmegalodon.ops import cema, timestep_norm

LENGTH = 1_000_000
# A call takes a fifth of a millisecond, so a million calls are for benchmarks/drift.py; these are
# a third of a half-life of the slowest channel.
CALLS = 20_000


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, LENGTH, 6, generator=generator) + 3


def cema_of(dtype):
    # What a float32 model holds: its error against these numbers is the operator's own.
    parameters = {name: p.float().to(dtype) for name, p in hard_cema_parameters(6, 4, 0).items()}
    return lambda x, state=None: cema(x.to(dtype), **parameters, state=state)


def norm_of(dtype):
    weight, bias = torch.linspace(0.5, 1.5, 6, dtype=dtype), torch.ones(6, dtype=dtype)
    return lambda x, state=None: timestep_norm(x.to(dtype), weight, bias, 2, 1e-5, state)


operators = pytest.mark.parametrize("operator", [cema_of, norm_of], ids=["cema", "timestep_norm"])


@operators
def test_in_one_call(operator, x):
    with torch.no_grad():
        got, want = operator(torch.float32)(x)[0], operator(torch.float64)(x)[0]
    assert_equal(got, want, 1e-4)


@pytest.mark.slow
@operators
def test_in_single_token_calls(operator, x):
    state, outputs, one = None, [], operator(torch.float32)
    with torch.no_grad():
        for t in range(CALLS):
            y, state = one(x[:, t : t + 1], state)
            outputs.append(y)
        want = operator(torch.float64)(x[:, :CALLS])[0]
    assert_equal(torch.cat(outputs, dim=1), want, 1e-4)
