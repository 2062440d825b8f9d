"""Several processes do what one does: losses, norms, checkpoints."""

import pytest

from runs import last_checkpoint, metrics, run

pytestmark = pytest.mark.slow

SETTINGS = (
    "experiment=debug",
    "extras.print_config=false",
    "trainer.limit_val_batches=2",
    "validate_every=4",
    "callbacks.report=null",
)


def close(a: list[dict[str, str]], b: list[dict[str, str]], tolerance: float) -> None:
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for one, other in zip(a, b, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/bpb", "tokens", "data/utilisation"):
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), rel=tolerance), name


@pytest.mark.parametrize("cutting", ["packed", "lanes"])
def test_processes_equal_one_and_continue_each_other(cutting, tmp_path):
    settings = (*SETTINGS, f"data.cutting={cutting}")
    one, rows, earlier = tmp_path / "one", [], ()
    run("train", *settings, "trainer.max_steps=16", f"hydra.run.dir={one}", cwd=tmp_path)
    # Four steps each: one process, two with rows of their own, two that share rows, one again.
    for end, devices, chunk in ((4, 1, 1), (8, 2, 1), (12, 2, 2), (16, 1, 1)):
        folder = tmp_path / str(end)
        mesh = (f"trainer.devices={devices}", f"trainer.strategy.chunk_parallel_size={chunk}")
        steps = (f"trainer.max_steps={end}", f"hydra.run.dir={folder}")
        run("train", *settings, *mesh, *steps, *earlier, cwd=tmp_path)
        earlier = (f"ckpt_path={last_checkpoint(folder)}",)
        rows += metrics(folder)
    close(rows, metrics(one), 1e-4)
