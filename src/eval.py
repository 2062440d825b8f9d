"""Validate a checkpoint: python src/eval.py ckpt_path=last [key=value ...]

The settings of the run that wrote the checkpoint hold; those on the command line go first.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from litmegalodon.utils import errors
from litmegalodon.utils.allocator import keep_freed_memory
from litmegalodon.utils.command_line import prepare
from litmegalodon.utils.printing import describe_data, opening, say, short_path
from litmegalodon.utils.saved_settings import adopt_settings
from litmegalodon.utils.settings import check_settings


def evaluate(cfg: DictConfig) -> dict[str, float | str]:
    """The validation metrics of `ckpt_path`, and what they are to be read beside."""
    from hydra.utils import instantiate
    from lightning.pytorch import seed_everything

    from litmegalodon.utils.instantiate import check_device, open_trainer

    check_device(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = instantiate(cfg.data)
    datamodule.setup("validate")
    summary = datamodule.summary()
    say(describe_data(summary))
    with open_trainer(cfg) as trainer:
        model = instantiate(cfg.model)
        trainer.validate(model, datamodule=datamodule, ckpt_path=cfg.ckpt_path, verbose=False)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if cfg.get("evaluation"):
            model.examiner = instantiate(cfg.evaluation)
            datamodule.trainer = trainer
            loader = model.examiner.loader(datamodule)
            trainer.test(model, dataloaders=loader, ckpt_path=cfg.ckpt_path, verbose=False)
            metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        compressors = {f"{name} bpb": bits for name, bits in datamodule.baselines().items()}
    return {**metrics, **compressors, "fingerprint": summary["fingerprint"]}


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval.yaml")
def main(cfg: DictConfig) -> None:
    """Evaluate one checkpoint."""
    with errors.running(cfg.extras.tracebacks is True):
        adopt_settings(cfg, HydraConfig.get().overrides.task)
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
