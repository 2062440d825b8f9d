"""Whole training runs, by the command line: what a step is, and where a run is measured."""

import socket

import pytest

from guard_helpers import trained
from runs import losses, metrics, run

pytestmark = pytest.mark.slow

SETTINGS = (
    "experiment=debug",
    "extras.print_config=false",
    "trainer.limit_val_batches=2",
    "callbacks.report=null",
    "callbacks.last_checkpoint=null",
    "callbacks.best_checkpoint=null",
)


def train(folder, *settings):
    run("train", *SETTINGS, *settings, f"hydra.run.dir={folder}", cwd=folder.parent)
    return metrics(folder)


def test_micro_batches_make_the_step_of_one_large_batch(tmp_path):
    whole = train(tmp_path / "whole", "trainer.max_steps=6", "data.batch_size=4")
    parts = train(
        tmp_path / "parts",
        "trainer.max_steps=6",
        "data.batch_size=1",
        "trainer.accumulate_grad_batches=4",
    )
    assert [row["tokens"] for row in parts] == [row["tokens"] for row in whole]
    for name in ("train/loss", "train/grad_norm"):
        got, want = ([float(row[name]) for row in rows] for rows in (parts, whole))
        assert got == pytest.approx(want, rel=1e-4), name


def test_the_last_step_is_validated_wherever_it_falls(tmp_path):
    rows = train(tmp_path / "run", "trainer.max_steps=7", "validate_every=5")
    assert [row["step"] for row in rows if row["val/bpb"]] == ["5", "7"]


@pytest.mark.parametrize("setting", ["trainer.precision=bf16-mixed", "model.config.share_emb=true"])
def test_it_trains_with(setting, tmp_path):
    train(tmp_path / "run", setting)
    by_step = losses(tmp_path / "run")
    assert len(by_step) == 20
    assert float(by_step[20]) < float(by_step[1]) - 1.0


def test_a_port_that_another_program_took_meanwhile_is_no_end_of_a_run(tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        assert len(metrics(trained(tmp_path, "trainer.max_steps=1"))) == 1
