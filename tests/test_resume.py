"""A run that is killed anywhere goes on exactly where its last checkpoint stands."""

import pytest

from runs import kill_after, last_checkpoint, losses, metrics, run

pytestmark = pytest.mark.slow

SETTINGS = (
    "experiment=debug",
    "extras.print_config=false",
    "trainer.max_steps=40",
    "model.scheduler.total_steps=40",
    "trainer.accumulate_grad_batches=3",
    "data.num_workers=2",
    "model.config.hidden_dropout=0.1",
    "model.config.attention_dropout=0.1",
    "validate_every=10",
    "callbacks.last_checkpoint.every_n_steps=7",
    "trainer.limit_val_batches=2",
    "callbacks.report=null",
)
MEASURED = (
    "train/loss",
    "train/grad_norm",
    "train/lr",
    "tokens",
    "data/utilisation",
    "val/loss",
    "val/bpb",
)


def measured(folder) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k in ("step", *MEASURED)} for row in metrics(folder)]


# Each of the two processes reads rows of its own, with workers of its own.
LANES = ("data.cutting=lanes", "data.streaming=true", "trainer.devices=2")


@pytest.mark.parametrize("cutting", [(), LANES], ids=["packed", "lanes of a stream, two ranks"])
def test_killed_twice_and_resumed_equals_uninterrupted_bit_for_bit(cutting, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("train", *SETTINGS, *cutting, f"hydra.run.dir={whole}", cwd=tmp_path)
    again = (*SETTINGS, *cutting, f"hydra.run.dir={broken}")

    def saved() -> int:
        """The step of the newest whole checkpoint, which is written while training goes on."""
        return int(last_checkpoint(broken).stem.rpartition("=")[2])

    # Each time amid the micro-batches of some step.
    kill_after(
        "train",
        *again,
        cwd=tmp_path,
        until=lambda: len(losses(broken)) >= 19 and saved() >= 14,
    )
    assert 14 <= saved() <= 28
    resume = f"ckpt_path={last_checkpoint(broken)}"
    kill_after("train", *again, resume, cwd=tmp_path, until=lambda: max(losses(broken)) >= 30)
    resume = f"ckpt_path={last_checkpoint(broken)}"
    run("train", *again, resume, cwd=tmp_path)
    assert len(losses(whole)) == 40
    assert measured(broken) == measured(whole)


def test_init_from_takes_the_weights_and_nothing_else(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    short = ("experiment=debug", "extras.print_config=false", "trainer.limit_val_batches=2")
    run("train", *short, f"hydra.run.dir={first}", cwd=tmp_path)
    start = f"init_from={last_checkpoint(first)}"
    run("train", *short, start, "trainer.max_steps=3", f"hydra.run.dir={second}", cwd=tmp_path)
    before, after = losses(first), losses(second)
    assert list(after) == [1, 2, 3]
    # It starts with what the first run had learnt.
    assert float(after[1]) < float(before[1]) - 1.0
    assert float(metrics(second)[0]["train/lr"]) == float(metrics(first)[0]["train/lr"])
