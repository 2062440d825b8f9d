"""Sweeps of Weights & Biases without an account: files, an agent's command, runs that continue."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.wandb_agent import Agent

from config_helpers import composed
from litmegalodon.training.callbacks.run_ids import KEY as KEPT
from litmegalodon.utils import instantiate
from runs import ENVIRONMENT, ROOT, command, last_checkpoint, metrics

FILES = sorted((ROOT / "configs" / "sweep").glob("*.yaml"))
SMOKE = {
    "experiment": "debug",
    "trainer.max_steps": 2,
    "trainer.limit_val_batches": 1,
    "callbacks.report": "null",
    "extras.print_config": "false",
}
KEY = "0123456789abcdef" * 2 + "01234567"


def sweep(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def first(parameter: dict):
    """A value that the sweep may choose."""
    if "value" in parameter:
        return parameter["value"]
    return parameter["values"][0] if "values" in parameter else parameter["min"]


def runs_of(folder: Path) -> dict[str, bytes]:
    """What was recorded of each offline run below a folder, by the run's id."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("offline-run-*/run-*.wandb")):
        name = path.stem.removeprefix("run-")
        found[name] = found.get(name, b"") + path.read_bytes()
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_file_follows_the_schema(path: Path) -> None:
    sweeps = pytest.importorskip("sweeps.config", reason="needs wandb[sweeps]")
    assert sweeps.schema_violations_from_proposed_config(sweep(path)) == []
    first_line = path.read_text().splitlines()[0]
    assert first_line.startswith(f"# make sweep SWEEP={path.stem}; ")


def test_a_mistake_in_a_sweep_file_would_be_found() -> None:
    sweeps = pytest.importorskip("sweeps.config", reason="needs wandb[sweeps]")
    wrong = sweep(FILES[0]) | {"method": "bayess"}
    assert sweeps.schema_violations_from_proposed_config(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_agents_command_trains_and_reports_the_metric(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.delenv(name, raising=False)
    config = sweep(path)
    # An agent that has got a run's settings from the server.
    agent = Agent(api=None, queue=None)
    agent._sweep_command = config["command"]
    chosen = {name: first(parameter) for name, parameter in config["parameters"].items()}
    chosen |= SMOKE | {"paths.log_dir": str(tmp_path / "logs")}
    arguments = {name: {"value": value} for name, value in chosen.items()}
    agent._command_run({"run_id": "abcd1234", "program": config["program"], "args": arguments})
    assert agent._run_processes["abcd1234"].wait() == 0
    folder = tmp_path / "logs" / "train" / "agents" / "abcd1234"
    (row,) = [row for row in metrics(folder) if row["val/bpb"]]
    recorded = runs_of(tmp_path)["abcd1234"]
    assert config["metric"]["name"].encode() in recorded
    assert row["val/bpb"].encode() in recorded


@pytest.mark.slow
def test_a_resumed_run_continues_its_hosted_run_and_no_key_is_written(tmp_path: Path) -> None:
    smoke = [f"{name}={value}" for name, value in SMOKE.items()]
    offline = ["logger=wandb", "logger.wandb.offline=true", "checkpoint_every=1"]
    environment = ENVIRONMENT | {"WANDB_API_KEY": KEY, "MY_SECRET": "do-not-write-me"}

    def train(*arguments: str) -> str:
        done = subprocess.run(
            command("train", *smoke, *offline, *arguments),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    train("hydra.run.dir=first")
    (name,) = runs_of(tmp_path / "first")
    last = last_checkpoint(tmp_path / "first")
    printed = train("hydra.run.dir=second", f"ckpt_path={last}", "trainer.max_steps=3")
    assert f"logger.wandb: goes on with run {name}" in printed
    assert list(runs_of(tmp_path / "second")) == [name]

    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content and b"do-not-write-me" not in content, path


@pytest.mark.parametrize(
    ("settings", "agent", "expected"),
    [
        ([], None, ("kept", "allow")),
        # Whoever wants another run says so.
        (["logger.wandb.id=mine"], None, ("mine", None)),
        # An agent has given the run its id.
        ([], "abcd1234", (None, None)),
        # An evaluation is no part of the run.
        (["train=false", "test=true"], None, (None, None)),
    ],
)
def test_a_resumed_run_takes_the_id_of_its_checkpoint_unless_it_has_one(
    settings: list[str],
    agent: str | None,
    expected: tuple[str | None, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    if agent:
        monkeypatch.setenv("WANDB_RUN_ID", agent)
    monkeypatch.setattr(instantiate, "read_meta", lambda path, setting: {KEPT: "kept"})
    cfg = composed("logger=wandb", "ckpt_path=x", *settings, folder=tmp_path)
    instantiate.continue_hosted_run(cfg)
    assert (cfg.logger.wandb.id, cfg.logger.wandb.get("resume")) == expected
