"""Processes are killed at any moment, amid a save too, and the run goes on as if nothing had been.

In each case the curve is that of a run that nothing has disturbed, and nothing is left behind.
"""

import random
import re
import signal
import time

import pytest

from checkpoint_processes import Run
from litmegalodon.checkpoints import is_complete, newest
from litmegalodon.checkpoints.manifest import damage
from runs import losses

pytestmark = pytest.mark.slow

STEPS = 18
SETTINGS = (
    "experiment=debug",
    "extras.print_config=false",
    "extras.ignore_warnings=true",
    f"trainer.max_steps={STEPS}",
    "model.scheduler.total_steps=40",
    "model.config.hidden_dropout=0.1",
    "trainer.limit_val_batches=1",
    "data.cutting=lanes",
    "validate_every=6",
    "checkpoint_every=3",
    "callbacks.report=null",
    "callbacks.progress=null",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The losses of a run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run = Run(2, folder, *SETTINGS)
    assert run.end() == [0, 0], run.said()
    assert len(losses(folder / "run")) == STEPS
    return losses(folder / "run")


def until(condition, run):
    deadline = time.monotonic() + 60
    while not condition():
        assert run.alive(), run.said()
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.002)


def nothing_left(folder):
    names = sorted(path.name for path in (folder / "run/checkpoints").iterdir())
    assert [name for name in names if not name.endswith(".ckpt")] == []
    for path in (folder / "run/checkpoints").iterdir():
        assert is_complete(path) and damage(path) is None


# The ranks that are killed once the run has come to a step.
KILLS = {
    "first": [((0,), 4)],
    "second, then all": [((1,), 4), ((0, 1), 10)],
    "all, all": [((0, 1), 7), ((0, 1), 13)],
}


@pytest.mark.parametrize("kills", KILLS)
def test_killed_at_random_moments_it_goes_on_on_the_curve(undisturbed, kills, tmp_path):
    moments, folder = random.Random(kills), tmp_path / "run"
    resume = ()
    for who, step in KILLS[kills]:
        run = Run(2, tmp_path, *SETTINGS, *resume, seconds=0.2)
        until(lambda step=step: max(losses(folder), default=0) >= step, run)
        # While a checkpoint is being written, at any place of that, or soon after.
        until(lambda: newest(folder) and list(folder.glob("checkpoints/*.partial")), run)
        time.sleep(moments.random() * 0.6)
        run.kill(*who)
        # Whoever is left ends by itself.
        codes = run.end()
        assert all(code == -signal.SIGKILL for rank, code in enumerate(codes) if rank in who)
        assert 0 not in codes
        resume = ("ckpt_path=last",)
    run = Run(2, tmp_path, *SETTINGS, *resume)
    assert run.end() == [0, 0], run.said()
    assert losses(folder) == undisturbed
    nothing_left(tmp_path)


def test_ctrl_c_amid_a_save_lets_it_be_written(undisturbed, tmp_path):
    folder = tmp_path / "run"
    run = Run(2, tmp_path, *SETTINGS, seconds=0.5)
    until(lambda: list(folder.glob("checkpoints/last-step=000003*.partial")), run)
    run.send(signal.SIGINT)
    assert all(run.end())
    # The step that it was in is completed and saved too, behind the one on its way.
    (step,) = set(re.findall(r"interrupted by Ctrl-C after step (\d+);", run.said()))
    assert newest(folder).name == f"last-step={int(step):06d}.ckpt"
    assert "not written" not in run.said() and "not saved" not in run.said()
    run = Run(2, tmp_path, *SETTINGS, "ckpt_path=last")
    assert run.end() == [0, 0], run.said()
    assert losses(folder) == undisturbed
    nothing_left(tmp_path)


def test_a_full_disk_of_one_process_fails_the_save_of_all_and_training_goes_on(
    undisturbed, tmp_path
):
    run = Run(2, tmp_path, *SETTINGS, full=(2, 3))
    assert run.end() == [0, 0], run.said()
    sentence = "was not saved: No space left on device (process 1); the checkpoints before it are"
    assert run.said().count(sentence) == 2
    assert losses(tmp_path / "run") == undisturbed
    nothing_left(tmp_path)
    assert newest(tmp_path / "run").name == f"last-step={STEPS:06d}.ckpt"


def test_if_the_newest_is_damaged_the_one_before_it_is_taken_with_a_word(undisturbed, tmp_path):
    run = Run(2, tmp_path, *SETTINGS, "trainer.max_steps=12")
    assert run.end() == [0, 0], run.said()
    # All of the newest step: the best one has the same tensors.
    folder = tmp_path / "run/checkpoints"
    shard = folder / "last-step=000012.ckpt" / "__1_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    refusing = Run(2, tmp_path, *SETTINGS, f"ckpt_path={shard.parent}")
    assert refusing.end() == [2, 2]
    assert f"damaged: {shard.name} is not what was written; take the one before" in refusing.said()
    run = Run(2, tmp_path, *SETTINGS, "ckpt_path=last")
    assert run.end() == [0, 0], run.said()
    assert f"{shard.parent} is damaged: {shard.name} is not what was written" in run.said()
    assert losses(tmp_path / "run") == undisturbed
    nothing_left(tmp_path)
