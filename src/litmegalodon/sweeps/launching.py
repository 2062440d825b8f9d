"""The runs of a sweep one after another, as far as they are not finished or in other hands."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from litmegalodon.runs.settings import check_settings
from litmegalodon.sweeps import children
from litmegalodon.sweeps.folder import SweepFolder, as_number, held, is_busy, results
from litmegalodon.sweeps.report import report, say_where
from litmegalodon.utils.printing import say, short_path

# Between two looks at a run that another process trains.
SECONDS = 1.0
# Hydra's own settings that are the sweep's and not a run's.
OF_THE_SWEEP = ("hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweeper", "hydra.mode")


class RunsFailed(ValueError):
    """Some runs of a sweep ended without a result."""


@dataclass
class Run:
    """One run of a sweep: settings, folder, the number of steps at which it is finished."""

    overrides: list[str]
    folder: Path
    config: DictConfig

    def results(self) -> dict[str, float] | None:
        return results(self.folder, self.config.trainer.max_steps)


class Sweep:
    """Trains the runs of a composed configuration, each in a process of its own.

    Args:
        config: the sweep's, with its node `hydra`.
    """

    def __init__(self, config: DictConfig, context: HydraContext) -> None:
        self.config, self.context = config, context
        self.folder = SweepFolder(str(config.hydra.sweep.dir))

    def launch(
        self, settings: Sequence[Sequence[str]], names: Sequence[str] | None = None
    ) -> list[JobReturn]:
        """The result of every run, finished earlier or now; all settings are checked first.

        Args:
            settings: of each run, as on a command line.
            names: what to call the runs where they are not all that there are.

        Raises:
            ValueError: settings that cannot be trained.
            RunsFailed: runs that ended without a result; the others are finished.
        """
        composed = [self._checked(list(overrides)) for overrides in settings]
        runs = [self._placed(list(o), c) for o, c in zip(settings, composed, strict=True)]
        known = names or [f"run {number} of {len(runs)}" for number in range(1, len(runs) + 1)]
        waiting = list(zip(known, runs, strict=True))
        finished = sum(run.results() is not None for run in runs)
        if finished and not names:
            many = "1 run is" if finished == 1 else f"{finished} runs are"
            where = short_path(self.folder.path)
            say(f"sweep: {many} finished already, in {where}; another hydra.sweep.dir= starts anew")
        failed: list[Run] = []
        while waiting:
            left = []
            for name, run in waiting:
                if not self._settled(run, name, failed):
                    left.append((name, run))
            if left and len(left) == len(waiting):
                time.sleep(SECONDS)
            waiting = left
        self._report()
        if not names:
            say_where(self.folder.path)
        if failed:
            names = ", ".join(short_path(run.folder) for run in failed)
            raise RunsFailed(
                f"{len(failed)} of {len(runs)} runs failed, see {children.ERRORS} in {names}; the"
                " same command goes on with them"
            )
        return [self._returned(run) for run in runs]

    def _checked(self, overrides: list[str]) -> DictConfig:
        """A run's configuration, with its node `hydra`; ValueError if it cannot be trained."""
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        known = self.folder.find(overrides)
        with flag_override(config.hydra, ["struct", "readonly"], False):
            # To itself a run is no part of a sweep.
            config.hydra.mode = RunMode.RUN
            config.hydra.job.id = config.hydra.job.num = 0
            config.hydra.runtime.output_dir = str(known or self.folder.path)
        HydraConfig.instance().set_config(config)
        # The check resolves what it is given, and finds checkpoints.
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        try:
            check_settings(own)
        except ValueError as error:
            raise ValueError(f"{error} (in the run {' '.join(overrides)})") from None
        return config

    def _placed(self, overrides: list[str], config: DictConfig) -> Run:
        def name(number: int) -> str:
            with flag_override(config.hydra, ["struct", "readonly"], False):
                config.hydra.job.id = config.hydra.job.num = number
            return str(config.hydra.sweep.subdir)

        folder = self.folder.place(overrides, name)
        return Run(overrides, folder, config)

    def _settled(self, run: Run, name: str, failed: list[Run]) -> bool:
        """Train a run unless it is finished; False while another process trains it."""
        if run.results() is not None:
            return True
        with held(run.folder) as lock:
            if lock is None:
                return False
            # It may have been finished between the two.
            if run.results() is not None:
                return True
            command = children.command([*run.overrides, *self._for_runs()], run.folder)
            verb = "goes on" if command[-2] == "ckpt_path=last" else "starts"
            shown = " ".join(run.overrides)
            say(f"\n{name} {verb} in {short_path(run.folder)}: {shown}")
            try:
                code = children.run(command, run.folder, lock)
            except KeyboardInterrupt:
                where = f"hydra.sweep.dir={short_path(self.folder.path)}"
                raise KeyboardInterrupt(
                    f"interrupted in {name}; to go on: the same command with {where}"
                ) from None
        if run.results() is None:
            say(f"{name} failed with exit code {code}")
            failed.append(run)
        self._report()
        return True

    def _report(self) -> None:
        report(self.folder.path, self.config.optimized_metric)

    def _for_runs(self) -> list[str]:
        """Hydra's settings on the command line, for each run."""
        given = self.config.hydra.overrides.hydra
        return [setting for setting in given if not setting.startswith(OF_THE_SWEEP)]

    def _returned(self, run: Run) -> JobReturn:
        measured = run.results() or {}
        value = as_number(measured.get(run.config.optimized_metric))
        return JobReturn(
            overrides=run.overrides, cfg=run.config, status=JobStatus.COMPLETED, _return_value=value
        )


def is_trained_elsewhere(folder: SweepFolder, overrides: Sequence[str]) -> bool:
    """Whether another process trains the run with these settings."""
    found = folder.find(overrides)
    return found is not None and is_busy(found)
