"""deterministic=true gives the same bits from run to run, or says what prevents it."""

import pytest
import torch
from lightning.pytorch import Callback

from guard_helpers import rows, trained, weights
from litmegalodon.runs import instantiate
from litmegalodon.utils import errors
from runs import ROOT


@pytest.fixture
def seen(monkeypatch):
    """Whether torch was asked for deterministic operators, at each step of a run."""
    found = []

    class Watch(Callback):
        def on_train_batch_end(self, *_) -> None:
            found.append(torch.are_deterministic_algorithms_enabled())

    make_list = instantiate.make_list
    monkeypatch.setattr(
        instantiate,
        "make_list",
        lambda group, name, kind: (
            make_list(group, name, kind) + ([Watch()] if name == "callbacks" else [])
        ),
    )
    yield found
    torch.use_deterministic_algorithms(False)


def test_two_runs_give_the_same_bits(seen, tmp_path):
    settings = ("deterministic=true", "trainer.max_steps=4", "model.config.dropout=0.1")
    one, other = (trained(tmp_path / name, *settings) for name in ("one", "other"))
    assert seen == [True] * 8
    assert rows(one) == rows(other)
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_operator_that_prevents_it_is_named(capsys):
    with pytest.raises(SystemExit), errors.one_line():
        raise RuntimeError(
            "cumsum_cuda_kernel does not have a deterministic implementation, but you set"
            " 'torch.use_deterministic_algorithms(True)'. You can turn off determinism"
        )
    assert capsys.readouterr().err == (
        "error: deterministic=true: cumsum_cuda_kernel gives other bits from run to run on this"
        " device; set deterministic=warn to be told of it and go on\n"
    )


def test_no_kernel_of_ours_adds_in_the_order_in_which_threads_come_or_is_chosen_by_its_speed():
    for path in ROOT.glob("src/litmegalodon/ops/**/*.py"):
        text = path.read_text()
        assert "atomic_" not in text and "autotune" not in text, path
