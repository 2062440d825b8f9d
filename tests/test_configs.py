"""Every file under configs/ composes, and what it describes can be made."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from litmegalodon.utils.instantiate import make_trainer
from litmegalodon.utils.settings import check_settings

CONFIGS = Path(__file__).parents[1] / "configs"
GROUP_FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.glob("[!l]*/*.yaml")) + sorted(
    path.relative_to(CONFIGS) for path in CONFIGS.glob("logger/*.yaml")
)
# Extras that a plain installation lacks, by the config that needs them.
EXTRAS = {
    "logger/tensorboard.yaml": "tensorboard",
    "logger/many_loggers.yaml": "tensorboard",
    "logger/mlflow.yaml": "mlflow",
}


def composed(name: str, *overrides: str, folder: Path) -> DictConfig:
    """A configuration as an entry point gets it, writing to a folder of the test."""
    paths = [f"paths.{key}={folder}" for key in ("output_dir", "log_dir", "work_dir")]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, [*overrides, *paths])


def make_all(cfg: DictConfig) -> tuple[LightningDataModule, LightningModule, Trainer]:
    check_settings(cfg)
    return instantiate(cfg.data), instantiate(cfg.model), make_trainer(cfg)


def test_the_files_of_all_groups_are_under_test() -> None:
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"local"}
    assert {str(path.parent) for path in GROUP_FILES} == groups


@pytest.mark.parametrize("path", GROUP_FILES, ids=str)
def test_every_config_composes_and_makes_what_it_describes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = composed("train", f"{path.parent}={path.stem}", folder=tmp_path)
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
        assert trainer.max_steps == (1 if cfg.trainer.get("fast_dev_run") else cfg.trainer.max_steps)


def test_the_evaluation_config_composes_and_makes_what_it_describes(tmp_path: Path) -> None:
    cfg = composed("eval", "ckpt_path=null", folder=tmp_path)
    make_all(cfg)
    assert "scheduler" in cfg.model


def test_no_argument_is_the_experiment_tiny(tmp_path: Path) -> None:
    assert composed("train", folder=tmp_path) == composed(
        "train", "experiment=tiny", folder=tmp_path
    )


def test_names_that_users_rely_on_exist(tmp_path: Path) -> None:
    cfg = composed("train", folder=tmp_path)
    names = """model.config.chunk_size model.optimizer.lr model.scheduler.total_steps model.compile
        data.seq_len data.batch_size data.num_workers trainer.max_steps trainer.devices
        trainer.precision trainer.accumulate_grad_batches trainer.strategy._target_ ckpt_path
        init_from seed tags task_name train test optimized_metric"""
    missing = object()
    assert [n for n in names.split() if OmegaConf.select(cfg, n, default=missing) is missing] == []


def test_stopping_early_does_not_bend_the_schedule(tmp_path: Path) -> None:
    whole = composed("train", folder=tmp_path)
    short = composed("train", "trainer.max_steps=7", folder=tmp_path)
    assert whole.trainer.max_steps == whole.model.scheduler.total_steps
    assert short.model.scheduler == whole.model.scheduler


@pytest.mark.parametrize(("steps", "interval"), [(1000, 250 * 3), (40, 40 * 3)])
def test_validation_comes_after_optimizer_steps_and_at_the_end_of_a_short_run(
    steps: int, interval: int, tmp_path: Path
) -> None:
    cfg = composed(
        "train",
        f"trainer.max_steps={steps}",
        "validate_every=250",
        "trainer.accumulate_grad_batches=3",
        folder=tmp_path,
    )
    check_settings(cfg)
    assert make_trainer(cfg).val_check_interval == interval


def test_every_setting_has_its_comment() -> None:
    """A leaf's line, or the one above it, says what it is; the line after `# ...` heads a file."""
    for path in (CONFIGS / "model/megalodon.yaml", CONFIGS / "data/stdlib.yaml", CONFIGS / "train.yaml"):
        lines = path.read_text().splitlines()
        for above, line in zip(lines, lines[1:], strict=False):
            name = line.strip().partition(":")[0]
            if not line.strip() or line.strip().startswith(("#", "-", "_")) or line.endswith(":"):
                continue
            assert above.strip().startswith("#") or name == "final_ratio", f"{path}: {line}"


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_experiment_starts_with_its_command(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert second.startswith(f"# python src/train.py experiment={path.stem}")
