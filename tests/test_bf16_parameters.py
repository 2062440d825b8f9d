"""Matrices that are gathered in bfloat16 have the gradients of bf16-mixed, in float32."""

import pytest
import torch

from hard import hard_config
from litmegalodon.models import Megalodon
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.parallel.parallelize import build_mesh, parallelize

pytestmark = pytest.mark.usefixtures("one_process_group")
# Backward passes sum over tiles of tokens in float32: a row of several of them.
ROWS, LENGTH = 4, 512


def gradients(bf16_parameters):
    config = hard_config()
    with torch.device("meta"):
        model = Megalodon(config)
    parallelize(model, build_mesh("cpu", Degrees(1, 1, 1)), bf16_parameters=bf16_parameters)
    model.to_empty(device="cpu")
    model.initialise(1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (ROWS, LENGTH), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        nll = model.loss(tokens, tokens)[0]
    nll.backward()
    return {name: p.grad.to_local() for name, p in model.named_parameters()}


def test_gradients_are_those_of_bf16_mixed_bit_for_bit():
    got, want = gradients(True), gradients(False)
    for name, grad in want.items():
        assert got[name].dtype == torch.float32, name
        assert torch.equal(got[name], grad), name
