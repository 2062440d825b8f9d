"""Train a model: python src/train.py [experiment=name] [group=option ...] [key=value ...]

`--help` lists groups and settings. Without arguments the experiment `tiny` runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from litmegalodon.checkpoints import newest
from litmegalodon.runs.settings import check_search, check_settings
from litmegalodon.utils import errors
from litmegalodon.utils.allocator import keep_freed_memory
from litmegalodon.utils.command_line import is_main_process, prepare
from litmegalodon.utils.printing import (
    describe_data,
    describe_model,
    opening,
    say,
    short_path,
)
from litmegalodon.utils.results import write_results

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def train(cfg: DictConfig) -> dict[str, float]:
    """Train, test where asked to, and return the last value of every metric."""
    # torch and lightning take seconds to import: only after the settings are checked.
    from hydra.utils import instantiate
    from lightning.pytorch import seed_everything

    from litmegalodon.runs.hparams import count_parameters, log_hyperparameters
    from litmegalodon.runs.instantiate import best_checkpoint, check_device, open_trainer

    check_device(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = instantiate(cfg.data)
    # Text that does not suit the settings is found before the model is made.
    datamodule.setup()
    say(describe_data(datamodule.summary()))
    parameters = count_parameters(instantiate(cfg.model.config))
    say(describe_model(parameters))
    model = instantiate(cfg.model)

    metrics = {}
    with open_trainer(cfg) as trainer:
        log_hyperparameters(cfg, trainer, parameters)
        if cfg.train:
            fit(trainer, model, datamodule, cfg)
            metrics |= trainer.callback_metrics
        if cfg.test:
            checkpoint = best_checkpoint(trainer) if cfg.train else cfg.ckpt_path
            trainer.test(model, datamodule=datamodule, ckpt_path=checkpoint)
            metrics |= trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def fit(trainer: "Trainer", model: Any, datamodule: Any, cfg: DictConfig) -> None:
    """Train, again from a checkpoint where the guard asks for it; where that was interrupted say
    how to go on.
    """
    from litmegalodon.parallel import ChunkParallelStrategy
    from litmegalodon.training.callbacks import GoBack

    if isinstance(trainer.strategy, ChunkParallelStrategy):
        trainer.strategy.may_be_older = cfg.get("ckpt_may_be_older", False)
    checkpoint = cfg.ckpt_path
    try:
        while True:
            try:
                trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint)
                return
            except GoBack as back:
                checkpoint = back.checkpoint
                datamodule.move_past(back.cursor, back.places)
                # Nobody named it: where it is damaged, the one before it will do.
                trainer.strategy.may_be_older = True
    except (errors.Stopped, SystemExit) as stop:
        # SystemExit is Lightning's answer to Ctrl-C before the first step.
        if isinstance(stop, SystemExit) and not trainer.interrupted:
            raise
        reason, code = "interrupted", errors.INTERRUPTED
        if isinstance(stop, errors.Stopped):
            reason, code = str(stop), stop.code
        saved = newest(Path(cfg.paths.output_dir))
        how = f"to go on: ckpt_path={saved}" if saved else "no checkpoint was saved yet"
        raise errors.Stopped(f"{reason} after step {trainer.global_step}; {how}", code) from None


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(cfg: DictConfig) -> float | None:
    """Run one experiment and return `optimized_metric` to a sweep."""
    with errors.running(cfg.extras.tracebacks is True):
        check_search()
        check_settings(cfg)
        opening(cfg)
        metrics = train(cfg)
        if is_main_process():
            write_results(Path(cfg.paths.output_dir), metrics)
        say(f"run folder: {short_path(Path(cfg.paths.output_dir))}")
    if cfg.optimized_metric and cfg.optimized_metric not in metrics:
        say(f"optimized_metric={cfg.optimized_metric}: was not measured in this run")
    return metrics.get(cfg.optimized_metric)


if __name__ == "__main__":
    with errors.composing():
        prepare(__file__)
        keep_freed_memory()
        main()
