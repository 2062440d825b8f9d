"""What a run's loggers keep of its settings."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import nn

from litmegalodon.models import ModelConfig


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Numbers of parameters: total, trainable, and without token embedding and output matrix.

    Counted on a model without memory, so that sharding does not matter.
    """
    with torch.device("meta"):
        model = config.build()
    assert isinstance(model, nn.Module)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tables = ("embed.weight", "output.output.weight")
    return {
        "total": sum(sizes.values()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "non_embedding": sum(size for name, size in sizes.items() if name not in tables),
    }


def log_hyperparameters(cfg: DictConfig, trainer: Trainer, parameters: dict[str, int]) -> None:
    """Give every logger the run's settings and the model's parameter counts."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings["parameters"] = parameters
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
