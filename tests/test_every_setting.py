"""Every setting of every command, with a wrong type and a wrong value, ends in one sentence."""

import copy
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import export_checkpoint
import import_checkpoint
import prepare_corpus
import pytest
import show_data
import train_tokenizer
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from config_helpers import CONFIGS, composed
from litmegalodon.data import preparing, tokenizer_training
from litmegalodon.evaluation.settings import check_evaluation
from litmegalodon.interop import exporting, importing
from litmegalodon.planning.settings import check_plan
from litmegalodon.runs.instantiate import make_list, make_trainer
from litmegalodon.runs.request import check_request
from litmegalodon.runs.saved_settings import adopt_settings
from litmegalodon.runs.setting_rules import TEXTS
from litmegalodon.runs.settings import check_settings, check_values
from litmegalodon.utils import errors
from test_cli_settings import make_checkpoint
from tokenizer_helpers import train as tokenizer_model

pytestmark = pytest.mark.slow
# Of another type than any setting, of another type than numbers, and out of every range.
WRONG = ({"a": 1}, [1, "b"], "zzz", -7, 2.5)
ABOVE_ZERO = (
    "data.in_memory_limit",
    "data.source.weights.code",
    "data.source.weights.recall",
    *(f"data.source.weights.{task}" for task in ("recall_32", "recall_64", "recall_128")),
    *(f"data.source.weights.{task}" for task in ("passkey_128", "copy_32", "copy_64")),
    "evaluation.temperature",
    "max_shard_gb",
    "model.config.init_std",
    "model.config.rope_base",
    "model.optimizer.lr",
    "model.optimizer.eps",
    "model.optimizer.weight_decay",
    "model.scheduler.cycles",
    "repetition_penalty",
    "temperature",
    "trainer.gradient_clip_val",
    "trainer.strategy.timeout_minutes",
    "callbacks.report.temperature",
    "callbacks.watchdog.silence_seconds",
    "callbacks.spike_guard.spike_score",
)
TEXT_TOO = (
    *("data.source.path", "data.source.paths", "data.source.val_paths", "data.source.data_files"),
    *("data.source.split", "data.source.text_column", "evaluation.stop", "prompt", "stop"),
)
# Which of these a setting may be, where it is not its type that says so.
FINE = {
    **dict.fromkeys(ABOVE_ZERO, 2.5),
    **dict.fromkeys((*TEXTS, *TEXT_TOO), "zzz"),
    # Any parts, by any name.
    **dict.fromkeys(("callbacks", "harness.reported", "harness.num_fewshot"), "a part"),
}
# Named by what it leads to: there is no checkpoint under that name.
LEADS_ELSEWHERE = {"last_of": "ckpt_path=last: there is no complete checkpoint under .*/zzz yet"}


class Taken(Exception):
    """The settings are good: what follows them would begin now."""


def taken(*_: Any, **__: Any) -> None:
    raise Taken


def of_training(cfg: DictConfig, overrides: list[str]) -> None:
    check_settings(cfg)
    # All that is made before data are read and processes start.
    instantiate(cfg.data), instantiate(cfg.model), make_trainer(cfg)


def of_data(cfg: DictConfig, overrides: list[str]) -> None:
    check_settings(cfg)
    instantiate(cfg.data)


def of_logging(cfg: DictConfig, overrides: list[str]) -> None:
    check_settings(cfg)
    make_list(cfg.logger, "logger", object)


def of_evaluation(cfg: DictConfig, overrides: list[str]) -> None:
    check_evaluation(cfg, overrides)
    adopt_settings(cfg, overrides)
    check_settings(cfg)
    if cfg.get("evaluation"):
        instantiate(cfg.evaluation)


def of_writing(cfg: DictConfig, overrides: list[str]) -> None:
    check_request(cfg, {"prompt": [], "stop": []})


def of_a_plan(cfg: DictConfig, overrides: list[str]) -> None:
    OmegaConf.resolve(cfg)
    check_values(cfg)
    check_plan(cfg)


def of_showing(cfg: DictConfig, overrides: list[str]) -> None:
    check_settings(cfg)
    show_data.check_show(cfg)


SCRIPTS = {
    "export_checkpoint": export_checkpoint.export_checkpoint,
    "import_checkpoint": import_checkpoint.import_checkpoint,
    "prepare_corpus": prepare_corpus.prepare_corpus,
    "train_tokenizer": train_tokenizer.train_tokenizer,
}


def of_a_script(cfg: DictConfig, overrides: list[str]) -> None:
    check_values(cfg)
    SCRIPTS[cfg.task_name](cfg)


# What is composed, from which config, and what is done with it before anything expensive.
COMMANDS = [
    ("experiment=debug trainer.accelerator=cpu init_from=null", "train", of_training),
    ("data=files data.source.paths=[README.md]", "train", of_data),
    ("data=hub data.source.path=a/b", "train", of_data),
    ("data=hub data.source.path=a/b data.source.val_split=val", "train", of_data),
    ("data=mixture", "train", of_data),
    ("data=prepared data/tokenizer=sentencepiece data.tokenizer.path=a.model "
     "model.config.vocab_size=500", "train", of_data),
    ("data=synthetic data.source.distance=100 data.source.task=recall", "train", of_data),
    ("data=recall", "train", of_data),
    ("experiment=listops", "train", of_data),
    ("model=llama", "train", of_data),
    ("logger=many_loggers", "train", of_logging),
    ("logger=mlflow", "train", of_data),
    ("debug=profiler", "train", of_training),
    ("debug=overfit", "train", of_training),
    ("debug=fdr", "train", of_training),
    ("ckpt_path=last harness.tasks=[a]", "eval", of_evaluation),
    ("ckpt_path=last", "eval", of_evaluation),
    ("ckpt_path=last evaluation=context", "eval", of_evaluation),
    ("ckpt_path=last evaluation=files evaluation.paths=[a] evaluation.prompts=b", "eval",
     of_evaluation),
    ("ckpt_path=last evaluation=recall", "eval", of_evaluation),
    ("ckpt_path=last", "generate", of_writing),
    ("", "plan", of_a_plan),
    ("", "show_data", of_showing),
    ("ckpt_path=last output=out", "export_checkpoint", of_a_script),
    ("from=reference path=a output=out", "import_checkpoint", of_a_script),
    ("", "prepare_corpus", of_a_script),
    ("", "train_tokenizer", of_a_script),
]  # fmt: skip


def leaves(node: DictConfig, name: str = "") -> Iterator[str]:
    """The names of all settings of a node."""
    for key in node:
        inner, value = f"{name}.{key}" if name else str(key), node._get_node(key)
        if OmegaConf.is_dict(value) and not value._is_none() and len(value):
            yield from leaves(value, inner)
        # init_from takes its place.
        elif inner != "model.init_from":
            yield inner


def what_is_said(base: DictConfig, key: str, value: Any, check: Any, overrides: Any) -> str | None:
    """The sentence that a user reads, None where the setting is taken; fails on a bug."""
    cfg = copy.deepcopy(base)
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    try:
        check(cfg, overrides)
    except Taken:
        return None
    except BaseException as error:
        error = errors.cause(error)
        if not errors.is_users(error):
            raise AssertionError(f"{key}={value!r} ends in a traceback") from error
        return errors.explain(error)
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all that the commands name is there, and what takes long begins with Taken."""
    folder = tmp_path_factory.mktemp("settings")
    for name in ("a", "b", "README.md"):
        (folder / name).write_text("x")
    tokenizer_model(folder / "a.model", 500)
    make_checkpoint(folder / "train" / "runs" / "a" / "checkpoints" / "last-step=000020.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        patch.setattr(exporting, "export", taken)
        patch.setattr(importing, "read_foreign", taken)
        patch.setattr(preparing, "prepare", taken)
        patch.setattr(tokenizer_training, "train", taken)
        yield folder


@pytest.fixture(scope="module")
def tried(folder: Path) -> dict[str, list[str]]:
    """By setting, what was wrong with the sentences of wrong values; each is tried once, in the
    first command that has it.
    """
    found: dict[str, list[str]] = {}
    for command, config, check in COMMANDS:
        overrides = command.split()
        base = composed(*overrides, folder=folder, name=config)
        for key in leaves(base):
            if key in found or key.startswith("hydra."):
                continue
            found[key] = []
            for value in WRONG:
                said = what_is_said(base, key, value, check, overrides)
                begins = rf"{re.escape(key)}[=:]"
                begins += f"|{LEADS_ELSEWHERE[key]}" if key in LEADS_ELSEWHERE else ""
                if said is None:
                    if FINE.get(key) not in (value, "a part" if value == {"a": 1} else value):
                        found[key].append(f"{key}={value!r}: is taken")
                elif "\n" in said or not re.match(begins, said):
                    found[key].append(f"{key}={value!r}: {said}")
    return found


def test_every_setting_with_a_wrong_type_and_a_wrong_value_is_named(tried) -> None:
    assert [wrong for of_key in tried.values() for wrong in of_key] == []
    # Five values each, of which it may be one or two.
    assert len(tried) >= 250


def test_no_setting_of_any_config_file_is_left_untried(tried) -> None:
    untried = [
        f"{path.relative_to(CONFIGS)}: {key}"
        for path in CONFIGS.rglob("*.yaml")
        for key in settings_of(path)
        if not any(key == known or key.startswith(f"{known}.") for known in tried)
    ]
    assert untried == []


def settings_of(path: Path) -> list[str]:
    """The names of the settings in a config file, as they are typed; Hydra's own are left out."""
    *group, _ = path.relative_to(CONFIGS).with_suffix("").parts
    # Sweeps are read by Weights & Biases, local settings are anyone's.
    if group and group[0] in ("hydra", "sweep", "local"):
        return []
    content = OmegaConf.load(path)
    if not OmegaConf.is_dict(content):
        return []
    if "# @package _global_" in path.read_text():
        group = []
    package = ".".join(part for part in group if part != "common")
    content.pop("defaults", None)
    return [key for key in leaves(content, package) if not key.startswith("hydra.")]
