"""Optuna's search for the best settings, kept in a database: it goes on where it was stopped."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from litmegalodon.sweeps.launching import RunsFailed, Sweep, is_trained_elsewhere
from litmegalodon.sweeps.report import say_where
from litmegalodon.utils.printing import say, short_path

SQLITE = "sqlite:///"
# After which a trial without settings is one of a process that is gone.
SECONDS = 60
# What a study was made for, among its attributes.
SETTINGS = "settings"


def search(
    sweep: Sweep,
    arguments: Sequence[str],
    sampler: Any,
    direction: Any,
    storage: str | None,
    study_name: str | None,
    n_trials: int,
    n_jobs: int,
    params: Mapping[str, str] | None,
    search_space: Any = None,
    custom_search_space: Any = None,
) -> None:
    """Run trials until there are `n_trials`, those of earlier calls included.

    A trial that was interrupted goes on, from its own checkpoint; one that failed counts and stays.
    Several processes may work on one study.

    Args:
        sweep: trains a trial's settings.
        arguments: of the command line; those that name several values or an interval are searched,
            as are `params`.
        sampler, direction, storage, study_name: as Optuna has them.

    Raises:
        ValueError: a setting that cannot be followed, or a study that was made with other settings.
    """
    import optuna
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
    from optuna.trial import Trial, TrialState

    if search_space or custom_search_space:
        raise ValueError("hydra.sweeper.search_space: say what to search in hydra.sweeper.params")
    if n_jobs != 1:
        raise ValueError(
            f"hydra.sweeper.n_jobs={n_jobs}: one process trains one trial at a time; start the same"
            " command once more for another one beside it"
        )
    if not (storage and study_name):
        raise ValueError(
            f"hydra.sweeper.storage={storage}, hydra.sweeper.study_name={study_name}: both are"
            " needed to go on after an interruption; hparams_search=optuna sets them"
        )
    fixed: dict[str, str] = {}
    searched: dict[str, Any] = {}
    for argument in [*(f"{name}={value}" for name, value in (params or {}).items()), *arguments]:
        distributions, values = create_params_from_overrides([argument])
        for name in {**distributions, **values}:
            fixed.pop(name, None), searched.pop(name, None)
        searched |= distributions
        fixed |= {name: argument for name in values}
    if storage.startswith(SQLITE):
        Path(storage.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    study = optuna.create_study(
        study_name=study_name,
        storage=storage,
        sampler=sampler,
        direction=getattr(direction, "name", direction),
        load_if_exists=True,
    )
    _check_same(study, {"fixed": sorted(fixed.values()), "searched": _texts(searched)})
    if study.trials:
        # A seed would draw the first trials' settings again.
        study.sampler.reseed_rng()
        finished = sum(trial.state.is_finished() for trial in study.trials)
        say(f"study {study_name}: {finished} of {n_trials} trials are there already")

    def settings(trial: Any) -> list[str]:
        return [*fixed.values(), *(f"{name}={trial.params[name]}" for name in searched)]

    def run(trial: Trial) -> None:
        for name, distribution in searched.items():
            trial._suggest(name, distribution)
        try:
            name = f"trial {trial.number + 1} of {n_trials}"
            (returned,) = sweep.launch([settings(trial)], [name])
            value = float(returned.return_value)
        except RunsFailed as error:
            say(str(error))
            value = float("nan")
        if study.trials[trial.number].state.is_finished():
            # Another process has waited for the same run.
            return
        # A run that diverged has no value to learn from.
        failed = value != value
        study.tell(
            trial.number,
            None if failed else value,
            TrialState.FAIL if failed else TrialState.COMPLETE,
        )

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if set(trial.params) != set(searched):
            # Interrupted before it had settings; a young one may be another process's.
            begun = trial.datetime_start
            if begun and (datetime.now() - begun).total_seconds() > SECONDS:
                study.tell(trial.number, state=TrialState.FAIL)
        elif not is_trained_elsewhere(sweep.folder, settings(trial)):
            say(f"study {study_name}: trial {trial.number + 1} was interrupted and goes on")
            run(Trial(study, trial._trial_id))
    while len(study.trials) < n_trials:
        run(study.ask())
    say_where(sweep.folder.path)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if complete:
        best = study.best_trial
        chosen = " ".join(f"{name}={value}" for name, value in best.params.items())
        say(f"study {study_name}: best {best.value:.4f} of {len(complete)} trials with {chosen}")
    say(f"study {study_name}: {short_path(Path(storage.removeprefix(SQLITE)))}")


def _check_same(study: Any, made_for: dict[str, Any]) -> None:
    """Refuse a study of other settings: values of different questions cannot be compared."""
    before = study.user_attrs.get(SETTINGS)
    if before is None:
        study.set_user_attr(SETTINGS, made_for)
    elif before != made_for:
        differing = [
            f"{value} ({'then' if value in before[kind] else 'now'})"
            for kind in made_for
            for value in [*before[kind], *made_for[kind]]
            if (value in before[kind]) != (value in made_for[kind])
        ]
        raise ValueError(
            f"hydra.sweeper.study_name={study.study_name}: was made with other settings:"
            f" {', '.join(differing)}; give this search another name"
        )


def _texts(searched: Mapping[str, Any]) -> list[str]:
    return sorted(f"{name} in {distribution}" for name, distribution in searched.items())
