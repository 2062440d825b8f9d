"""Settings of an evaluation that can't be, or would have no effect, are refused at once."""

from pathlib import Path

import pytest

from config_helpers import composed
from litmegalodon.evaluation import settings
from litmegalodon.evaluation.settings import check_evaluation
from litmegalodon.runs.settings import check_values

TASKS = "harness.tasks=[hellaswag]"
FILES = "evaluation=files"
REFUSED = {
    "harness.limit=5": "harness.limit: has no effect without tasks",
    f"{TASKS} evaluation=recall": "harness.tasks: the harness and evaluation= are two runs",
    f"{TASKS} data.seq_len=5": "data.seq_len: has no effect on harness.tasks",
    f"{TASKS} trainer.precision=bf16-mixed": "trainer.precision: has no effect on harness.tasks",
    f"{TASKS} trainer.devices=2": "trainer.devices=2: harness.tasks are asked in one process",
    f"{TASKS} harness.num_fewshot=-1": "harness.num_fewshot=-1: must be a whole number",
    f"{TASKS} harness.num_fewshot={{arc_easy:1}}": "harness.num_fewshot: arc_easy is not among",
    f"{FILES} evaluation.prompts=a evaluation.temperature=0 evaluation.top_p=0.5": (
        "evaluation.top_p: has no effect on evaluation.temperature=0"
    ),
    f"{TASKS} harness.include_path=nowhere": "harness.include_path=nowhere: is no folder",
    "harness.tasks=hellaswag": "harness.tasks=hellaswag: must be a list of names",
    "evaluation=recall data.seq_len=5": "data.seq_len: has no effect on an evaluation that reads",
    f"{FILES} trainer.limit_val_batches=5": "trainer.limit_val_batches: has no effect on an eval",
    f"{FILES} evaluation.paths=[a.txt] evaluation.top_k=2": "evaluation.top_k: has no effect on f",
    f"{FILES} evaluation.paths=[a.txt] evaluation.seed=2": "evaluation.seed: has no effect on f",
    f"{FILES} evaluation.paths=a.txt": "evaluation.paths=a.txt: must be a list; write [a.txt]",
    "evaluation=context evaluation.contexts=null": "evaluation.contexts=null: must be a list; le",
    "evaluation=recall evaluation.lengths=64": "evaluation.lengths=64: must be a list; write [64]",
    "evaluation=context evaluation.reestimate=1": "evaluation.reestimate=1: must be true or false",
    "evaluation=context evaluation.reestimate=true evaluation.piece=4": (
        "evaluation.piece: has no effect on evaluation.reestimate"
    ),
    f"{FILES} evaluation.prompts=a evaluation.text_column=b": "evaluation.text_column: has no eff",
}


def check(arguments: str, folder: Path) -> None:
    cfg = composed(*arguments.split(), "ckpt_path=null", folder=folder, name="eval")
    check_evaluation(cfg, arguments.split())
    check_values(cfg)


@pytest.mark.parametrize("arguments", REFUSED)
def test_a_setting_that_cannot_be_or_has_no_effect_is_refused(arguments, tmp_path):
    with pytest.raises(
        ValueError, match="^" + REFUSED[arguments].translate({91: r"\[", 93: r"\]"})
    ):
        check(arguments, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("limit", "0", "must be a whole number, at least 1"),
        ("batch_size", "1.5", "must be a whole number, at least 1"),
        ("dtype", "int8", "must be float32, bfloat16 or float64"),
        ("log_samples", "1", "must be true or false"),
    ],
)
def test_values_of_the_harness_are_checked(name, value, rule, tmp_path):
    with pytest.raises(ValueError, match=rf"^harness\.{name}={value}: {rule}"):
        check(f"{TASKS} harness.{name}={value}", tmp_path)


def test_settings_with_an_effect_pass(tmp_path):
    for arguments in (
        "",
        f"{TASKS} trainer.accelerator=cpu data.tokenizer=bytes harness.limit=5",
        "harness=paper harness.num_fewshot={mmlu:0}",
        "evaluation=context data.val_batch_size=2 evaluation.piece=4",
        f"{FILES} evaluation.paths=[a.txt] trainer.devices=2",
        f"{FILES} evaluation.prompts=a.txt evaluation.temperature=0",
    ):
        check(arguments, tmp_path)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'litmegalodon\[eval\]'$"):
        check(TASKS, tmp_path)
