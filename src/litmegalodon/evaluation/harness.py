"""Tasks of lm-evaluation-harness, one after the other, on one model in one process.

Results are written after every task, so that what is finished survives an interrupt.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

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
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.path, self.seed = Path(dirpath) / FILE, seed
        self.num_fewshot, self.limit = num_fewshot, limit
        self.bootstrap_iters, self.log_samples = bootstrap_iters, log_samples
        self.reported = reported or {}
        manager = TaskManager(include_path=include_path)
        for task in tasks:
            _check_known(task, manager.all_tasks, include_path)
        # By the name that was asked for: what `simple_evaluate` takes for it.
        self.tasks = {task: _load(task, manager.load) for task in tasks}

    def run(self, model: Any) -> dict[str, float]:
        """Ask a `HarnessModel`, print a table for every task; metrics by task and name.

        Raises:
            KeyboardInterrupt: with what was finished in its message.
        """
        from lm_eval.utils import make_table

        found: dict[str, Any] = {"complete": False, "finished": []}
        self._write(found)
        for name, task in self.tasks.items():
            try:
                results = self._ask(model, task, name)
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
        self._compare(found["results"])
        return {
            f"{task}/{metric.removesuffix(',none')}": value
            for task, metrics in found["results"].items()
            for metric, value in metrics.items()
            if isinstance(value, float)
        }

    def _ask(self, model: Any, task: list[Any], name: str) -> dict[str, Any]:
        from lm_eval import simple_evaluate

        shots = self.num_fewshot
        if isinstance(shots, Mapping):
            shots = shots.get(name)
        results = simple_evaluate(
            model,
            tasks=task,
            num_fewshot=shots,
            limit=self.limit,
            bootstrap_iters=self.bootstrap_iters,
            log_samples=self.log_samples,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
            fewshot_random_seed=self.seed,
        )
        results.setdefault("groups", {})
        for part, number in results["n-shot"].items():
            if shots is not None and number != shots:
                say(f"{part}: is {number}-shot by its task file; num_fewshot has no effect on it")
        return results

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


def _check_known(task: str, known: Sequence[str], include_path: str | None) -> None:
    if task in known:
        return
    if task.endswith((".yaml", ".yml")):
        if Path(task).is_file():
            return
        raise ValueError(f"harness.tasks=[{task}]: there is no such file")
    near = get_close_matches(task, known, 3, 0.4)
    where = f" nor in harness.include_path={include_path}" if include_path else ""
    hint = f"; near it are {', '.join(near)}" if near else "; `lm-eval ls tasks` lists them"
    raise ValueError(
        f"harness.tasks=[{task}]: there is no such task in lm-evaluation-harness{where}{hint}"
    )


def _load(task: str, load: Callable[[list[str]], Any]) -> list[Any]:
    try:
        loaded = load([task])
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"harness.tasks=[{task}]: can't be loaded ({said[:300]}); data sets of the Hub are"
            " fetched once with a connection, a task file of your own names local files"
        ) from error
    groups = loaded.get("groups") or {}
    return [groups[task]] if task in groups else list(loaded["tasks"].values())
