"""The commands of docs/baselines.md and of the experiments that it speaks of compose and pass."""

import itertools
import re
import shlex

import pytest

from config_helpers import CONFIGS, composed
from litmegalodon.runs.settings import check_settings
from runs import ROOT

TEXTS = [ROOT / "docs" / "baselines.md"]
TEXTS += [CONFIGS / "experiment" / f"{name}.yaml" for name in ("vs_llama", "ablation")]
COMMAND = re.compile(r"^(?:    |# +)python src/train\.py(.*?)(?:  +#.*)?$", re.MULTILINE)
COMMANDS = sorted({c for path in TEXTS for c in COMMAND.findall(path.read_text())})


def jobs(command):
    """The settings of each run of a command, of seeds and learning rates only the first."""
    given = [a for a in shlex.split(command) if a != "-m" and not a.endswith("=...")]
    choices = []
    for name, _, value in (setting.partition("=") for setting in given):
        values = [f"{name}={v}" for v in value.split(",")]
        choices.append(values[:1] if name in ("seed", "model.optimizer.lr") else values)
    return list(itertools.product(*choices))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_valid(command, tmp_path):
    for settings in jobs(command):
        check_settings(composed(*settings, folder=tmp_path))


def test_there_are_commands_for_every_switch():
    text = " ".join(COMMANDS)
    for name in ("ema", "norm", "residual", "attention", "chunk_size", "swiglu"):
        assert f"model.config.{name}=" in text


def test_all_models_train_on_the_same_in_the_same_way(tmp_path):
    runs = [
        composed("experiment=vs_llama", f"model={m}", folder=tmp_path)
        for m in ("megalodon", "mega", "llama")
    ]
    for cfg in runs[1:]:
        for name in ("optimizer", "scheduler", "seed", "activation_checkpointing"):
            assert cfg.model[name] == runs[0].model[name]
        assert cfg.trainer == runs[0].trainer
        assert {k: v for k, v in cfg.data.items() if k != "chunk_size"} == {
            k: v for k, v in runs[0].data.items() if k != "chunk_size"
        }
