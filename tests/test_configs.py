"""Every file under configs/ composes, and what it describes can be made."""

import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

import tokenizer_helpers
from config_helpers import CONFIGS, composed
from eval import evaluate
from litmegalodon.evaluation.settings import check_evaluation
from litmegalodon.ops import launch
from litmegalodon.runs.instantiate import make_trainer
from litmegalodon.runs.settings import check_settings
from train import train

ALL_FILES = sorted(
    path.relative_to(CONFIGS) for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "local"
)
# Groups of the evaluation's own.
OF_EVALUATION = ("evaluation", "harness")
EVALUATIONS = [path.stem for path in ALL_FILES if path.parent.name == "evaluation"]
# Sweeps are Weights & Biases' files, in tests/test_hosted_sweeps.py.
GROUP_FILES = [path for path in ALL_FILES if path.parent.name not in (*OF_EVALUATION, "sweep")]
# Extras that a plain installation lacks, by the config that needs them.
EXTRAS = {
    "logger/mlflow.yaml": "mlflow",
}

# What has to be given on the command line, by the config that needs it.
NEEDED = {
    "data/files.yaml": ["data.source.paths=[README.md,docs]"],
    "data/hub.yaml": ["data.source.path=json", "data.source.data_files=corpus.jsonl"],
}


# Experiments on prepared corpora, whose tokenizer is a file.
PREPARED = ("200m", "1b", "7b")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_helpers.train(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


def make_all(cfg: DictConfig) -> tuple[LightningDataModule, LightningModule, Trainer]:
    check_settings(cfg)
    return instantiate(cfg.data), instantiate(cfg.model), make_trainer(cfg)


def test_the_files_of_all_groups_are_under_test() -> None:
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"local"}
    assert {str(path.parent) for path in ALL_FILES} == groups


@pytest.mark.parametrize("path", GROUP_FILES, ids=str)
def test_every_config_composes_and_makes_what_it_describes(
    path: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Models are made on the meta device, which holds any.
    monkeypatch.setattr("litmegalodon.planning.settings.machine_memory", lambda: 2**60)
    needed = list(NEEDED.get(str(path), []))
    if path.parent.name == "experiment" and path.stem in PREPARED:
        # As many processes as share a row, for 7b.
        needed = [f"data.tokenizer.path={tokenizer}", "trainer.devices=2"]
    cfg = composed(f"{path.parent}={path.stem}", *needed, folder=tmp_path)
    missing = EXTRAS.get(str(path))
    if missing and importlib.util.find_spec(missing) is None:
        with pytest.raises(ValueError, match=rf"logger\.{missing}: .*{missing}"):
            make_all(cfg)
    elif cfg.trainer.accelerator == "cuda" and not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"trainer\.accelerator=cuda: .*no GPU"):
            make_all(cfg)
    else:
        data, model, trainer = make_all(cfg)
        assert isinstance(data, LightningDataModule)
        assert isinstance(model, LightningModule)
        assert trainer.max_steps == (
            1 if cfg.trainer.get("fast_dev_run") else cfg.trainer.max_steps
        )


@pytest.mark.parametrize("path", NEEDED)
def test_a_setting_that_has_to_be_given_is_asked_for(path: str, tmp_path: Path) -> None:
    setting = NEEDED[path][0].partition("=")[0]
    group, name = path.removesuffix(".yaml").split("/")
    with pytest.raises(ValueError, match=rf"^{re.escape(setting)}=null: must name .*{setting}="):
        check_settings(composed(f"{group}={name}", folder=tmp_path))


@pytest.mark.parametrize("name", PREPARED)
def test_an_experiment_on_a_prepared_corpus_says_what_to_prepare(
    name: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litmegalodon.planning.settings.machine_memory", lambda: 2**60)
    settings = [f"experiment={name}", "trainer.devices=2", f"data.source.folder={tmp_path}/none"]
    with pytest.raises(ValueError, match=r"^data\.tokenizer\.path=.*scripts/train_tokenizer\.py$"):
        missing = f"data.tokenizer.path={tmp_path}/none.model"
        check_settings(composed(*settings, missing, folder=tmp_path))
    cfg = composed(*settings, f"data.tokenizer.path={tokenizer}", folder=tmp_path)
    check_settings(cfg)
    with pytest.raises(ValueError, match=r"^data\.source\.folder=.*scripts/prepare_corpus\.py"):
        instantiate(cfg.data).setup()


def test_the_plan_config_takes_every_experiment(tmp_path: Path) -> None:
    for path in sorted((CONFIGS / "experiment").glob("*.yaml")):
        ours = composed(f"experiment={path.stem}", folder=tmp_path, name="plan")
        theirs = composed(f"experiment={path.stem}", folder=tmp_path)
        for name in ("model", "data", "trainer"):
            assert ours[name] == theirs[name]


def test_the_evaluation_config_composes_and_makes_what_it_describes(tmp_path: Path) -> None:
    cfg = composed("ckpt_path=null", folder=tmp_path, name="eval")
    make_all(cfg)
    assert "scheduler" in cfg.model


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_composes_and_can_read(name: str, tmp_path: Path) -> None:
    paths = ["evaluation.paths=[README.md]"] if name == "files" else []
    settings = (f"evaluation={name}", "ckpt_path=null", *paths)
    cfg = composed(*settings, folder=tmp_path, name="eval")
    check_evaluation(cfg, settings)
    assert callable(instantiate(cfg.evaluation).read)


def test_the_papers_tasks_are_known_to_the_harness_and_all_have_numbers(tmp_path: Path) -> None:
    cfg = composed("harness=paper", "ckpt_path=null", folder=tmp_path, name="eval")
    check_evaluation(cfg, ["harness=paper"])
    check_settings(cfg)
    assert list(cfg.harness.num_fewshot) == list(cfg.harness.reported) == cfg.harness.tasks
    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    written = [path.read_text() for path in tasks.rglob("*.yaml") if "mmlu_" not in path.name]
    named = {n for text in written for n in re.findall(r"^(?:task|group): *(\w+)", text, re.M)}
    assert set(cfg.harness.tasks) <= named


def test_no_argument_is_the_experiment_tiny(tmp_path: Path) -> None:
    assert composed(folder=tmp_path) == composed("experiment=tiny", folder=tmp_path)


def test_names_that_users_rely_on_exist(tmp_path: Path) -> None:
    cfg = composed(folder=tmp_path)
    names = """model.config.chunk_size model.optimizer.lr model.scheduler.total_steps model.compile
        data.seq_len data.batch_size data.num_workers trainer.max_steps trainer.devices
        trainer.precision trainer.accumulate_grad_batches trainer.strategy._target_ ckpt_path
        init_from seed tags task_name train test optimized_metric"""
    missing = object()
    assert [n for n in names.split() if OmegaConf.select(cfg, n, default=missing) is missing] == []


@pytest.mark.parametrize("on", [True, False])
def test_activation_checkpointing_reaches_every_block(on: bool, tmp_path: Path) -> None:
    cfg = composed(f"model.activation_checkpointing={str(on).lower()}", folder=tmp_path)
    check_settings(cfg)
    blocks = instantiate(cfg.model).model.layers
    assert [block.activation_checkpointing for block in blocks] == [on] * len(blocks)


def test_stopping_early_does_not_bend_the_schedule(tmp_path: Path) -> None:
    whole = composed(folder=tmp_path)
    short = composed("trainer.max_steps=7", folder=tmp_path)
    assert whole.trainer.max_steps == whole.model.scheduler.total_steps
    assert short.model.scheduler == whole.model.scheduler


@pytest.mark.parametrize(("steps", "interval"), [(1000, 250 * 3), (40, 40 * 3)])
def test_validation_comes_after_optimizer_steps_and_at_the_end_of_a_short_run(
    steps: int, interval: int, tmp_path: Path
) -> None:
    cfg = composed(
        f"trainer.max_steps={steps}",
        "validate_every=250",
        "trainer.accumulate_grad_batches=3",
        folder=tmp_path,
    )
    check_settings(cfg)
    assert make_trainer(cfg).val_check_interval == interval


# Experiments, debug modes and variants of trainer and harness hold differences from what is
# explained here.
SETTINGS_FILES = [*CONFIGS.glob("*.yaml")] + [
    CONFIGS / path
    for path in [*ALL_FILES, *(p.relative_to(CONFIGS) for p in CONFIGS.glob("*/*/*.yaml"))]
    if path.parent.name not in ("experiment", "debug", "hydra", "sweep")
    and (path.parent.name not in ("trainer", "harness") or path.stem == "default")
]


@pytest.mark.parametrize("path", SETTINGS_FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_value_has_a_comment(path: Path) -> None:
    lines = path.read_text().splitlines()
    for above, line in pairwise(lines):
        is_value = re.match(r"\s*[a-z]\w*: .", line)
        assert not is_value or above.strip().startswith("#"), f"no comment above: {line}"


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda p: p.stem
)
def test_an_experiment_starts_with_its_command(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert second.startswith(f"# python src/train.py experiment={path.stem}")


@pytest.mark.parametrize("script", ("train", "eval"))
def test_kernels_without_a_gpu_are_refused_before_any_data_is_read(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed("model.impl=triton", "trainer=cpu", folder=tmp_path, name=script)
    cfg.data = {"_target_": "pytest.fail", "reason": "data was read"}
    monkeypatch.setattr(launch, "INTERPRETED", False)
    run = {"train": train, "eval": evaluate}[script]
    # Another sentence where there is no triton at all.
    with pytest.raises(ValueError, match=r"^model\.impl=triton: it (runs on a GPU, not on|needs)"):
        run(cfg)
