"""An imported checkpoint is evaluated and trained on; the commands' mistakes end in one line."""

import subprocess
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from import_checkpoint import import_checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from config_helpers import composed
from eval import evaluate
from golden_data import assert_equal
from inference_helpers import byte_model
from interop_helpers import assert_same_weights, write_megalodon_hf, write_reference
from litmegalodon.checkpoints.files import read_meta
from litmegalodon.runs.saved_settings import adopt_settings
from litmegalodon.runs.settings import check_settings
from runs import ENVIRONMENT, command

pytestmark = pytest.mark.slow

ROWS = ["data.seq_len=64", "data.val_batch_size=32", "trainer.limit_val_batches=2"]


@pytest.fixture(scope="module")
def model():
    return byte_model(torch.float32, chunk_size=16)


@pytest.fixture(scope="module")
def imported(model, tmp_path_factory):
    """A run's folder with the weights of a reference's checkpoint."""
    folder = tmp_path_factory.mktemp("import")
    write_reference(model, folder / "reference", ranks=2)
    settings = ("from=reference", f"path={folder}/reference", f"output={folder}/imported")
    import_checkpoint(composed(*settings, folder=folder, name="import_checkpoint"))
    return folder / "imported"


def evaluation(imported, folder):
    given = [f"ckpt_path={imported}", *ROWS]
    cfg = composed(*given, folder=folder, name="eval")
    adopt_settings(cfg, [f"ckpt_path='{imported}'", *ROWS])
    check_settings(cfg)
    return cfg


def test_an_imported_checkpoint_is_evaluated_as_its_model_is(imported, model, tmp_path):
    cfg = evaluation(imported, tmp_path)
    found = evaluate(cfg)
    data = instantiate(cfg.data)
    data.setup("validate")
    nll, count = 0, 0
    with torch.no_grad():
        for _, batch in zip(range(2), data.val_dataloader(), strict=False):
            part, valid, _ = model.loss(batch["tokens"], batch["targets"], resets=batch["resets"])
            nll, count = nll + part, count + valid
    assert_equal(torch.tensor(found["val/loss"]), nll / count, 1e-5)


def test_training_takes_its_weights_and_does_not_resume_it(imported, model, tmp_path):
    sizes = [f"model.config.{name}={value}" for name, value in model.config.to_dict().items()
             if name != "init_mode" and value is not None]  # fmt: skip
    settings = ["experiment=debug", "model.config.rope_base=null", *sizes]
    cfg = composed(*settings, f"init_from={imported}", folder=tmp_path)
    check_settings(cfg)
    module = instantiate(cfg.model)
    module.configure_model()
    assert_same_weights(module.model, model)

    fitting = SimpleNamespace(fn=TrainerFn.FITTING)
    module._trainer = SimpleNamespace(datamodule=None, state=fitting)
    path = imported / "checkpoints" / "imported.ckpt"
    message = r"holds imported weights and no training to go on with; take them with init_from="
    with pytest.raises(ValueError, match=message):
        module.check_checkpoint(read_meta(path, "ckpt_path="), path)


def test_the_command_s_mistakes_end_in_one_line_and_leave_nothing(model, tmp_path):
    folder = write_megalodon_hf(model, tmp_path / "hf")
    done = subprocess.run(
        command("scripts/import_checkpoint", "from=megalodon-hf", f"path={folder}", "output=a=b"),
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "set accept_different_norm=true" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]
