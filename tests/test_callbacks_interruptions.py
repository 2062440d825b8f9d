"""What a run does that is asked to stop, in one process and in many."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from callbacks_helpers import Standin, checkpoints, fit
from config_helpers import composed
from litmegalodon.runs.settings import check_settings
from litmegalodon.training.callbacks import Interruptions
from litmegalodon.training.callbacks.spike_guard import GoBack
from litmegalodon.utils.errors import Stopped
from runs import ENVIRONMENT, ROOT, command, last_checkpoint, losses, metrics
from test_cli_settings import make_checkpoint


class Asked(Standin):
    """Agrees with itself, as the real module does with all processes."""

    asked_to_stop, any_asked_to_stop = 0, False

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.any_asked_to_stop = self.asked_to_stop > 0


class Send(Callback):
    """Sends this process signals where a micro-batch begins, counted from 0."""

    def __init__(self, at, *numbers):
        self.at, self.numbers, self.handler = at, numbers, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
            self.handler = signal.getsignal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(folder, *numbers, **settings):
    send = Send(4, *numbers)
    settings = {"every": 100, "accumulate_grad_batches": 3, "limit_val_batches": 0} | settings
    with pytest.raises(Stopped) as stopped:
        fit(folder, 20, callbacks=[Interruptions(), send], module=Asked(), **settings)
    return stopped.value, send


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_step_is_completed_and_saved(number, tmp_path):
    stopped, send = interrupted(tmp_path, number)
    # The signal came amid the second step of three micro-batches.
    assert checkpoints(tmp_path) == ["last-step=000002.ckpt"]
    assert stopped.code == (130 if number == signal.SIGINT else 75)
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    assert str(stopped) == f"interrupted by {name}"
    assert [row["step"] for row in metrics(tmp_path)] == ["1", "2"]
    # A second Ctrl-C is the system's affair: it ends a process that hangs, too.
    if number == signal.SIGINT:
        assert send.handler == signal.SIG_DFL


def test_the_more_urgent_of_two_wishes_counts(tmp_path):
    stopped, _ = interrupted(tmp_path, signal.SIGINT, signal.SIGTERM)
    assert stopped.code == 75


def test_a_validation_is_not_waited_for(tmp_path):
    settings = {"val_check_interval": 6, "limit_val_batches": 2}
    interrupted(tmp_path, signal.SIGTERM, **settings)
    assert checkpoints(tmp_path) == ["last-step=000002.ckpt"]
    assert not any(row.get("val/bpb") for row in metrics(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("log_every", [1, 5])
def test_the_validation_it_left_before_is_made_first_where_the_run_goes_on(
    number, log_every, tmp_path
):
    settings = {"every": 100, "accumulate_grad_batches": 3, "val_check_interval": 6}
    settings |= {"limit_val_batches": 2, "log_every_n_steps": log_every}

    def module():
        # The best is the one that is left out.
        return Asked({2: 1.0, 4: 2.0, 6: 3.0})

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(whole, 7, module=module(), **settings)
    with pytest.raises(Stopped):
        callbacks = [Interruptions(), Send(4, number)]
        fit(broken, 7, callbacks=callbacks, module=module(), **settings)
    last = broken / "checkpoints/last-step=000002.ckpt"
    fit(broken, 7, callbacks=[Interruptions()], module=module(), ckpt_path=last, **settings)
    want = [row | {"tokens_per_second": ""} for row in metrics(whole)]
    assert [row | {"tokens_per_second": ""} for row in metrics(broken)] == want
    assert [row["step"] for row in want if row.get("val/bpb")] == ["2", "4", "6"]
    assert checkpoints(broken) == checkpoints(whole)
    assert checkpoints(broken, "best") == ["best-step=000002-bpb=1.0000.ckpt"]
    # Made once: what is saved later knows nothing of it.
    last = broken / "checkpoints/last-step=000007.ckpt"
    fit(broken, 8, callbacks=[Interruptions()], module=module(), ckpt_path=last, **settings)
    validated = [row["step"] for row in metrics(broken) if row.get("val/bpb")]
    assert validated == ["2", "4", "6", "8"]


def test_what_is_saved_goes_on_as_if_nothing_had_been(tmp_path):
    settings = {"every": 100, "accumulate_grad_batches": 3, "limit_val_batches": 0}
    fit(tmp_path / "whole", 5, module=Asked(), **settings)
    interrupted(tmp_path / "broken", signal.SIGTERM)
    last = tmp_path / "broken/checkpoints/last-step=000002.ckpt"
    fit(tmp_path / "broken", 5, module=Asked(), ckpt_path=last, **settings)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    class Ends(Asked):
        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            self.trainer.should_stop = self.trainer.global_step + 1 >= 2

    callbacks = [Interruptions(), Send(4, signal.SIGTERM)]
    settings = {"every": 100, "accumulate_grad_batches": 3, "val_check_interval": 300}
    fit(tmp_path, 2, callbacks=callbacks, module=Ends(), **settings)
    assert [row["step"] for row in metrics(tmp_path) if row.get("val/bpb")] == ["2"]
    assert checkpoints(tmp_path, "last") == ["last-step=000002.ckpt"]


def test_the_end_of_max_time_comes_at_a_complete_step_and_is_validated_and_saved(tmp_path):
    settings = {"every": 10**6, "accumulate_grad_batches": 3, "val_check_interval": 3 * 10**6}
    trainer = fit(
        tmp_path,
        10**6,
        callbacks=[Interruptions()],
        module=Asked(),
        max_time={"seconds": 1},
        **settings,
    )
    assert 0 < trainer.global_step < 10**6
    rows = metrics(tmp_path)
    assert rows[-1]["step"] == str(trainer.global_step)
    assert rows[-1]["val/bpb"]
    assert checkpoints(tmp_path, "last") == [f"last-step={trainer.global_step:06d}.ckpt"]


def test_the_time_before_the_guard_went_back_counts():
    timer, interruptions = Timer(duration={"hours": 2}), Interruptions()
    timer._offset, interruptions._timers = 3600.0, [timer]
    interruptions.on_exception(None, None, GoBack("there", 4, None))
    # As of a checkpoint of half an hour before.
    timer._offset = 1800.0
    interruptions.on_train_start(None, None)
    interruptions.teardown(None, None, "fit")
    assert timer.time_elapsed() == 3600.0


def test_before_training_begins_it_leaves_at_once_and_after_it_signals_are_as_before(
    tmp_path, handlers
):
    class Early(Callback):
        def on_fit_start(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        fit(tmp_path / "a", 2, callbacks=[Interruptions(), Early()], module=Asked())
    assert stopped.value.code == 75
    assert checkpoints(tmp_path / "a") == []
    for number, handler in handlers.items():
        signal.signal(number, handler)
    fit(tmp_path / "b", 2, callbacks=[Interruptions()], module=Asked())
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_a_worker_of_the_data_loader_serves_on_and_ends_at_the_second_sigterm():
    interruptions = Interruptions()
    pid = os.fork()
    if pid == 0:
        # As in a worker: the callback came with the fork and belongs to another process.
        interruptions._asked(signal.SIGUSR1, None)
        interruptions._asked(signal.SIGINT, None)
        interruptions._asked(signal.SIGTERM, None)
        os.write(2, b"lives\n")
        interruptions._asked(signal.SIGTERM, None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM


@pytest.mark.parametrize("code", [0, 1, 2, 126, True, "75"])
def test_an_exit_code_that_means_something_else_is_refused(code):
    with pytest.raises(ValueError, match=r"callbacks\.interruptions\.exit_code="):
        Interruptions(code)


SETTINGS = (
    "experiment=debug",
    "extras.print_config=false",
    "trainer.limit_val_batches=2",
    "callbacks.report=null",
    "trainer.max_steps=40",
    "model.scheduler.total_steps=40",
    "validate_every=1000",
    "checkpoint_every=1000",
    "ckpt_path=auto",
)


def start(arguments, cwd, **variables):
    with open(cwd / "log", "ab") as log:
        return subprocess.Popen(
            arguments, cwd=cwd, env=ENVIRONMENT | variables, stdout=log, stderr=log
        )


def wait_for(process, folder, rows):
    deadline = time.monotonic() + 240
    while len(losses(folder)) < rows:
        assert process.poll() is None, (folder.parent / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The losses of a run of one process that nobody disturbs, by step."""
    folder = tmp_path_factory.mktemp("whole")
    process = start([*command("train", *SETTINGS), "hydra.run.dir=run"], folder)
    assert process.wait(240) == 0, (folder / "log").read_text()
    return losses(folder / "run")


def same(got, want):
    assert list(got) == list(want) == list(range(1, 41))
    for step, loss in want.items():
        assert float(got[step]) == pytest.approx(float(loss), rel=1e-4), step


@pytest.mark.slow
def test_torchrun_starts_the_processes_again_where_one_was_asked_to_leave(whole, tmp_path):
    run = tmp_path / "run"
    script = (str(ROOT / "src/train.py"), *SETTINGS, "trainer.devices=2", f"hydra.run.dir={run}")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
    # Else the second start finds the first one's addresses in the store; docs/cluster.md.
    apart = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    torchrun = (*torchrun, "--standalone", "--max-restarts=1")
    process = start([*torchrun, *script], tmp_path, **apart)
    wait_for(process, run, 10)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # Either of the two will do: all agree on a step.
    os.kill(int(children[1]), signal.SIGUSR1)
    assert process.wait(240) == 0, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    at = int(re.search(r"interrupted by .* after step (\d+); to go on: ckpt_path=", log)[1])
    assert 10 <= at < 40
    # From the start there was none to go on from, then there was one.
    assert log.count(f"last-step={at:06d}.ckpt") >= 2
    same(losses(run), whole)


FAKE_SRUN = """#!/bin/sh
# Two tasks on this machine, as SLURM starts them, and signals handed on to both.
echo "$@" >> srun.log
shift
for rank in 0 1; do
    (
        export SLURM_STEP_ID=0 SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0
        export SLURM_NTASKS=2
        exec "$@"
    ) &
    pids="$pids $!"
done
trap 'kill -USR1 $pids' USR1
most=0
for pid in $pids; do
    wait $pid
    code=$?
    while [ $code -gt 128 ] && kill -0 $pid 2>/dev/null; do wait $pid; code=$?; done
    [ $code -gt $most ] && most=$code
done
exit $most
"""
JOB = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NAME": "litmegalodon",
    "SLURM_NNODES": "1",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NODELIST": "127.0.0.1",
}


def on_slurm(folder, srun):
    """Variables of a job whose srun is a script of ours."""
    for name, text in (("srun", srun), ("scontrol", '#!/bin/sh\necho "$@" >> scontrol.log\n')):
        folder.joinpath("bin").mkdir(exist_ok=True)
        (path := folder / "bin" / name).write_text(text)
        path.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}"
    return JOB | {"PATH": path, "SLURM_SUBMIT_DIR": str(folder), "PYTHON": sys.executable}


@pytest.mark.slow
def test_a_slurm_job_that_has_to_go_saves_and_is_queued_again(whole, tmp_path):
    variables = on_slurm(tmp_path, FAKE_SRUN)
    (tmp_path / "src").symlink_to(ROOT / "src")
    run = tmp_path / "run"
    # The last one of a setting holds.
    job = ["bash", str(ROOT / "scripts/slurm.sh"), *SETTINGS, f"hydra.run.dir={run}"]
    process = start(job, tmp_path, **variables)
    wait_for(process, run, 10)
    # As --signal=B:USR1@120 does: to the script alone.
    process.send_signal(signal.SIGUSR1)
    assert process.wait(240) == 75, (tmp_path / "log").read_text()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4242\n"
    done = losses(run)
    assert 10 <= len(done) < 40
    # Where the job's next start looks for it.
    assert last_checkpoint(run).name == f"last-step={len(done):06d}.ckpt"
    for step, loss in done.items():
        assert float(loss) == pytest.approx(float(whole[step]), rel=1e-4), step


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (76, 3, True), (75, 100, False)],
)
def test_a_slurm_job_is_queued_again_by_its_exit_code(code, restarts, requeued, tmp_path):
    variables = on_slurm(tmp_path, f'#!/bin/sh\necho "$@" > srun.log\nexit {code}\n')
    job = ["bash", str(ROOT / "scripts/slurm.sh"), "experiment=7b", "seed=2"]
    process = start(job, tmp_path, **variables, SLURM_RESTART_COUNT=str(restarts))
    assert process.wait(20) == code
    assert (tmp_path / "srun.log").read_text() == (
        f"--kill-on-bad-exit=1 {sys.executable} src/train.py trainer.num_nodes=1"
        " trainer.devices=2 hydra.run.dir=logs/train/runs/slurm-4242 ckpt_path=auto"
        " experiment=7b seed=2\n"
    )
    assert (tmp_path / "scontrol.log").exists() == requeued


def test_auto_is_the_newest_of_the_run_s_own_folder_or_none(tmp_path):
    make_checkpoint(tmp_path / "train/runs/other/checkpoints/last-step=000009.ckpt")
    cfg = composed("ckpt_path=auto", folder=tmp_path)
    check_settings(cfg)
    assert cfg.ckpt_path is None
    own = make_checkpoint(tmp_path / "run/checkpoints/last-step=000005.ckpt")
    cfg = composed("ckpt_path=auto", folder=tmp_path)
    check_settings(cfg)
    assert cfg.ckpt_path == str(own)
    # It does not begin anew where all that it had is damaged.
    lost = own.rename(tmp_path / "lost")
    (broken := make_checkpoint(own) / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"ckpt_path=auto: no checkpoint .* is whole"):
        check_settings(composed("ckpt_path=auto", folder=tmp_path))
    shutil.rmtree(broken.parent)
    lost.rename(own)
    # Weights to begin with are for the first time.
    begins = ("ckpt_path=auto", f"init_from={own}")
    check_settings(cfg := composed(*begins, folder=tmp_path))
    assert (cfg.ckpt_path, cfg.init_from) == (str(own), None)
    (tmp_path / "run").rename(tmp_path / "gone")
    moved = str(own).replace("/run/", "/gone/")
    check_settings(cfg := composed("ckpt_path=auto", f"init_from={moved}", folder=tmp_path))
    assert (cfg.ckpt_path, cfg.init_from) == (None, moved)
    # An evaluation needs a checkpoint.
    with pytest.raises(ValueError, match="ckpt_path=auto: there is no such file"):
        check_settings(composed("ckpt_path=auto", folder=tmp_path, name="eval"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("trainer.max_time=soon", "trainer.max_time=soon: must be days:hours:minutes:seconds"),
        ("trainer.strategy.bf16_parameters=true", "bf16_parameters=true: .*precision=32-true"),
        ("trainer.strategy.bf16_parameters=1", "bf16_parameters=1: must be true or false"),
    ],
)
def test_settings_that_can_t_be_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_settings(composed(settings, folder=tmp_path))


def test_max_time_is_text_as_typed(tmp_path):
    check_settings(cfg := composed("trainer.max_time=00:12:00:00", folder=tmp_path))
    assert cfg.trainer.max_time == "00:12:00:00"
