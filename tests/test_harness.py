"""lm-evaluation-harness with a model of ours, on local task files, without a network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference_helpers import EOS, TOKENIZER, byte_model, reader, text_of
from litmegalodon.evaluation import Harness
from litmegalodon.models import Megalodon
from test_shared_reading import alone, opened

# Importing the harness takes seconds.
pytestmark = pytest.mark.slow
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/test.jsonl, train: {folder}/train.jsonl}}
  cache_dir: {folder}/cache
training_split: train
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
metadata: {{version: 1.0}}
{more}
"""
CHOICE = """
num_fewshot: 2
doc_to_choice: "{{choices}}"
fewshot_config: {sampler: first_n}
metric_list: [{metric: acc}]
"""
WRITING = """
generation_kwargs: {until: ["q"], max_gen_toks: 40, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def model() -> Megalodon:
    return byte_model(torch.float32)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with a task of each kind and its data."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, count in (("train", 3), ("test", 5)):
        rows = [
            {
                "question": text_of(20 + 9 * i, seed=i).decode(),
                "choices": ["a", "bcd", "efghij"],
                "label": i % 3,
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    rolling = "metric_list: [{metric: bits_per_byte}]"
    for name, kind, text, target, more in (
        ("toy_choice", "multiple_choice", "{{question}}:", "label", CHOICE),
        ("toy_rolling", "loglikelihood_rolling", "", "{{question}}", rolling),
        ("toy_writing", "generate_until", "{{question}}", "{{choices[0]}}", WRITING),
    ):
        text = TASK.format(name=name, kind=kind, text=text, target=target, more=more, folder=folder)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def asked_of(model: Megalodon, **settings: Any) -> Any:
    from litmegalodon.evaluation import HarnessModel

    return HarnessModel(model, TOKENIZER, **settings)


def ask(kind: str, *arguments: tuple) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def tokens(text: str) -> np.ndarray:
    return TOKENIZER.encode(text)


def test_loglikelihoods_are_those_of_one_call(model):
    pairs = [("some context", " and more"), ("some context", "x"), ("", "text"), ("a ", "b")]
    found = asked_of(model).loglikelihood(ask("loglikelihood", *pairs))
    for (context, text), (nats, is_greedy) in zip(pairs, found, strict=True):
        expected = alone(model, opened(tokens(context)), tokens(text))
        # A space at the end of a context belongs to what follows.
        if context.endswith(" "):
            expected = alone(model, opened(tokens(context[:-1])), tokens(f" {text}"))
        assert nats == pytest.approx(expected[0], rel=1e-5)
        assert is_greedy == expected[1]


def test_a_rolling_likelihood_is_of_every_token_after_all_before(model):
    texts = [text_of(n, seed=n).decode() for n in (3, 700, 90)]
    asked = asked_of(model, batch_size=2, piece_tokens=64)
    found = asked.loglikelihood_rolling(ask("loglikelihood_rolling", *((t,) for t in texts)))
    for text, nats in zip(texts, found, strict=True):
        assert nats == pytest.approx(alone(model, opened(), tokens(text))[0], rel=1e-5)
    # BOS once; the last token of a text is predicted and not read.
    assert asked.tokens_read == 1 + sum(len(text) - 1 for text in texts)


def test_texts_are_those_of_generating_alone_up_to_the_stop(model):
    contexts = [text_of(n, seed=n).decode() for n in (5, 31, 80)] + [""]
    whole = ["".join(reader(model, c).generate(30, temperature=0)) for c in contexts]
    stop = whole[1][10:12]
    requests = [(c, {"until": [stop, ""], "max_gen_toks": 30}) for c in contexts]
    asked = asked_of(model, batch_size=3)
    found = asked.generate_until(ask("generate_until", *requests))
    assert found == [text.partition(stop)[0] for text in whole]
    assert len(found[1]) <= 10


def test_a_text_ends_with_its_document(model):
    ending = byte_model(torch.float32)
    with torch.no_grad():
        ending.output.output.weight[EOS] = 50 * ending.output.output.weight.abs().max()
    asked = asked_of(ending)
    found = asked.generate_until(ask("generate_until", ("abc", {"until": []}), ("", {})))
    ends = [len("".join(reader(ending, c).generate(256, temperature=0))) for c in ("abc", "")]
    assert [len(text) for text in found] == ends
    assert min(ends) < 256


def test_repeats_of_what_is_drawn_at_random_differ(model):
    asked = asked_of(model)
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 20}
    found = asked.generate_until(ask("generate_until", *[("abc", settings)] * 3))
    assert len(set(found)) == 3
    with pytest.raises(ValueError, match="penalty_alpha=2 is not known here"):
        asked.generate_until(ask("generate_until", ("a", {"penalty_alpha": 2})))


def test_local_tasks_of_every_kind_give_a_table_and_a_file(model, tasks, tmp_path, capsys):
    names = ["toy_choice", "toy_rolling", str(tasks / "toy_writing.yaml")]
    harness = Harness(
        str(tmp_path), names, include_path=str(tasks), limit=4, num_fewshot={"toy_choice": 1},
        reported={"toy_choice": {"metric": "acc", "somebody": 0.5}},
    )  # fmt: skip
    metrics = harness.run(asked_of(model))
    said = capsys.readouterr().out
    saved = json.loads((tmp_path / "harness.json").read_text())
    assert saved["complete"] and saved["finished"] == names
    assert saved["n-samples"]["toy_choice"] == {"original": 5, "effective": 4}
    assert saved["n-shot"]["toy_choice"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["harness.json"]
    for name in ("toy_choice", "toy_rolling", "toy_writing", "±"):
        assert name in said
    assert "toy_choice acc: " in said and "reported: somebody 0.5" in said

    rows = [json.loads(line) for line in (tasks / "test.jsonl").read_text().splitlines()][:4]
    nats = sum(alone(model, opened(), tokens(row["question"]))[0] for row in rows)
    size = sum(len(row["question"]) for row in rows)
    expected = -nats / size / np.log(2)
    assert metrics["toy_rolling/bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    shot = json.loads((tasks / "train.jsonl").read_text().splitlines()[0])
    prefix = f"{shot['question']}: {shot['choices'][shot['label']]}\n\n"
    right = 0
    for row in rows:
        context = opened(tokens(f"{prefix}{row['question']}:"))
        scores = [alone(model, context, tokens(f" {c}"))[0] for c in row["choices"]]
        right += int(np.argmax(scores)) == row["label"]
    assert metrics["toy_choice/acc"] == right / 4


def test_a_task_that_may_show_a_question_solved_before_itself_is_told(
    model, tasks, tmp_path, capsys
):
    text = (tasks / "toy_writing.yaml").read_text().replace("training_split: train\n", "")
    for name, more in (("bare", ""), ("named", "fewshot_split: test")):
        (tmp_path / f"{name}.yaml").write_text(text.replace("toy_writing", name) + more)
    harness = Harness(str(tmp_path), ["bare", "named"], str(tmp_path), limit=1, num_fewshot=1)
    harness.run(asked_of(model))
    told = [s for s in capsys.readouterr().out.splitlines() if "may be the very question" in s]
    assert [line.partition(":")[0] for line in told] == ["bare"]


def test_an_interrupt_leaves_what_is_finished_and_says_so(model, tasks, tmp_path):
    harness = Harness(str(tmp_path), ["toy_rolling", "toy_writing"], str(tasks), limit=2)
    asked = asked_of(model)

    def interrupted(requests):
        raise KeyboardInterrupt

    asked.generate_until = interrupted
    with pytest.raises(KeyboardInterrupt, match=r"in toy_writing; .*complete: false.*toy_rolling"):
        harness.run(asked)
    saved = json.loads((tmp_path / "harness.json").read_text())
    assert (saved["complete"], saved["finished"]) == (False, ["toy_rolling"])
    assert list(saved["results"]) == ["toy_rolling"]


def test_a_wrong_name_is_told_the_nearest_and_missing_data_ends_in_a_sentence(
    tasks, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match=r"^harness\.tasks=\[toy_choise\]: .* toy_choice"):
        Harness(str(tmp_path), ["toy_choise"], str(tasks))
    with pytest.raises(ValueError, match=r"^harness\.tasks=\[no\.yaml\]: there is no such file"):
        Harness(str(tmp_path), ["no.yaml"], str(tasks))
    # What datasets says without a connection.
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "far.yaml").write_text(
        (tasks / "toy_rolling.yaml").read_text().replace("path: json", "path: nobody/nothing")
    )
    with pytest.raises(ValueError, match=r"far\.yaml\]: can't be loaded \(.*nobody/nothing.*fetch"):
        Harness(str(tmp_path), [str(tmp_path / "far.yaml")])
