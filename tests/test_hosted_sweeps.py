"""Sweeps of Weights & Biases without an account: files, an agent's command, runs that continue."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.wandb_agent import Agent

from config_helpers import composed
from litmegalodon.runs import instantiate
from litmegalodon.training.callbacks.run_ids import KEY as KEPT
from runs import ENVIRONMENT, ROOT, command, last_checkpoint, metrics

# Weights & Biases' schema is in a package that can't be installed beside numpy 2.
NOT_HERE = "needs the package sweeps, which needs numpy 1"
FILES = sorted((ROOT / "configs" / "sweep").glob("*.yaml"))
SMOKE = {
    "experiment": "debug",
    "trainer.max_steps": 2,
    "checkpoint_every": 1,
    "trainer.limit_val_batches": 1,
    "callbacks.report": "null",
    "extras.print_config": "false",
}
SECRETS = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "MY_SECRET": "do-not-write-me"}


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
    sweeps = pytest.importorskip("sweeps.config", reason=NOT_HERE)
    assert sweeps.schema_violations_from_proposed_config(sweep(path)) == []
    first_line = path.read_text().splitlines()[0]
    assert first_line.startswith(f"# make sweep SWEEP={path.stem}; ")


def test_a_mistake_in_a_sweep_file_would_be_found() -> None:
    sweeps = pytest.importorskip("sweeps.config", reason=NOT_HERE)
    wrong = sweep(FILES[0]) | {"method": "bayess"}
    assert sweeps.schema_violations_from_proposed_config(wrong)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which an agent has trained one run of every sweep, named after its file."""
    folder = tmp_path_factory.mktemp("agents")
    environment = ENVIRONMENT | SECRETS
    environment |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
            patch.setenv(name, "")
        for name, value in environment.items():
            patch.setenv(name, value)
        for path in FILES:
            config = sweep(path)
            # An agent that has got a run's settings from the server.
            agent = Agent(api=None, queue=None)
            agent._sweep_command = config["command"]
            chosen = {name: first(value) for name, value in config["parameters"].items()}
            chosen |= SMOKE | {"paths.log_dir": str(folder / "logs")}
            arguments = {name: {"value": value} for name, value in chosen.items()}
            asked = {"run_id": path.stem, "program": config["program"], "args": arguments}
            agent._command_run(asked)
            assert agent._run_processes[path.stem].wait() == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_agents_command_trains_and_reports_the_metric(path: Path, agents: Path) -> None:
    (row,) = [r for r in metrics(agents / "logs/train/agents" / path.stem) if r["val/bpb"]]
    recorded = runs_of(agents)[path.stem]
    assert sweep(path)["metric"]["name"].encode() in recorded
    assert row["val/bpb"].encode() in recorded


@pytest.mark.slow
def test_a_resumed_run_continues_its_hosted_run_and_no_key_is_written(
    agents: Path, tmp_path: Path
) -> None:
    name = FILES[0].stem
    last = last_checkpoint(agents / "logs/train/agents" / name)
    smoke = [f"{setting}={value}" for setting, value in (SMOKE | {"trainer.max_steps": 3}).items()]
    offline = ("logger=wandb", "logger.wandb.offline=true", "hydra.run.dir=again")
    same = [f"{n}={first(value)}" for n, value in sweep(FILES[0])["parameters"].items()]
    same = [setting for setting in same if setting.startswith("model.")]
    done = subprocess.run(
        command("train", *smoke, *same, *offline, f"ckpt_path={last}"),
        cwd=tmp_path,
        env=ENVIRONMENT | SECRETS,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"logger.wandb: goes on with run {name}" in done.stdout
    assert list(runs_of(tmp_path)) == [name]

    written = [path for folder in (agents, tmp_path) for path in folder.rglob("*")]
    for path in filter(Path.is_file, written):
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS.values()), path


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
