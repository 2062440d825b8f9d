"""`metrics.csv`: nothing is lost, repeated or rounded, wherever a run is killed."""

import csv
import errno
import math
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from callbacks_helpers import Killed, Standin, fit
from litmegalodon.training.csv_logger import MetricsCSVLogger, MetricsFile, read_metrics

numbers = st.floats(allow_nan=False, width=64)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@st.composite
def runs(draw):
    """A run as the calls it makes: (step, metrics), in order; steps without any are not logged."""
    calls = []
    for step in range(1, draw(st.integers(1, 12)) + 1):
        if draw(st.booleans()):
            calls.append((step, {"tokens": 64.0 * step, "train/loss": draw(numbers)}))
        if draw(st.booleans()):
            calls.append((step, {"val/loss": draw(numbers), "val/bpb": draw(numbers)}))
    return calls


@given(runs())
@settings(deadline=None, max_examples=60)
def test_every_metric_of_every_step_is_read_back_bit_for_bit(calls):
    with tempfile.TemporaryDirectory() as folder:
        file = MetricsFile(Path(folder) / "metrics.csv")
        file.begin(0)
        for call in calls:
            file.record(*call)
        expected = {}
        for step, metrics in calls:
            expected.setdefault(step, {"step": step}).update(metrics)
        # Before the file is closed: nothing waits in a buffer.
        assert read_metrics(file.path) == list(expected.values())


@given(runs(), st.data())
@settings(deadline=None, max_examples=60)
def test_a_file_of_a_run_killed_and_resumed_again_and_again_is_that_of_an_unbroken_run(calls, data):
    with tempfile.TemporaryDirectory() as folder:
        unbroken, broken = (Path(folder) / name / "metrics.csv" for name in ("a", "b"))
        file = MetricsFile(unbroken)
        file.begin(0)
        for call in calls:
            file.record(*call)

        resumed = 0
        for _ in range(data.draw(st.integers(0, 3))):
            file = MetricsFile(broken)
            file.begin(resumed)
            start = sum(step <= resumed for step, _ in calls)
            killed = data.draw(st.integers(start, len(calls)))
            for call in calls[start:killed]:
                file.record(*call)
            # A checkpoint is of a step whose calls were all made; without one a run starts anew.
            complete = calls[killed][0] - 1 if killed < len(calls) else resumed
            resumed = data.draw(st.integers(min(resumed, complete), complete))
        start = sum(step <= resumed for step, _ in calls)
        file = MetricsFile(broken)
        file.begin(resumed)
        for call in calls[start:]:
            file.record(*call)
        assert broken.read_bytes() == unbroken.read_bytes()


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,tokens,train/loss\n1,64,5.5\n2,128,5.")
    file = MetricsFile(path)
    file.begin(1)
    file.record(2, {"tokens": 128.0, "train/loss": 5.25})
    assert [row["train/loss"] for row in rows(path)] == ["5.5", "5.25"]


def test_a_row_that_the_disk_takes_in_parts_is_written_whole_or_the_file_is_named(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.record(1, {"train/loss": 5.5})
    whole = file._file

    class Filling:
        """Takes three bytes at a time, and so many in all."""

        room = 4

        def __getattr__(self, name):
            return getattr(whole, name)

        def write(self, line):
            part = line[: min(3, self.room)]
            if not part:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= len(part)
            return whole.write(part)

    file._file = Filling()
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.csv'"):
        file.record(2, {"train/loss": 5.25})
    # The next start drops the part and goes on.
    again = MetricsFile(file.path)
    again.begin(1)
    again._file, whole = Filling(), again._file
    Filling.room = 100
    again.record(2, {"train/loss": 5.25})
    assert [row["train/loss"] for row in rows(file.path)] == ["5.5", "5.25"]


def test_values_that_are_no_numbers_survive(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.record(1, {"train/loss": math.nan, "train/grad_norm": math.inf})
    file.record(1, {"train/loss": math.nan, "train/grad_norm": math.inf})
    (row,) = read_metrics(file.path)
    assert math.isnan(row["train/loss"]) and row["train/grad_norm"] == math.inf


def test_token_counts_are_whole_numbers(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.record(3, {"tokens": 12288.0})
    assert file.path.read_text() == "step,tokens\n3,12288\n"


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a metrics file"):
        MetricsFile(path).begin(0)
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("accumulate", [1, 3])
def test_step_counts_completed_optimizer_steps(tmp_path, accumulate):
    trainer = fit(
        tmp_path, 4, accumulate_grad_batches=accumulate, val_check_interval=2 * accumulate
    )
    table = rows(tmp_path / "metrics.csv")
    assert trainer.global_step == 4
    assert [row["step"] for row in table] == ["1", "2", "3", "4"]
    # 2 rows of 8 tokens a micro-batch
    assert [row["tokens"] for row in table] == [str(16 * accumulate * s) for s in (1, 2, 3, 4)]
    # Validation after the second and the fourth step, in the rows of these steps.
    assert [bool(row["val/bpb"]) for row in table] == [False, True, False, True]
    assert all(row["train/loss"] and row["train/lr"] == "0.5" for row in table)


def test_a_validation_between_logged_steps_has_its_tokens(tmp_path):
    fit(tmp_path, 6, log_every_n_steps=3, val_check_interval=2)
    table = rows(tmp_path / "metrics.csv")
    assert [(row["step"], row["tokens"]) for row in table] == [
        ("2", "32"),
        ("3", "48"),
        ("4", "64"),
        ("6", "96"),
    ]


@pytest.mark.parametrize(("accumulate", "validate_every"), [(1, 3), (2, 2)])
@pytest.mark.parametrize(
    ("moment", "owner", "call"),
    [
        ("before saving", Trainer, "save_checkpoint"),
        ("after saving", Trainer, "save_checkpoint"),
        ("before validating", Standin, "validation_step"),
    ],
)
def test_a_killed_run_resumed_in_its_folder_writes_the_unbroken_file(
    tmp_path, monkeypatch, accumulate, validate_every, moment, owner, call
):
    batches = {"accumulate_grad_batches": accumulate}
    batches["val_check_interval"] = validate_every * accumulate
    fit(tmp_path / "whole", 8, **batches)

    original, step = getattr(owner, call), 6 if owner is Standin else 4

    def killing(self, *args, **kwargs):
        due = (self if owner is Trainer else self.trainer).global_step == step
        if due and moment.startswith("before"):
            raise Killed
        original(self, *args, **kwargs)
        if due:
            raise Killed

    folder = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, call, killing)
        fit(folder, 8, **batches)
    newest = max((folder / "checkpoints").glob("last-*"))
    fit(folder, 8, ckpt_path=newest, **batches)
    assert (folder / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_a_run_continued_to_more_steps_writes_the_file_of_one_that_never_stopped(tmp_path):
    fit(tmp_path / "whole", 6, val_check_interval=3)
    fit(tmp_path / "stopped", 4, val_check_interval=3)
    last = tmp_path / "stopped/checkpoints/last-step=000004.ckpt"
    fit(tmp_path / "stopped", 6, val_check_interval=3, ckpt_path=last)
    files = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "stopped")]
    assert files[0] == files[1]


def test_a_fresh_run_keeps_the_file_of_an_earlier_one(tmp_path):
    for _ in range(3):
        fit(tmp_path, 2)
    table = (tmp_path / "metrics.csv").read_text()
    assert (tmp_path / "metrics.csv.1").read_text() == table
    assert (tmp_path / "metrics.csv.2").read_text() == table


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = MetricsCSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_hyperparams({"lr": 0.1})
    assert list(tmp_path.iterdir()) == []


def test_hyper_parameters_of_all_calls_are_written(tmp_path):
    logger = MetricsCSVLogger(tmp_path)
    logger.log_hyperparams({"model": {"lr": 0.1, "betas": (0.9, 0.95)}, "folder": Path("/x")})
    logger.log_hyperparams({"parameters/total": 12})
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == {
        "model": {"lr": 0.1, "betas": [0.9, 0.95]},
        "folder": "/x",
        "parameters/total": 12,
    }
