"""What can be known to be wrong with an evaluation's settings before torch is imported."""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

# What only those use that are not asked for, but for the exceptions.
OF_VALIDATION = ("data.", "trainer.limit_val_batches")
OF_TRAINER = ("data.", "model.", "trainer.", "callbacks", "logger")
EXCEPTIONS = ("data.tokenizer", "trainer.accelerator")
OF_DRAWING = ("seed", "top_k", "top_p", "min_p")
OF_PROMPTS = ("prompt_column", "max_new_tokens", "stop", "temperature", *OF_DRAWING)
# Settings of the group evaluation that are lists, and whether null is a value too.
LISTS = {"paths": False, "tasks": False, "contexts": False, "lengths": True, "distances": True}


def check_evaluation(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Check what is evaluated, and that nothing was asked for that has no effect on it.

    Args:
        cfg: settings of configs/eval.yaml.
        overrides: those on the command line.

    Raises:
        ValueError: a setting's name, its value and the fix.
    """
    typed = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(list(overrides))}
    evaluation = cfg.get("evaluation")
    if cfg.harness.tasks:
        if evaluation:
            raise ValueError(
                "harness.tasks: the harness and evaluation= are two runs; leave one of them out"
            )
        _check_harness(OmegaConf.to_container(cfg.harness, resolve=True), typed)
        return
    for name in typed:
        if name.startswith("harness.") and name != "harness.tasks":
            raise ValueError(f"{name}: has no effect without tasks, as harness.tasks=[hellaswag]")
    if not evaluation:
        return
    _check_kinds(evaluation)
    if evaluation._target_.endswith("LossByPosition"):
        if evaluation.reestimate is True:
            _refuse(typed, ["evaluation.piece"], "evaluation.reestimate: 2 chunks are read at once")
        return
    _refuse(typed, OF_VALIDATION, "an evaluation that reads text of its own")
    if not evaluation._target_.endswith("Files"):
        return
    if evaluation.temperature == 0:
        names = [f"evaluation.{name}" for name in OF_DRAWING]
        _refuse(typed, names, "evaluation.temperature=0, which takes the likeliest token")
    if evaluation.prompts is None:
        _refuse(typed, [f"evaluation.{name}" for name in OF_PROMPTS], "files without prompts")
    elif not evaluation.paths:
        _refuse(typed, ["evaluation.text_column"], "prompts alone")


def _check_kinds(evaluation: DictConfig) -> None:
    stop, target = evaluation.get("stop", ""), evaluation.get("_target_")
    if not isinstance(target, str):
        raise ValueError(
            f"evaluation._target_={target}: must name a class; leave it as evaluation=... has it"
        )
    for name, value in {"stop": stop, "paths": evaluation.get("paths", [])}.items():
        if OmegaConf.is_list(value):
            good = all(isinstance(text, str) for text in value)
        else:
            # Of paths the kind of list is looked at below.
            good = isinstance(value, str) or name == "paths"
        if not good:
            raise ValueError(f"evaluation.{name}={value}: must be a list of texts, as [a,b]")
    for name, may_be_null in LISTS.items():
        value = evaluation.get(name)
        is_good = OmegaConf.is_list(value) or (value is None and may_be_null)
        if name in evaluation and not is_good:
            fix = "leave it out for its default" if value is None else f"write [{value}]"
            given = "null" if value is None else value
            raise ValueError(f"evaluation.{name}={given}: must be a list; {fix}")
    reestimate = evaluation.get("reestimate", False)
    if not isinstance(reestimate, bool):
        raise ValueError(f"evaluation.reestimate={reestimate}: must be true or false")


def _check_harness(harness: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    tasks = harness["tasks"]
    if not isinstance(tasks, list) or not all(isinstance(t, str) and t for t in tasks):
        raise ValueError(f"harness.tasks={tasks}: must be a list of names, as [hellaswag,arc_easy]")
    shots = harness["num_fewshot"]
    numbers = list(shots.values()) if isinstance(shots, dict) else [] if shots is None else [shots]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(
            f"harness.num_fewshot={shots}: must be a whole number, at least 0, or one by task, as"
            " {mmlu: 5}, or null for the tasks' own"
        )
    for name in _typed_shots(typed):
        if name not in tasks:
            raise ValueError(
                f"harness.num_fewshot: {name} is not among harness.tasks={tasks}, by whose names"
                " the numbers go"
            )
    place = harness["include_path"]
    if place is not None and not (isinstance(place, str) and any(Path(place).rglob("*.yaml"))):
        raise ValueError(f"harness.include_path={place}: is no folder that holds a .yaml file")
    processes = os.environ.get("WORLD_SIZE", "1")
    for name in ("trainer.devices", "trainer.num_nodes"):
        if name in typed or processes != "1":
            value = f"{name}={typed[name].value()}" if name in typed else f"WORLD_SIZE={processes}"
            raise ValueError(f"{value}: harness.tasks are asked in one process; leave it out")
    _refuse(typed, OF_TRAINER, "harness.tasks, which are asked of the checkpoint's own model")
    if find_spec("lm_eval") is None:
        raise ValueError(
            "harness.tasks: need lm-evaluation-harness, which is not installed;"
            " pip install 'litmegalodon[eval]'"
        )


def _typed_shots(typed: Mapping[str, Any]) -> list[str]:
    """Tasks that a number of solved examples was typed for."""
    before = "harness.num_fewshot"
    found = [name[len(before) + 1 :] for name in typed if name.startswith(f"{before}.")]
    given = typed[before].value() if before in typed else None
    return [*found, *map(str, given)] if isinstance(given, dict) else found


def _refuse(typed: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    """ValueError for a setting that was typed and begins with one of the names."""
    for name in typed:
        if name.startswith(tuple(names)) and not name.startswith(EXCEPTIONS):
            raise ValueError(f"{name}: has no effect on {what}; leave it out")
