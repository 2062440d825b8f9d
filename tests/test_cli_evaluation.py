"""src/eval.py on text of its own, as a user starts it, with one process and with two."""

import csv
import json
import re
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf

from config_helpers import composed
from eval import evaluate
from litmegalodon.evaluation import Files, Recall
from litmegalodon.evaluation.settings import check_evaluation
from litmegalodon.inference import load_model
from litmegalodon.runs.saved_settings import adopt_settings
from litmegalodon.runs.settings import check_settings
from litmegalodon.utils.command_line import quote_path
from runs import ENVIRONMENT, command, last_checkpoint, run

pytestmark = pytest.mark.slow
ALONE = SimpleNamespace(global_rank=0, world_size=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint of a model that was trained on made texts."""
    folder = tmp_path_factory.mktemp("trained")
    settings = ("data=synthetic", "data.source.task=recall", "data.source.length=60")
    settings += ("data.source.val_documents=37",)
    run(
        "train", "experiment=debug", *settings, "trainer.max_steps=5", "callbacks.report=null",
        "extras.print_config=false", f"hydra.run.dir={folder}", cwd=folder,
    )  # fmt: skip
    return last_checkpoint(folder)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def assert_close(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        for name, value in other.items():
            try:
                assert float(row[name]) == pytest.approx(float(value), rel=1e-5)
            except ValueError:
                assert row[name] == value


def of_the_run(*overrides: str, folder: Path) -> DictConfig:
    """The settings of an evaluation in this process, as src/eval.py gets them."""
    cfg = composed(*overrides, folder=folder, name="eval")
    typed = list(map(quote_path, overrides))
    check_evaluation(cfg, typed)
    adopt_settings(cfg, typed)
    check_settings(cfg)
    return cfg


def test_two_processes_measure_and_write_what_one_does(trained, tmp_path):
    # Five documents of one file on two processes, two at a time: one is left without at the end.
    lines = [{"text": "ab c" * n} for n in (1, 9, 30, 4, 2)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "p.txt").write_text("one\ntwo words\nthree\n")
    settings = {"batch_size": 2, "piece": 16, "max_new_tokens": 8, "temperature": 0}
    typed = [f"evaluation.{name}={value}" for name, value in settings.items()]
    given = ("evaluation.paths=[x.jsonl]", "evaluation.prompts=p.txt")
    done = run(
        "eval", f"ckpt_path={trained}", "evaluation=files", *given, *typed, "trainer.devices=2",
        "extras.print_config=false", "hydra.run.dir=two", cwd=tmp_path,
    )  # fmt: skip
    model, tokenizer = load_model(trained, "cpu")
    paths = {"paths": [str(tmp_path / "x.jsonl")], "prompts": str(tmp_path / "p.txt")}
    one = Files(str(tmp_path / "one"), **paths, **settings)
    for batch in one.loader(tokenizer, ALONE):
        one.read(model, batch)
    metrics = one.results(is_main=True)
    expected = table(tmp_path / "one" / "files.csv")
    expected[0]["file"] = "x.jsonl"
    assert_close(table(tmp_path / "two" / "files.csv"), expected)
    texts = [(tmp_path / name / "generations.jsonl").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]
    said = float(re.search(r"^files/bits_per_byte +(\S+)$", done.stdout, re.MULTILINE)[1])
    assert said == pytest.approx(float(metrics["files/bits_per_byte"]), rel=1e-5)


def test_two_processes_ask_what_one_does_of_a_model_trained_on_made_texts(trained, tmp_path):
    settings = {"samples": 5, "batch_size": 2, "piece": 32}
    typed = [f"evaluation.{name}={value}" for name, value in settings.items()]
    run(
        "eval", f"ckpt_path={trained}", "evaluation=recall", *typed, "trainer.devices=2",
        "evaluation.lengths=[64,128]", "extras.print_config=false", "hydra.run.dir=two",
        cwd=tmp_path,
    )  # fmt: skip
    model, tokenizer = load_model(trained, "cpu")
    one = Recall(str(tmp_path / "one"), lengths=[64, 128], seed=1, **settings)
    for batch in one.loader(tokenizer, ALONE):
        one.read(model, batch)
    one.results(is_main=True)
    assert_close(table(tmp_path / "two" / "recall.csv"), table(tmp_path / "one" / "recall.csv"))


def test_two_processes_validate_and_read_by_position_as_one_does(trained, tmp_path):
    # The last batch of rows is smaller than the others, and one process has a document more.
    overrides = (
        f"ckpt_path={trained}", "evaluation=context", "evaluation.contexts=[1]",
        "data.val_batch_size=8", "trainer.limit_val_batches=1.0",
        "evaluation.piece=1",
    )  # fmt: skip
    more = ("trainer.devices=2", "extras.print_config=false", "hydra.run.dir=two")
    done = run("eval", *overrides, *more, cwd=tmp_path)
    cfg = of_the_run(*overrides, folder=tmp_path)
    for name, value in evaluate(cfg).items():
        said = re.search(rf"^{name} +(\S+)$", done.stdout, re.MULTILINE)[1]
        expected = value if isinstance(value, str) else format(value, ".6g")
        assert said == expected or float(said) == pytest.approx(value, rel=1e-5), name
    for name in ("context.csv", "context.png"):
        assert f"written: two/{name}\n" in done.stdout
    assert_close(table(tmp_path / "two" / "context.csv"), table(tmp_path / "run" / "context.csv"))


def test_ctrl_c_leaves_no_table(trained, tmp_path, monkeypatch):
    overrides = [f"ckpt_path={trained}", "evaluation=recall", "evaluation.lengths=[128]"]
    cfg = of_the_run(*overrides, folder=tmp_path)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recall, "read", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt, match="there is none"):
            evaluate(cfg)
    finally:
        # Lightning has ignored it while it shut down.
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.rglob("recall.*"))


def test_ctrl_c_ends_an_evaluation_in_a_sentence_with_130(trained, tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(400):
        (tmp_path / "text" / f"{i}.py").write_text(f"{i}\n" * 2000)
    process = subprocess.Popen(
        command(
            "eval", f"ckpt_path={trained}", "data=stdlib", f"data.source.root={tmp_path}/text",
            "data.source.validation_fraction=0.9", "data.val_batch_size=1",
            "trainer.limit_val_batches=1.0", "extras.print_config=false", "hydra.run.dir=run",
        ),
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if "Loaded model weights" in line:
            process.send_signal(signal.SIGINT)
            break
    said = "".join(said) + process.communicate(timeout=100)[0]
    assert process.returncode == 130, said
    assert said.endswith("\ninterrupted\n")
    assert "Traceback" not in said


def test_a_checkpoint_of_another_tokenizer_is_refused(trained, tmp_path):
    cfg = composed("evaluation=recall", f"ckpt_path={trained}", folder=tmp_path, name="eval")
    other = {"_target_": "types.SimpleNamespace", "fingerprint": "other"}
    OmegaConf.update(cfg, "data.tokenizer", other, merge=False)
    message = r"^data\.tokenizer\.fingerprint=other: the checkpoint was trained with bytes"
    for tasks in ([], ["toy"]):
        cfg.harness.tasks = tasks
        with pytest.raises(ValueError, match=message):
            evaluate(cfg)


def test_the_harness_is_asked_of_a_checkpoint(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"text": "river mill"}\n{"text": "boat"}\n')
    (tmp_path / "toy.yaml").write_text(
        "task: toy\ndataset_path: json\ntest_split: test\noutput_type: loglikelihood_rolling\n"
        "dataset_kwargs: {data_files: {test: test.jsonl}, cache_dir: cache}\n"
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: bits_per_byte}]\n'
    )
    overrides = ("harness.tasks=[toy]", f"ckpt_path={trained}", "harness.include_path=.")
    cfg = of_the_run(*overrides, folder=tmp_path)
    assert evaluate(cfg) == {}
    found = json.loads((tmp_path / "run" / "harness.json").read_text())
    assert found["complete"] and found["finished"] == ["toy"]
    value = found["results"]["toy"]["bits_per_byte,none"]
    assert f"{value:.4f}" in capsys.readouterr().out
