"""What comes from elsewhere is read, never run; what is secret stays out of what runs write."""

import os
import pickle
import re
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from config_helpers import composed
from damage import damaged, little_memory
from eval import evaluate
from guard_helpers import SETTINGS, trained
from litmegalodon.checkpoints.files import read_state, read_tensors
from litmegalodon.checkpoints.manifest import MANIFEST
from litmegalodon.runs.saved_settings import adopt_settings
from litmegalodon.utils.command_line import read_env
from runs import ROOT, last_checkpoint
from test_loading import Trap
from train import train

SHORT = ("trainer.max_steps=2",)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("first"), *SHORT)


@pytest.mark.parametrize("setting", ["ckpt_path", "init_from", "evaluation"])
def test_what_a_checkpoints_description_asks_to_run_is_not_run(setting, run, tmp_path):
    checkpoint = tmp_path / "bad.ckpt"
    shutil.copytree(last_checkpoint(run), checkpoint)
    # Whoever changes a file can change what the manifest says of it.
    (checkpoint / MANIFEST).unlink()
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "trace"), protocol=2))
    name, go = ("eval", evaluate) if setting == "evaluation" else ("train", train)
    ours = [s for s in SETTINGS if name == "train" or s.startswith(("data.", "extras."))]
    cfg = composed(*ours, "experiment=debug", folder=tmp_path, name="train")
    if name == "eval":
        cfg.callbacks, cfg.logger = None, None
        with open_dict(cfg):
            cfg.harness = {"tasks": []}
    else:
        cfg.trainer.max_steps = 4
    cfg["init_from" if setting == "init_from" else "ckpt_path"] = str(checkpoint)
    cfg.model.init_from = cfg.init_from
    with pytest.raises(ValueError, match=r"bad\.ckpt: cannot be read, it is damaged .*asks for"):
        go(cfg)
    assert not (tmp_path / "trace").exists()


def save(path, **entries):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is .*")
        dcp.save(entries, checkpoint_id=path, no_dist=True)
    return path


def test_what_a_checkpoints_entries_ask_to_run_is_not_run(tmp_path):
    path = save(tmp_path / "a", note=Trap(tmp_path / "trace"), plain={"lr": 0.5, "betas": (1, 2)})
    state = {"plain": {"lr": 0.0, "betas": (0, 0)}}
    read_state(path, state)
    assert state == {"plain": {"lr": 0.5, "betas": (1, 2)}}
    # torch's exceptions of a checkpoint are no Exception.
    with pytest.raises(BaseException, match="Weights only load failed"):
        read_state(path, {"note": "text"})
    assert not (tmp_path / "trace").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of two tensors, and its description."""
    path = save(tmp_path_factory.mktemp("small") / "a", a=torch.arange(6.0), b=torch.ones(2, 3))
    return path, (path / ".metadata").read_bytes()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_description_with_bytes_flipped_cut_or_swapped_ends_in_a_sentence_or_is_read(data, small):
    path, whole = small
    (path / ".metadata").write_bytes(data.draw(damaged(whole)))
    tensors = {"a": torch.zeros(6), "b": torch.zeros(2, 3)}
    try:
        with little_memory():
            read_tensors(path, tensors, "setting")
    except ValueError as error:
        assert re.match("^setting: cannot be read, it is damaged", str(error))
    finally:
        (path / ".metadata").write_bytes(whole)


@pytest.mark.parametrize(
    "asks", [b"\x80\x04Nr\xff\xff\xff\xff.", b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."]
)
def test_a_description_gets_no_more_memory_than_it_fills(asks, small):
    path, whole = small
    (path / ".metadata").write_bytes(asks)
    try:
        with little_memory(), pytest.raises(ValueError, match=r"damaged") as error:
            read_tensors(path, {}, "setting")
    finally:
        (path / ".metadata").write_bytes(whole)
    assert "MemoryError" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("data.source", "os.system"),
        ("model.config", "litmegalodon.utils.errors.os.system"),
        ("model.optimizer", "torch.hub.load"),
        ("data.tokenizer.inner", "builtins.eval"),
    ],
)
def test_code_that_saved_settings_name_is_refused(name, target, run, tmp_path):
    folder = tmp_path / "train" / "runs" / "a"
    shutil.copytree(run, folder)
    saved = composed("experiment=debug", folder=tmp_path)
    OmegaConf.update(saved, name, {"_target_": target, "command": "false"}, force_add=True)
    (folder / ".hydra").mkdir()
    OmegaConf.save(saved, folder / ".hydra" / "config.yaml")
    cfg = composed("ckpt_path=last", folder=tmp_path, name="eval")
    with pytest.raises(
        ValueError, match=rf"^{name}\._target_={target}: .* is not run, give \w+=\.+"
    ):
        adopt_settings(cfg, ["ckpt_path=last"])
    # Those of a run of this project are taken.
    OmegaConf.save(composed("experiment=debug", folder=tmp_path), folder / ".hydra/config.yaml")
    adopt_settings(cfg, ["ckpt_path=last"])


def test_nothing_in_the_project_unpickles_freely_or_runs_a_datasets_code():
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("configs/**/*.yaml")]
    for path in files:
        text = path.read_text()
        assert not re.search(r"pickle\.loads?\(|weights_only=False|(un)?safe_load=False", text), (
            path
        )
        assert not re.search(r"trust_remote_code\W+(True|true)", text), path
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "weights_only=True" in call, (path, call)


@pytest.mark.slow
def test_keys_and_the_environment_are_in_no_file_of_a_run(tmp_path, monkeypatch):
    secret, other = "0123456789abcdef" * 2 + "00c0ffee", "a-value-of-the-environment"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "SOME_VARIABLE"):
        # Taken back afterwards, though read_env sets them.
        monkeypatch.setenv(name, "")
        del os.environ[name]
    monkeypatch.setenv("WANDB_MODE", "offline")
    file = tmp_path / ".env"
    file.write_text(f"WANDB_API_KEY={secret}\nHF_TOKEN={secret}\nSOME_VARIABLE={other}\n")
    read_env(file)
    assert os.environ["WANDB_API_KEY"] == secret
    logs = tmp_path / "logs"
    trained(logs, *SHORT, "logger=many_loggers", "extras.print_config=true")
    written = [path for path in logs.rglob("*") if path.is_file()]
    assert {"metrics.csv", "hparams.yaml"} <= {path.name for path in written}
    assert any("wandb" in path.name for path in written)
    for path in written:
        content = path.read_bytes()
        assert secret.encode() not in content and other.encode() not in content, path
