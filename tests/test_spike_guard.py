"""Steps that are not finite change nothing, and a run that meets many goes back and round them."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from callbacks_helpers import Killed
from guard_helpers import ROWS, Poison, rows, trained, weights
from litmegalodon.checkpoints.manifest import MANIFEST, damage
from litmegalodon.parallel import ChunkParallelStrategy, checkpoint_writing
from litmegalodon.training.callbacks import SpikeGuard
from litmegalodon.training.callbacks.spike_guard import Spikes
from litmegalodon.utils.errors import Stopped
from runs import ENVIRONMENT, ROOT, losses, metrics


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run without the guard, in which nothing happens."""
    folder = tmp_path_factory.mktemp("sound")
    return trained(folder, "trainer.max_steps=8", "callbacks.spike_guard=null")


def test_a_run_without_accidents_is_the_same_bit_for_bit_with_the_guard(sound, tmp_path):
    guarded = trained(tmp_path, "trainer.max_steps=8")
    assert rows(guarded) == rows(sound)
    ours, theirs = weights(guarded), weights(sound)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (guarded / "bad_batches").exists()


@pytest.mark.parametrize(
    ("kind", "precision"), [("loss", "32-true"), ("gradient", "32-true"), ("loss", "bf16-mixed")]
)
def test_a_bad_step_is_skipped_counted_and_written_down(kind, precision, monkeypatch, tmp_path):
    Poison(monkeypatch, kind, {1, 3})
    run = trained(
        tmp_path,
        f"trainer.precision={precision}",
        "trainer.max_steps=4",
        "data.batch_size=4",
    )
    found = metrics(run)
    assert [row["train/skipped_steps"] for row in found] == ["1.0", "1.0", "2.0", "2.0"]
    bad = "train/loss" if kind == "loss" else "train/grad_norm"
    assert [math.isnan(float(row[bad])) for row in found] == [True, False, True, False]
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    names = sorted(path.name for path in (run / "bad_batches").iterdir())
    assert names == ["step=000001-rank=0.json", "step=000003-rank=0.json"]
    dump = json.loads((run / "bad_batches" / names[1]).read_text())
    (batch,) = dump["micro_batches"]
    assert (dump["step"], batch["cursor"], len(batch["rows"])) == (3, 3 * ROWS, ROWS)
    row = batch["rows"][0]
    assert bytes(t for t in row["tokens"] if t < 256).decode(errors="replace") == row["text"]


def test_a_skipped_step_leaves_weights_and_moments_as_they_were(monkeypatch, tmp_path):
    settings = ("model.scheduler.kind=constant", "model.scheduler.warmup_steps=0")
    Poison(monkeypatch, "gradient", {3})
    run = trained(tmp_path / "a", *settings, "trainer.max_steps=3")
    two = trained(tmp_path / "b", *settings, "trainer.max_steps=2")
    ours, theirs = weights(run), weights(two)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_bad_micro_batch_spoils_its_step_alone(monkeypatch, tmp_path):
    Poison(monkeypatch, "loss", {3})
    run = trained(tmp_path, "trainer.max_steps=3", "trainer.accumulate_grad_batches=2")
    assert [math.isnan(loss) for loss in map(float, losses(run).values())] == [False, True, False]
    (dump,) = (run / "bad_batches").iterdir()
    found = json.loads(dump.read_text())["micro_batches"]
    assert [batch["cursor"] for batch in found] == [3 * ROWS, 4 * ROWS]


def test_lanes_do_not_keep_a_memory_that_is_not_finite(monkeypatch, tmp_path):
    Poison(monkeypatch, "memory", {2})
    run = trained(tmp_path, "trainer.max_steps=4", "data.cutting=lanes", "checkpoint_every=1")
    assert [math.isnan(loss) for loss in map(float, losses(run).values())] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("cutting", ["packed", pytest.param("lanes", marks=pytest.mark.slow)])
def test_after_several_in_a_row_the_run_goes_back_and_reads_on_behind_them(
    cutting, monkeypatch, tmp_path
):
    settings = (f"data.cutting={cutting}", "callbacks.spike_guard.patience=3")
    poison = Poison(monkeypatch, "memory" if cutting == "lanes" else "loss", {7, 8, 9})
    # A checkpoint would be due amid the bad steps, at 8.
    run = trained(tmp_path / "whole", *settings, "trainer.max_steps=12")
    # Steps 1 to 9, then from the checkpoint of step 4 steps 5 to 12 on the batches after 9.
    assert poison.seen == [*range(1, 10), *range(10, 18)]
    assert list(losses(run)) == list(range(1, 13))
    assert all(map(math.isfinite, map(float, losses(run).values())))
    assert [row["train/skipped_steps"] for row in metrics(run)[4:]] == ["3.0"] * 8
    # Killed after its return, before the next checkpoint, and resumed: the same way again.
    poison.dies_at = 12
    with pytest.raises(Killed):
        trained(tmp_path / "broken", *settings, "trainer.max_steps=12")
    poison.dies_at = 0
    broken = trained(tmp_path / "broken", *settings, "trainer.max_steps=12", "ckpt_path=last")
    assert rows(broken) == rows(run)
    ours, theirs = weights(broken), weights(run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_goes_back_behind_a_checkpoint_that_failed_and_one_it_did_not_go_on_from(
    monkeypatch, tmp_path
):
    write, failed = checkpoint_writing.write_tensors, []

    def fails(state, partial, *args):
        if "000008" in partial.name and not failed:
            failed.append(partial)
            raise OSError("the disk is full")
        return write(state, partial, *args)

    poison = Poison(monkeypatch, "loss", {9, 10})
    settings = ("callbacks.spike_guard.patience=2", "trainer.max_steps=12")
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_writing, "write_tensors", fails)
        run = trained(tmp_path, *settings)
    assert poison.seen == [*range(1, 11), *range(11, 19)]
    # The same folder, from an earlier step, by name: not forward to step 12 of the time before.
    older = run / "checkpoints" / "last-step=000008.ckpt"
    assert failed
    poison.seen.clear()
    poison.batches.update({15, 16})
    trained(tmp_path, *settings, f"ckpt_path={older}")
    assert poison.seen == [15, 16, *range(17, 21)]


def test_a_run_goes_back_behind_a_damaged_checkpoint(monkeypatch, tmp_path):
    load = ChunkParallelStrategy.load_checkpoint

    def damaged(strategy, path):
        meta = Path(path) / "meta.pt"
        if "000008" in str(path):
            meta.write_bytes(meta.read_bytes()[:-1] + b"?")
        return load(strategy, path)

    # Lightning looks at what the method takes.
    monkeypatch.setattr(
        ChunkParallelStrategy,
        "load_checkpoint",
        lambda strategy, checkpoint_path, weights_only=None: damaged(strategy, checkpoint_path),
    )
    poison = Poison(monkeypatch, "loss", {9, 10})
    run = trained(tmp_path, "callbacks.spike_guard.patience=2", "trainer.max_steps=12")
    assert poison.seen == [*range(1, 11), *range(11, 19)]
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["last-step=000008.ckpt", "last-step=000012.ckpt"]
    assert all(damage(run / "checkpoints" / name) is None for name in kept)


def test_a_signal_while_it_goes_back_is_answered_at_the_next_step(monkeypatch, tmp_path):
    load = ChunkParallelStrategy.load_checkpoint

    def asked(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*args, **kwargs)

    monkeypatch.setattr(ChunkParallelStrategy, "load_checkpoint", asked)
    Poison(monkeypatch, "loss", {5, 6})
    with pytest.raises(Stopped, match=r"after step 5; .*last-step=000005\.ckpt") as stopped:
        trained(tmp_path, "callbacks.spike_guard.patience=2")
    assert stopped.value.code == 75


def test_a_run_asked_to_stop_amid_skipped_steps_goes_the_same_way_when_it_goes_on(
    monkeypatch, tmp_path
):
    settings = ("callbacks.spike_guard.patience=3", "trainer.max_steps=10")
    poison = Poison(monkeypatch, "loss", {5, 6, 7})
    run = trained(tmp_path / "whole", *settings)
    poison.asked_at = 6
    with pytest.raises(Stopped, match=r"after step 6; .*last-step=000004\.ckpt"):
        trained(tmp_path / "broken", *settings)
    poison.asked_at = 0
    broken = trained(tmp_path / "broken", *settings, "ckpt_path=auto")
    assert losses(broken) == losses(run)


def test_a_run_without_a_checkpoint_ends_with_advice(monkeypatch, tmp_path):
    Poison(monkeypatch, "loss", {1, 2})
    with pytest.raises(ValueError, match=r"2 steps in a row, up to step 2, and there is no check"):
        trained(tmp_path, "callbacks.spike_guard.patience=2")


def test_a_run_that_never_recovers_ends_with_the_command_to_go_on(monkeypatch, tmp_path):
    Poison(monkeypatch, "loss", set(range(6, 99)))
    settings = ("callbacks.spike_guard.patience=2", "callbacks.spike_guard.max_returns=1")
    with pytest.raises(ValueError, match=r"after 1 returns .* ckpt_path=.*last-step=000004\.ckpt$"):
        trained(tmp_path, *settings)


def test_a_loss_that_jumps_is_a_spike_and_one_that_wavers_is_not():
    spikes = Spikes(score=6.0, window=50)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    falling = [math.exp(1.5 - 0.005 * i + 0.05 * x) for i, x in enumerate(noise)]
    assert [spikes.add(loss) for loss in falling] == [None] * 200
    assert spikes.add(3 * falling[-1]) > 6.0
    assert spikes.add(falling[-1]) is None


@pytest.mark.parametrize("setting", ["patience=0", "max_returns=-1", "window=5", "spike_score=no"])
def test_a_wrong_argument_is_named(setting, tmp_path):
    name, _, value = setting.partition("=")
    with pytest.raises(ValueError, match=f"^callbacks.spike_guard.{setting}: must be"):
        SpikeGuard(tmp_path, **{name: int(value) if value.lstrip("-").isdigit() else value})


@pytest.mark.slow
def test_processes_decide_alike_where_only_one_meets_a_bad_batch(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/guard_processes.py"), str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    found = losses(run)
    assert list(found) == list(range(1, 13))
    assert [step for step, loss in found.items() if math.isnan(float(loss))] == [3]
    assert metrics(run)[-1]["train/skipped_steps"] == "4.0"
    # Only the process whose loss it was writes its rows down.
    names = sorted(path.name for path in (run / "bad_batches").iterdir())
    assert names == [f"step={step:06d}-rank=1.json" for step in (3, 7, 8, 9)]


def test_where_the_newest_has_lost_its_manifest_and_bytes_the_run_goes_on_from_the_one_before(
    tmp_path, caplog
):
    run = trained(tmp_path, "trainer.max_steps=6", "checkpoint_every=2")
    newest = run / "checkpoints" / "last-step=000006.ckpt"
    (newest / MANIFEST).unlink()
    (newest / "meta.pt").write_bytes((newest / "meta.pt").read_bytes()[:100])
    trained(tmp_path, "trainer.max_steps=6", "checkpoint_every=2", "ckpt_path=auto")
    said = "last-step=000006.ckpt is damaged: manifest.json is missing; training goes on from"
    assert said in caplog.text
    assert damage(newest) is None and (newest / MANIFEST).is_file()
