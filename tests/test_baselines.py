"""The baselines train in the same harness, and docs show how; tests/test_commands.py looks at the
commands themselves.
"""

from config_helpers import CONFIGS, composed
from documented import ROOT, commands_of


def test_there_are_commands_for_every_switch():
    pages = (ROOT / "docs" / "baselines.md", CONFIGS / "experiment" / "ablation.yaml")
    text = " ".join(command for page in pages for command in commands_of(page))
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
