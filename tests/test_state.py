"""A model's memory is a value: it can be kept, picked apart and put on disk to the bit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden_data import assert_equal
from hard import IMPLS, fresh_at, hard_config, hard_model, hard_state, hard_tokens
from litmegalodon.models import MegalodonState

POSITIONS = [21, 32, 47]


@pytest.fixture(scope="module", params=("fp32", "bf16", "fp64"))
def model(request):
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
    return hard_model(hard_config(), names[request.param])


@pytest.fixture(scope="module")
def state(model):
    return hard_state(model, POSITIONS)


def assert_bit_equal(got, want):
    got, want = got.tensors(), want.tensors()
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name


def test_a_saved_state_is_loaded_bit_for_bit_and_continues_bit_for_bit(model, state, tmp_path):
    state.save(tmp_path / "state.safetensors")
    loaded = MegalodonState.load(tmp_path / "state.safetensors")
    assert_bit_equal(loaded, state)
    tokens = hard_tokens(model.config, 3, 30)
    want, want_end = model(tokens, state)
    got, got_end = model(tokens, loaded)
    assert torch.equal(got, want)
    assert_bit_equal(got_end, want_end)


def test_a_fresh_state_and_one_at_a_chunk_boundary_are_saved_too(model, tmp_path):
    at_boundary = model(hard_tokens(model.config, 2, 32))[1]
    fresh = MegalodonState.fresh(model.config, 2, 5, model.embed.weight.dtype)
    for given in (at_boundary, fresh):
        given.save(tmp_path / "state.safetensors")
        assert_bit_equal(MegalodonState.load(tmp_path / "state.safetensors"), given)


def test_a_state_with_a_graph_can_be_saved(model, tmp_path):
    state = model(hard_tokens(model.config, 2, 20))[1]
    assert state.layers[0].h.requires_grad
    state.save(tmp_path / "state.safetensors")
    assert_bit_equal(MegalodonState.load(tmp_path / "state.safetensors"), state)


@pytest.mark.parametrize("kept", (0.5, 0.01, 0.0))
def test_a_truncated_file_is_refused(state, tmp_path, kept):
    path = tmp_path / "state.safetensors"
    state.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"state.*safetensors.*not a readable"):
        MegalodonState.load(path)


def test_a_file_of_something_else_is_refused(state, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"embed.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"state.*missing"):
        MegalodonState.load(path)
    state.save(path)
    named = load_file(path)
    for name in ("layers.1.k", "out.var", "position"):
        save_file({k: v for k, v in named.items() if k != name}, path)
        with pytest.raises(ValueError, match=f"{name}.*missing"):
            MegalodonState.load(path)


def test_names_and_values_make_the_state_again(state):
    assert_bit_equal(MegalodonState.from_tensors(state.tensors()), state)


def test_detach_cuts_the_graph_and_keeps_the_bits(model):
    state = model(hard_tokens(model.config, 2, 20))[1]
    assert any(v.requires_grad for v in state.tensors().values())
    cut = state.detach()
    assert not any(v.requires_grad for v in cut.tensors().values())
    assert_bit_equal(cut, state)


def test_to_keeps_the_bits(state):
    assert_bit_equal(state.to("cpu"), state)
    assert all(v.is_meta for v in state.to("meta").tensors().values())


@pytest.mark.parametrize("rows", ([0], [1], [2, 0], [1, 1, 2, 0]), ids=str)
def test_selected_rows_continue_as_they_would_have_together(model, state, rows):
    chosen = state.select(rows)
    assert chosen.batch == len(rows)
    for name, value in chosen.tensors().items():
        assert torch.equal(value, state.tensors()[name][rows]), name
    tokens = hard_tokens(model.config, 3, 30)
    together, alone = model(tokens, state)[0], model(tokens[rows], chosen)[0]
    low = 1e-10 if together.dtype == torch.float64 else 1e-5
    if model.embed.weight.dtype == torch.bfloat16:
        low = 0.05
    assert_equal(alone, together[rows], low, "logits")


def test_joined_rows_continue_as_they_would_alone(model):
    config, dtype = model.config, model.embed.weight.dtype
    # None that has read nothing, one at a chunk's end, one inside, one past a document's beginning.
    alone = [MegalodonState.fresh(config, 1, dtype=dtype)]
    alone += [hard_state(model, [position], seed) for seed, position in enumerate((32, 41, 47))]
    joined = MegalodonState.join(alone)
    assert joined.position.tolist() == [0, 32, 41, 47]
    tokens = hard_tokens(config, 4, 30)
    together, end = model(tokens, joined)
    low = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for row, state in enumerate(alone):
        want, want_end = model(tokens[row : row + 1], state)
        assert_equal(together[row : row + 1], want, low, "logits")
        own = end.row(row, config.chunk_size).tensors()
        for name, value in want_end.tensors().items():
            assert own[name].shape == value.shape, name
            assert_equal(own[name].double(), value.double(), low, name)


@pytest.mark.parametrize("impl", IMPLS)
@torch.no_grad()
def test_joined_rows_continue_alike_in_every_implementation(impl):
    model = hard_model(hard_config(num_layers=1), torch.float32, impl=impl)
    alone = [hard_state(model, [position], seed) for seed, position in enumerate((32, 41, 47))]
    tokens = hard_tokens(model.config, 3, 2)
    together, end = model(tokens, MegalodonState.join(alone))
    # Rows that stay when another leaves keep its room for keys.
    later = model(tokens[1:], end.select([1, 2]))[0]
    for row, state in enumerate(alone):
        want, want_end = model(tokens[row : row + 1], state)
        assert_equal(together[row : row + 1], want, 1e-5, "logits")
        if row > 0:
            want, _ = model(tokens[row : row + 1], want_end)
            assert_equal(later[row - 1 : row], want, 1e-5, "logits")


def test_a_row_of_joined_states_is_the_state_itself(model):
    alone = [hard_state(model, [position], seed) for seed, position in enumerate((32, 41, 47))]
    joined = MegalodonState.join(alone)
    for row, state in enumerate(alone):
        assert_bit_equal(joined.row(row, model.config.chunk_size), state)


def test_a_fresh_state_is_no_state(model):
    tokens = hard_tokens(model.config, 2, 30)
    fresh = MegalodonState.fresh(model.config, 2, dtype=model.embed.weight.dtype)
    want, want_end = model(tokens)
    got, got_end = model(tokens, fresh)
    assert torch.equal(got, want)
    assert_bit_equal(got_end, want_end)


def test_a_fresh_state_looks_like_one_that_has_read(model):
    dtype = model.embed.weight.dtype
    read = model(hard_tokens(model.config, 3, 11), fresh_at(model.config, [10, 21, 36], dtype))[1]
    fresh = fresh_at(model.config, POSITIONS, dtype)
    for name, value in read.tensors().items():
        assert fresh.tensors()[name].dtype == value.dtype, name
        assert fresh.tensors()[name].shape == value.shape, name
    assert torch.equal(read.position, fresh.position)


def test_reading_does_not_change_the_state_that_was_given(model, state):
    before = state.map(torch.clone)
    model(hard_tokens(model.config, 3, 40), state)
    assert_bit_equal(state, before)


def test_a_state_keeps_no_long_call_alive(model):
    _, state = model(hard_tokens(model.config, 1, 16 * 20 + 3))
    for name, value in state.detach().tensors().items():
        held, used = value.untyped_storage().nbytes(), value.numel() * value.element_size()
        assert held <= 2 * used + 64, f"{name} holds {held} bytes for {used}"
