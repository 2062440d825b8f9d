"""Evaluate a checkpoint: python src/eval.py ckpt_path=last [key=value ...]

Alone it validates; evaluation=context, evaluation=files, evaluation=recall and harness.tasks=[...]
do more. The settings of the run that wrote the checkpoint hold; those on the command line go first.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from litmegalodon.evaluation.settings import check_evaluation
from litmegalodon.runs.saved_settings import adopt_settings
from litmegalodon.runs.settings import check_settings
from litmegalodon.utils import errors
from litmegalodon.utils.allocator import keep_freed_memory
from litmegalodon.utils.command_line import prepare
from litmegalodon.utils.printing import describe_data, opening, say, short_path

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Metrics = dict[str, float | str]


def evaluate(cfg: DictConfig) -> Metrics:
    """The metrics of `ckpt_path`, and what they are to be read beside."""
    from hydra.utils import instantiate
    from lightning.pytorch import seed_everything

    from litmegalodon.runs.instantiate import check_device, open_trainer

    if cfg.harness.tasks:
        return ask_harness(cfg)
    check_device(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    examiner = instantiate(cfg.evaluation) if cfg.get("evaluation") else None
    if examiner is None or examiner.reads_held_out:
        return validate(cfg, examiner)
    tokenizer = tokenizer_of(cfg)
    with open_trainer(cfg) as trainer:
        loader = examiner.loader(tokenizer, trainer)
        return examine(cfg, trainer, instantiate(cfg.model), examiner, loader)


def validate(cfg: DictConfig, examiner: Any) -> Metrics:
    """The validation metrics, and those of an examiner of the held-out documents."""
    from hydra.utils import instantiate

    from litmegalodon.runs.instantiate import open_trainer

    datamodule = instantiate(cfg.data)
    datamodule.setup("validate")
    summary = datamodule.summary()
    say(describe_data(summary))
    with open_trainer(cfg) as trainer:
        model = instantiate(cfg.model)
        trainer.validate(model, datamodule=datamodule, ckpt_path=cfg.ckpt_path, verbose=False)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if examiner is not None:
            datamodule.trainer = trainer
            metrics |= examine(cfg, trainer, model, examiner, examiner.loader(datamodule))
        compressors = {f"{name} bpb": bits for name, bits in datamodule.baselines().items()}
    return {**metrics, **compressors, "fingerprint": summary["fingerprint"]}


def examine(cfg: DictConfig, trainer: "Trainer", model: Any, examiner: Any, loader: Any) -> Metrics:
    """The metrics of an examiner, which writes its tables itself."""
    model.examiner = examiner
    try:
        trainer.test(model, dataloaders=loader, ckpt_path=cfg.ckpt_path, verbose=False)
    except SystemExit:
        # Lightning's answer to Ctrl-C.
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt(
            "interrupted: tables are written at the end, there is none"
        ) from None
    for name in examiner.outputs:
        say(f"written: {short_path(examiner.dirpath / name)}")
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def ask_harness(cfg: DictConfig) -> Metrics:
    """The metrics of tasks of lm-evaluation-harness."""
    from litmegalodon.evaluation import Harness, HarnessModel
    from litmegalodon.inference import load_model

    settings: dict[str, Any] = OmegaConf.to_container(cfg.harness, resolve=True)
    dtype = settings.pop("dtype")
    names = ("batch_size", "piece_tokens", "max_gen_toks")
    reading = {name: settings.pop(name) for name in names}
    tokenizer = tokenizer_of(cfg)
    harness = Harness(cfg.paths.output_dir, seed=cfg.seed, **settings)
    device = {"gpu": "cuda"}.get(cfg.trainer.accelerator, cfg.trainer.accelerator)
    model, _ = load_model(cfg.ckpt_path, device, dtype, tokenizer)
    harness.run(HarnessModel(model, tokenizer, seed=cfg.seed, **reading))
    # The tables are printed already.
    return {}


def tokenizer_of(cfg: DictConfig) -> Any:
    """The tokenizer of the settings; ValueError if the checkpoint was trained with another one."""
    from hydra.utils import instantiate

    from litmegalodon.checkpoints.files import read_meta
    from litmegalodon.data.datamodule import TextDataModule
    from litmegalodon.data.tokenizer import check_tokenizer

    tokenizer = instantiate(cfg.data.tokenizer)
    meta = read_meta(cfg.ckpt_path, f"ckpt_path={cfg.ckpt_path}")
    if (trained_on := meta.get(TextDataModule.__qualname__)) is not None:
        check_tokenizer(tokenizer, trained_on, "the checkpoint")
    return tokenizer


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval.yaml")
def main(cfg: DictConfig) -> None:
    """Evaluate one checkpoint."""
    with errors.running(cfg.extras.tracebacks is True):
        overrides = HydraConfig.get().overrides.task
        check_evaluation(cfg, overrides)
        adopt_settings(cfg, overrides)
        check_settings(cfg)
        opening(cfg)
        for name, value in evaluate(cfg).items():
            say(f"{name:20} {value if isinstance(value, str) else format(value, '.6g')}")
        say(f"run folder: {short_path(Path(cfg.paths.output_dir))}")


if __name__ == "__main__":
    with errors.composing():
        prepare(__file__)
        keep_freed_memory()
        main()
