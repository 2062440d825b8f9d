"""A process that is stopped, dead or stuck is named with its step, and the run ends."""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from litmegalodon.parallel import heartbeat
from litmegalodon.parallel.heartbeat import Heartbeat
from litmegalodon.training.callbacks import Watchdog
from runs import ENVIRONMENT, command, losses


class Processes:
    """Some that beat and read when they are told to, with a clock that is moved by hand."""

    def __init__(self, size, monkeypatch):
        self.now, self.given_up = 0.0, []
        monkeypatch.setattr(heartbeat.time, "monotonic", lambda: self.now)
        store = HashStore()
        self.hearts = [
            Heartbeat(store, rank, size, 10.0, 100.0, self.given_up.append) for rank in range(size)
        ]
        for heart in self.hearts:
            heart.first()
        self.beat()

    def beat(self, *silent):
        for rank, heart in enumerate(self.hearts):
            if rank not in silent:
                heart._beat()
        for rank, heart in enumerate(self.hearts):
            if rank not in silent:
                heart._read()

    def judge(self, rank):
        return self.hearts[rank]._judge(self.now, since=0.0)


@pytest.fixture
def processes(monkeypatch):
    return Processes(3, monkeypatch)


def test_a_silent_process_is_named_with_its_step(processes):
    processes.hearts[1].note("computing", 12)
    processes.beat()
    processes.now = 9.0
    processes.beat(1)
    assert processes.judge(0) == ""
    processes.now = 11.0
    processes.beat(1)
    assert processes.judge(0).startswith(
        "rank 1 has given no sign of life for 11 s; its last was in step 12, computing ("
    )
    # The others hear it of the first one.
    assert processes.judge(2) == ""


def test_all_the_others_see_the_first_one_s_silence(processes):
    processes.hearts[0].note("validating", 7)
    processes.beat()
    processes.now = 11.0
    processes.beat(0)
    for rank in (1, 2):
        assert "rank 0 has given no sign of life for 11 s; its last was in step 7, validating" in (
            processes.judge(rank)
        )


def test_a_store_that_does_not_answer_is_the_first_one_s_silence(processes):
    processes.now = 11.0
    assert processes.judge(1).startswith("rank 0 has given no sign of life for 11 s")
    # Who it is that the first one does not hear can't be told then.
    assert processes.judge(0).startswith("the store of the process group has given no answer for")


def test_one_that_lives_and_keeps_the_others_waiting_is_named(processes):
    for step in (1, 2):
        for heart in processes.hearts:
            if step == 1 or heart.rank != 2:
                heart.note("computing", step)
    for now in (0.0, 50.0, 99.0):
        processes.now = now
        processes.beat()
        assert processes.judge(0) == ""
    processes.now = 101.0
    processes.beat()
    reason = processes.judge(0)
    assert reason.startswith(
        "no process has come further for 101 s; the last to come are of rank 2"
    )
    assert reason.endswith("in step 1")


def test_one_that_has_ended_in_order_is_not_missed(processes):
    processes.hearts[1].stop(in_order=True)
    processes.now = 50.0
    processes.beat(1)
    assert processes.judge(0) == ""
    processes.hearts[0].stop(in_order=True)
    processes.hearts[2]._read()
    processes.now = 100.0
    assert processes.judge(2) == ""


def test_one_that_has_failed_is_missed(processes):
    processes.hearts[1].stop(in_order=False)
    processes.now = 50.0
    processes.beat(1)
    assert processes.judge(0).startswith("rank 1 has given no sign of life for 50 s")


def test_the_verdict_reaches_the_others(processes, monkeypatch):
    monkeypatch.setattr(heartbeat.time, "sleep", lambda _: None)
    processes.hearts[0]._publish("rank 1 is silent")
    processes.beat(1)
    assert processes.hearts[2]._verdict == "rank 1 is silent"


@pytest.mark.parametrize("seconds", [0, 1, True, "60", float("nan"), float("inf")])
def test_a_time_too_short_or_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match=r"callbacks\.watchdog\.silence_seconds="):
        Watchdog(seconds)


def test_one_that_fails_gives_signs_until_the_checkpoint_on_its_way_is_written():
    dog, beats = Watchdog(), []
    dog._heart = SimpleNamespace(stop=lambda in_order: beats.append(f"stopped {in_order}"))
    strategy = SimpleNamespace(give_up_saving=lambda: beats.append("written"))
    dog.on_exception(SimpleNamespace(strategy=strategy), None, RuntimeError())
    assert beats == ["written", "stopped False"]


@pytest.mark.slow
def test_a_stopped_process_ends_the_run_with_its_rank_and_step(tmp_path):
    """As a machine that hangs does: its connections stay, and the others wait."""
    settings = (
        "experiment=debug",
        "extras.print_config=false",
        "trainer.devices=2",
        "trainer.max_steps=100000",
        "model.scheduler.total_steps=100000",
        "validate_every=100000",
        "checkpoint_every=100000",
        "callbacks.report=null",
        "callbacks.watchdog.silence_seconds=8",
        "hydra.run.dir=run",
    )
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command("train", *settings), cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log
        )
    while len(losses(tmp_path / "run")) < 5:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    # The other one is its child; workers, were there any, would be grandchildren.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGSTOP)
    assert process.wait(120) == 76
    said = (tmp_path / "log").read_text()
    assert "error: rank 1 has given no sign of life for " in said
    assert "; its last was in step " in said
    # Nothing is left behind, stopped.
    stat, deadline = Path(f"/proc/{children[-1]}/stat"), time.monotonic() + 30
    while stat.exists() and stat.read_text().split()[2] not in "ZX":
        assert time.monotonic() < deadline
        time.sleep(0.05)
