"""Tasks of lm-evaluation-harness, one after the other, on one model in one process.

Results are written after every task, so that what is finished survives an interrupt.
"""

import json
import logging
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from litmegalodon.utils.printing import say, short_path

FILE = "harness.json"
# What is kept of the harness's results for each task.
PARTS = ("results", "groups", "group_subtasks", "n-shot", "versions", "n-samples", "samples")


class Harness:
    """Tasks to run, loaded before any model is.

    Args:
        dirpath: gets harness.json.
        tasks, include_path, num_fewshot, limit, bootstrap_iters, log_samples, reported: see
            configs/harness/default.yaml.
        seed: of solved examples and of what is drawn at random.

    Raises:
        ValueError: there is no such task, or its data can't be had.
    """

    def __init__(
        self,
        dirpath: str,
        tasks: Sequence[str],
        include_path: str | None = None,
        num_fewshot: int | Mapping[str, int] | None = None,
        limit: int | None = None,
        bootstrap_iters: int = 1000,
        log_samples: bool = False,
        reported: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        logging.getLogger("lm_eval.api.task").addFilter(_is_news)
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        self.path, self.seed = Path(dirpath) / FILE, seed
        self.num_fewshot, self.limit = num_fewshot, limit
        self.bootstrap_iters, self.log_samples = bootstrap_iters, log_samples
        self.reported = reported or {}
        for task in tasks:
            if task.endswith((".yaml", ".yml")) and not Path(task).is_file():
                raise ValueError(f"harness.tasks=[{task}]: there is no such file")
        manager = _manager(tasks, include_path)
        for task in tasks:
            _check_known(task, manager.all_tasks, include_path)
        # By the name that was asked for: its tasks and groups.
        self.tasks = {task: _load(task, manager.load) for task in tasks}

    def run(self, model: Any) -> dict[str, float]:
        """Ask a `HarnessModel`, print a table for every task; metrics by task and name.

        Raises:
            KeyboardInterrupt: with what was finished in its message.
        """
        from lm_eval.utils import make_table

        found: dict[str, Any] = {"complete": False, "finished": []}
        self._write(found)
        for name, loaded in self.tasks.items():
            try:
                results = self._ask(model, loaded, name)
            except KeyboardInterrupt:
                finished = ", ".join(found["finished"]) or "no task"
                raise KeyboardInterrupt(
                    f"interrupted in {name}; {short_path(self.path)} says complete: false and"
                    f" holds {finished}"
                ) from None
            for part in PARTS:
                if part in results:
                    found.setdefault(part, {}).update(results[part])
            found["finished"].append(name)
            found["tokens_read"] = model.tokens_read
            self._write(found)
            say(make_table(results) + (make_table(results, "groups") if results["groups"] else ""))
        found["complete"] = True
        self._write(found)
        self._compare(found["results"] | found["groups"])
        say(f"written: {short_path(self.path)}")
        return {
            f"{task}/{metric.removesuffix(',none')}": value
            for task, metrics in found["results"].items()
            for metric, value in metrics.items()
            if isinstance(value, float)
        }

    def _ask(self, model: Any, loaded: Any, name: str) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate

        shots = self.num_fewshot
        if isinstance(shots, Mapping):
            shots = shots.get(name)
        for part, task in loaded["tasks"].items():
            own = task.get_config("num_fewshot")
            if shots and own == 0:
                # As in the harness: such a task has no solved examples to show.
                say(f"{part}: is 0-shot by its task file; harness.num_fewshot has no effect on it")
            else:
                number = own if shots is None else shots
                task.set_config(key="num_fewshot", value=number or 0)
                if number and _may_show_the_answer(task):
                    say(
                        f"{part}: solved examples are drawn from the questions that are asked, and"
                        " may be the very question that follows; name others in its task file with"
                        " training_split or fewshot_split"
                    )
            task.set_fewshot_seed(seed=self.seed)
        random.seed(self.seed)
        np.random.seed(self.seed)
        results = evaluate(
            model,
            loaded,
            limit=self.limit,
            bootstrap_iters=self.bootstrap_iters,
            log_samples=self.log_samples,
        )
        return {"groups": {}, **results}

    def _write(self, found: Mapping[str, Any]) -> None:
        from lm_eval.utils import handle_non_serializable

        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        text = json.dumps(found, indent=2, default=handle_non_serializable, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, self.path)

    def _compare(self, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Print what others report beside what was found."""
        for task in self.tasks:
            others = dict(self.reported.get(task, {}))
            metric = others.pop("metric", None)
            if not others or task not in results:
                continue
            found = [v for n, v in results[task].items() if n.partition(",")[0] == metric]
            ours = f"{found[0]:.4g}" if found else "not given as one number"
            told = ", ".join(f"{whose} {number:g}" for whose, number in others.items())
            say(f"{task} {metric or ''}: {ours}; reported: {told}")


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a warning is more than that a metric is summed up in the usual way."""
    return "using default" not in record.getMessage()


def _may_show_the_answer(task: Any) -> bool:
    """Whether solved examples are from the split that is asked, a question's own not left out."""
    own = getattr(task, "fewshot_cfg", None)
    if own is None or (own.samples is not None and own.split is None):
        return False
    if own.split is not None:
        # The harness leaves a question's own out where its split is named as test_split.
        return not task.has_test_docs() and own.split == task.config.validation_split
    if task.has_training_docs():
        return False
    return task.has_validation_docs() != task.has_test_docs()


def _manager(tasks: Sequence[str], include_path: str | None) -> Any:
    """What finds tasks: among a user's own, which are few, if all are there, else everywhere."""
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=include_path, include_defaults=False)
    # A group may consist of tasks from elsewhere.
    known = {*own.all_tasks} - {*own.all_groups}
    if all(task in known or Path(task).is_file() for task in tasks):
        return own
    return TaskManager(include_path=include_path)


def _check_known(task: str, known: Sequence[str], include_path: str | None) -> None:
    if task in known or Path(task).is_file():
        return
    near = get_close_matches(task, known, 3, 0.4)
    where = f" nor in harness.include_path={include_path}" if include_path else ""
    hint = f"; near it are {', '.join(near)}" if near else "; `lm-eval ls tasks` lists them"
    raise ValueError(
        f"harness.tasks=[{task}]: there is no such task in lm-evaluation-harness{where}{hint}"
    )


def _load(task: str, load: Callable[[list[str]], Any]) -> Any:
    try:
        return load([task])
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"harness.tasks=[{task}]: can't be loaded ({said[:300]}); data sets of the Hub are"
            " fetched once with a connection, a task file of your own names local files"
        ) from error
