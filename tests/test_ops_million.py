"""A million tokens in float32: states that remember 70,000 of them stay within 1e-4."""

import pytest
import torch

from golden_data import assert_equal
from hard import hard_cema_parameters
from litmegalodon.ops import NormState, cema, timestep_norm
from litmegalodon.ops.cema.step import KeptCoefficients, cema_step
from litmegalodon.ops.timestep_norm.step import timestep_norm_step

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


def cema_steps_of(dtype):
    *four, omega = (p.float().to(dtype) for p in hard_cema_parameters(6, 4, 0).values())
    kept = KeptCoefficients()

    def step(x, state=None):
        h = torch.zeros(1, 6, 4, 2, dtype=dtype) if state is None else state
        y, h = cema_step(x[:, 0].to(dtype), kept(tuple(four), dtype), omega, h)
        return y[:, None], h

    return step


def norm_steps_of(dtype):
    weight, bias = torch.linspace(0.5, 1.5, 6, dtype=dtype), torch.ones(6, dtype=dtype)

    def step(x, state=None):
        before = NormState.fresh(1, 2) if state is None else state
        y, after = timestep_norm_step(x[:, 0].to(dtype), weight, bias, 2, 1e-5, before)
        return y[:, None], after

    return step


operators = pytest.mark.parametrize("operator", [cema_of, norm_of], ids=["cema", "timestep_norm"])


@operators
def test_in_one_call(operator, x):
    with torch.no_grad():
        got, want = operator(torch.float32)(x)[0], operator(torch.float64)(x)[0]
    assert_equal(got, want, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calls", "operator"),
    [
        (cema_of, cema_of),
        (cema_steps_of, cema_of),
        (norm_of, norm_of),
        (norm_steps_of, norm_of),
    ],
    ids=["cema", "cema steps", "timestep_norm", "timestep_norm steps"],
)
def test_in_single_token_calls(calls, operator, x):
    state, outputs, one = None, [], calls(torch.float32)
    with torch.no_grad():
        for t in range(CALLS):
            y, state = one(x[:, t : t + 1], state)
            outputs.append(y)
        want = operator(torch.float64)(x[:, :CALLS])[0]
    assert_equal(torch.cat(outputs, dim=1), want, 1e-4)
