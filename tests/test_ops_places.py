"""Where rows stand is read from the device once a model's call, and a cache must reach that far."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from golden_data import assert_equal
from hard import IMPLS, TRITON_RUNS, draws, fresh_at, hard_config, hard_model, hard_tokens
from litmegalodon.ops import KeyValueState, chunk_attention

triton = pytest.mark.skipif(not TRITON_RUNS, reason="needs Triton")


class Reads(TorchDispatchMode):
    """Notes what would make the host wait for a GPU: a tensor's values, or how many are true."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen = []
        to_list = torch.Tensor.tolist

        def noted(tensor):
            self.seen.append("tolist")
            return to_list(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", noted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@triton
@pytest.mark.parametrize("layers", (1, 3))
@pytest.mark.parametrize("continued", (True, False), ids=("with-state", "without-state"))
def test_a_call_waits_once_for_a_state_and_never_without(layers, continued, monkeypatch):
    model = hard_model(hard_config(num_layers=layers), impl="triton")
    state = fresh_at(model.config, [5, 27]) if continued else None
    tokens = hard_tokens(model.config, 2, 9)
    resets = torch.zeros(2, 9, dtype=torch.bool)
    with Reads(monkeypatch) as reads:
        nll, _, _ = model.loss(tokens, tokens, state, resets)
        nll.backward()
    assert reads.seen == ["tolist"] * continued


@pytest.mark.parametrize("impl", IMPLS)
def test_a_number_is_the_position_of_all_rows(impl):
    normal = draws(1)
    q, k, v = normal(2, 20, 1, 4), normal(2, 20, 1, 4), normal(2, 20, 1, 6)
    (want, end), (got, same) = (
        chunk_attention(q, k, v, chunk_size=8, position=p, impl=impl)
        for p in (torch.tensor([13, 13]), 13)
    )
    assert_equal(got, want)
    for ours, theirs in zip(same, end, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("position", (13, torch.tensor([8, 13])), ids=("number", "tensor"))
def test_a_cache_that_ends_before_a_rows_place_is_refused(impl, position):
    q, v = torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 6)
    kv = KeyValueState(q[:, :2], v[:, :2], torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="keys of 2 tokens where chunk_size=8 needs 5: it is of a"):
        chunk_attention(q, q, v, chunk_size=8, position=position, kv=kv, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_state_of_a_model_with_another_chunk_size_is_refused(impl):
    state = fresh_at(hard_config(chunk_size=8), [29, 5])
    model = hard_model(hard_config(chunk_size=16), impl=impl)
    with pytest.raises(ValueError, match="keys of 5 tokens where chunk_size=16 needs 13: it is of"):
        model(hard_tokens(model.config, 2, 4), state)
