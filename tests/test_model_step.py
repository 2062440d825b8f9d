"""A step by one token, as writing makes it, is the model and nothing else."""

import copy
import io
from dataclasses import replace

import pytest
import torch

import litmegalodon.models.attention as attention
from golden_data import assert_equal
from hard import fresh_at, hard_config, hard_model, hard_state, hard_tokens
from test_model_split import assert_states_equal

# Within the model's two layers' chunks of 16: at their beginning, inside, at their end; the last
# row's document began five tokens ago.
PLACES = {
    "begin": [32, 32],
    "inside": [47, 47],
    "end": [31, 63],
    "staggered": [32, 47],
    "one row": [45],
}


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    """Calls of the form of its own, one a layer and token."""
    made = []

    def counted(*args):
        made.append(args)
        return step(*args)

    step = attention.attention_step
    monkeypatch.setattr(attention, "attention_step", counted)
    return made


def several(model, tokens, state):
    """Logits of single-token calls, and the state after them."""
    logits = []
    for t in range(tokens.shape[1]):
        one, state = model(tokens[:, t : t + 1], state)
        logits.append(one)
    return torch.cat(logits, dim=1), state


@pytest.mark.parametrize("positions", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_steps_equal_one_call(positions, affine, steps):
    plain = {} if affine else {"norm_affine": False, "swiglu": False, "rescale_nffn": False}
    model = hard_model(hard_config(**plain)).eval()
    start, tokens = hard_state(model, positions), hard_tokens(model.config, len(positions), 20)
    want, want_state = model(tokens, start)
    assert not steps
    with torch.no_grad():
        got, state = several(model, tokens, start)
    assert len(steps) == 20 * model.config.num_layers
    assert_equal(got, want.detach())
    assert_states_equal(state, want_state.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_are_as_precise_as_calls(dtype):
    exact, model = hard_model(hard_config()).eval(), hard_model(hard_config(), dtype).eval()
    tokens = hard_tokens(model.config, 2, 40)
    with torch.no_grad():
        want = exact(tokens)[0]
        _, start = model(tokens[:, :1])
        got = torch.cat([model(tokens[:, :1])[0], several(model, tokens[:, 1:], start)[0]], dim=1)
    # The same calls, with a backward pass in view: not steps.
    general = [model(tokens[:, :1])]
    for t in range(1, 40):
        general.append(model(tokens[:, t : t + 1], general[-1][1]))
    others = torch.cat([logits for logits, _ in general], dim=1)
    error, other = ((u.double() - want).abs().max() for u in (got, others))
    assert error <= 2 * other + 2 * torch.finfo(dtype).eps * want.abs().max()


def test_training_and_gradients_keep_the_general_form(steps):
    model = hard_model(hard_config())
    start, token = hard_state(model, [45]), hard_tokens(model.config, 1, 1)
    model.eval()(token, start)
    with torch.no_grad():
        model.train()(token, start)
        model.eval()(token, start, torch.ones(1, 1, dtype=torch.bool))
        hard_model(model.config, impl="reference").eval()(token, start)
    assert not steps


@torch.no_grad()
def test_texts_that_go_on_from_one_state_do_not_meet():
    model = hard_model(hard_config(chunk_size=64)).eval()
    words, others = (hard_tokens(model.config, 1, 40, seed) for seed in (1, 2))
    _, book = several(model, words[:, :9], hard_state(model, [45]))
    kept = book.map(torch.clone)
    want, want_others = (model(u, kept)[0] for u in (words, others))
    # Taken in turn, a token each.
    state, other = book, book
    for t in range(40):
        logits, state = model(words[:, t : t + 1], state)
        assert_equal(logits, want[:, t : t + 1])
        logits, other = model(others[:, t : t + 1], other)
        assert_equal(logits, want_others[:, t : t + 1])
    assert_states_equal(book, kept)
    assert_equal(several(model, words, copy.deepcopy(book))[0], want)


def test_a_state_made_in_inference_mode_goes_on_outside_of_it():
    model = hard_model(hard_config()).eval()
    tokens = hard_tokens(model.config, 1, 12)
    with torch.inference_mode():
        _, state = several(model, tokens[:, :6], hard_state(model, [33]))
    with torch.no_grad():
        got, _ = several(model, tokens[:, 6:], state)
        want, _ = model(tokens, hard_state(model, [33]))
    assert_equal(got, want[:, 6:])


def _load(model, other):
    model.load_state_dict(other.state_dict())


def _optimise(model, other):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.grad = (ours - theirs).detach()
    optimizer.step()


def _write(model, other):
    # Leaves neither a new version nor a new address.
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.data.copy_(theirs.data)


def _replace(model, other):
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.data = theirs.data.clone()


CHANGES = {"load_state_dict": _load, "optimizer step": _optimise, "data": _write, "new": _replace}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_kept_of_parameters_is_never_stale(change):
    config = hard_config()
    model, other = hard_model(config).eval(), hard_model(config, seed=7).eval()
    start, token = hard_state(model, [45]), hard_tokens(config, 1, 1)
    with torch.no_grad():
        before = model(token, start)[0]
    change(model, other)
    want = model(token, start)[0].detach()
    assert (want - before).abs().max() > 0.1
    with torch.no_grad():
        assert_equal(model(token, start)[0], want)


@torch.no_grad()
def test_what_is_kept_follows_copies_dtype_and_device():
    config, token = hard_config(), hard_tokens(hard_config(), 1, 1)
    model = hard_model(config).eval()
    start = hard_state(model, [45])
    want = model(token, start)[0]
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for name, parameter in model.named_parameters():
        if ".cema." in name:
            parameter.add_(1)
    assert (model(token, start)[0] - want).abs().max() > 0.1
    assert_equal(copied(token, start)[0], want)
    assert_equal(loaded(token, start)[0], want)
    copied.float()
    narrow = start.map(lambda u: u.float() if u.is_floating_point() else u)
    assert_equal(copied(token, narrow)[0].double(), want, 1e-4)
    # To another device and back, where other weights are loaded.
    copied.to("meta").to_empty(device="cpu").double().load_state_dict(loaded.state_dict())
    assert_equal(copied(token, start)[0], want)


@torch.no_grad()
def test_memory_at_a_million_tokens_is_that_at_a_thousand():
    model = hard_model(hard_config(), torch.float32).eval()
    chunk = model.config.chunk_size
    tokens = hard_tokens(model.config, 1, chunk)

    def sizes(position: int) -> list[int]:
        """Bytes of the state, buffers behind it included, at every place of the chunk."""
        state = fresh_at(model.config, [position // chunk * chunk], torch.float32)
        read = torch.tensor([position])
        layers = tuple(u._replace(norm=u.norm._replace(count=read)) for u in state.layers)
        state = replace(state, layers=layers, norm=state.norm._replace(count=read))
        found = []
        for t in range(chunk):
            _, state = model(tokens[:, t : t + 1], state)
            found.append(sum(u.untyped_storage().nbytes() for u in state.tensors().values()))
        assert int(state.position) == (position // chunk + 1) * chunk
        return found

    assert sizes(1_000) == sizes(1_000_000)
