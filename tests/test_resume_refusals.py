"""What a run can't continue is refused in one sentence that names the setting."""

import shutil
import subprocess

import pytest

from runs import ENVIRONMENT, command, last_checkpoint, metrics, run

pytestmark = pytest.mark.slow

SHORT = (
    "experiment=debug",
    "extras.print_config=false",
    "trainer.limit_val_batches=2",
    "callbacks.report=null",
)


def refused(folder, *settings) -> str:
    arguments = command("train", *SHORT, *settings, f"hydra.run.dir={folder / 'refused'}")
    done = subprocess.run(
        arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of 7 steps, validated after 5 and at its end."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    steps = ("trainer.max_steps=7", "validate_every=5")
    run("train", *SHORT, *steps, f"hydra.run.dir={folder}", cwd=folder.parent)
    return folder


def test_the_last_step_is_validated_wherever_it_falls_and_the_last_checkpoint_knows(saved):
    assert [row["step"] for row in metrics(saved) if row["val/bpb"]] == ["5", "7"]
    (best,) = (saved / "checkpoints").glob("best-*")
    import torch

    callbacks = torch.load(last_checkpoint(saved) / "meta.pt", weights_only=True)["callbacks"]
    (state,) = (v for k, v in callbacks.items() if "Best" in k)
    assert state["best_model_path"] == str(best)


@pytest.mark.parametrize(
    "setting",
    [
        "model.optimizer.lr=0.5",
        "model.optimizer.decay=matrices",
        "trainer.accumulate_grad_batches=2",
        "model.config.cema_ndim=8",
        "trainer.max_steps=7",
        "data.seq_len=32",
        "data.cutting=lanes",
    ],
)
def test_a_setting_that_a_resumed_run_cannot_have(saved, setting, tmp_path):
    line = refused(tmp_path, f"ckpt_path={last_checkpoint(saved)}", setting)
    assert setting.partition("=")[0] in line


@pytest.mark.parametrize("damage", ["empty", "cut"])
@pytest.mark.parametrize("setting", ["ckpt_path", "init_from"])
def test_a_damaged_checkpoint(saved, setting, damage, tmp_path):
    copy = tmp_path / "damaged.ckpt"
    shutil.copytree(last_checkpoint(saved), copy)
    if damage == "empty":
        (copy / "meta.pt").write_bytes(b"")
    else:
        for shard in copy.glob("*.distcp"):
            shard.write_bytes(shard.read_bytes()[:1000])
    assert f"{setting}={copy}: cannot be read" in refused(tmp_path, f"{setting}={copy}")
