"""Two processes do what one does: losses, norms, checkpoints."""

import pytest

from runs import last_checkpoint, metrics, run

pytestmark = pytest.mark.slow

SETTINGS = (
    "experiment=debug",
    "extras.print_config=false",
    "trainer.limit_val_batches=2",
    "trainer.max_steps=8",
    "validate_every=4",
    "callbacks.report=null",
)


def close(a: list[dict[str, str]], b: list[dict[str, str]], tolerance: float) -> None:
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for one, other in zip(a, b, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/bpb", "tokens"):
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), rel=tolerance), name


@pytest.mark.parametrize("cutting", ["packed", "lanes"])
def test_two_processes_equal_one_and_continue_each_other(cutting, tmp_path):
    one, two, more = tmp_path / "one", tmp_path / "two", tmp_path / "more"
    settings = (*SETTINGS, f"data.cutting={cutting}")
    run("train", *settings, f"hydra.run.dir={one}", cwd=tmp_path)
    run("train", *settings, "trainer.devices=2", f"hydra.run.dir={two}", cwd=tmp_path)
    close(metrics(two), metrics(one), 1e-4)
    # What two have saved, one continues; and the other way round, with rows of their own or shared.
    for name, devices, chunk, saved in (("1", 1, 1, two), ("2", 2, 1, one), ("shared", 2, 2, two)):
        mesh = (f"trainer.devices={devices}", f"trainer.strategy.chunk_parallel_size={chunk}")
        resume = (f"ckpt_path={last_checkpoint(saved)}", f"hydra.run.dir={more / name}")
        run("train", *settings, *mesh, *resume, "trainer.max_steps=12", cwd=tmp_path)
    close(metrics(more / "1"), metrics(more / "2"), 1e-4)
    close(metrics(more / "shared"), metrics(more / "1"), 1e-4)
