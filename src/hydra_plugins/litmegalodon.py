"""What Hydra finds by itself: the launcher `runs` and the sweeper `study`, in a namespace package.

Hydra imports this at every start: nothing heavy here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class RunsConf:
    """`hydra/launcher: runs` takes no settings."""

    _target_: str = "hydra_plugins.litmegalodon.RunsLauncher"


class RunsLauncher(Launcher):
    """Trains each run of a sweep in a process and a folder of its own; finished ones are kept."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take hold of the sweep's configuration."""
        from litmegalodon.sweeps.launching import Sweep

        self.sweep = Sweep(config, hydra_context)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Train what is not finished, and return every run's `optimized_metric`."""
        return self.sweep.launch(job_overrides)


class StudySweeper(Sweeper):
    """Optuna's search of the best settings, which goes on where it was interrupted."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take hold of the launcher and of the sweep's configuration."""
        from hydra.core.plugins import Plugins

        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are `n_trials`."""
        from litmegalodon.sweeps.study import search

        search(self.launcher.sweep, arguments, **self.settings)


ConfigStore.instance().store(
    group="hydra/launcher", name="runs", node=RunsConf, provider="litmegalodon"
)
