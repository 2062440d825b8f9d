"""`make plan`, and what a run says that can't be held."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config_helpers import composed
from litmegalodon.planning import settings
from litmegalodon.planning.devices import DEVICES
from litmegalodon.planning.report import report
from litmegalodon.planning.settings import check_memory, check_plan, run_of
from litmegalodon.runs.settings import check_batches, check_mesh, check_settings
from plan import plan, take_fewest
from runs import ENVIRONMENT, command, run

GIB = 2**30
SENTENCE = (
    r"trainer\.devices=(\d): a process needs at least ([\d,.]+) GiB \(parameters ([\d.]+), "
    r"gradients ([\d.]+), optimizer ([\d.]+), activations ([\d,.]+), logits and loss ([\d.]+)\) "
    r"and (.*) has ([\d,.]+); "
    r'make plan( EXP=\w+)? ARGS="trainer\.devices=8" says how many GPUs would do'
)


def refusal(cfg, *arguments) -> re.Match:
    with pytest.raises(ValueError) as error:
        check_memory(cfg, *arguments)
    said = re.fullmatch(SENTENCE, str(error.value))
    assert said is not None, str(error.value)
    return said


def test_a_run_that_this_machine_can_t_hold_is_refused_before_torch_is_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command("train", "experiment=7b")[1:]],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert imports and not any(line.split("|")[-1].strip() == "torch" for line in imports)
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    said = re.fullmatch(SENTENCE, sentence.removeprefix("error: "))
    assert said is not None, sentence
    assert said[10] == " EXP=7b"
    # 7,385,817,088 numbers of four bytes, and twice as many.
    assert (said[3], said[4], said[5]) == ("27.5", "27.5", "55.0")


def test_what_the_processes_of_a_machine_need_together_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "GPU_DRIVERS", ())
    alone = composed("experiment=7b", folder=tmp_path)
    monkeypatch.setattr(settings, "machine_memory", lambda: 4000 * GIB)
    check_memory(alone)
    monkeypatch.setattr(settings, "machine_memory", lambda: 1000 * GIB)
    need = float(refusal(alone)[2].replace(",", ""))
    assert refusal(alone)[8] == "this machine"
    eight = refusal(composed("experiment=7b", "trainer.devices=8", folder=tmp_path))
    assert (eight[8], eight[9]) == ("its part of this machine", "125.0")
    assert float(eight[2]) == pytest.approx(need / 8, rel=0.05)
    many = ("trainer.devices=8", "trainer.num_nodes=32")
    check_memory(composed("experiment=7b", *many, folder=tmp_path))


def test_a_plan_takes_the_fewest_gpus_that_share_a_row_where_none_are_named(tmp_path, capsys):
    cfg = composed("experiment=7b", folder=tmp_path, name="plan")
    take_fewest(cfg, ["experiment=7b"])
    assert cfg.trainer.devices == 2
    assert "trainer.devices=2: as many as share a row" in capsys.readouterr().out
    assert check_mesh(cfg, 2).chunk == 2


def test_a_plan_refuses_one_gpu_where_it_is_named_and_two_share_a_row(tmp_path, capsys):
    typed = ["experiment=7b", "trainer.devices=1"]
    cfg = composed(*typed, folder=tmp_path, name="plan")
    take_fewest(cfg, typed)
    assert cfg.trainer.devices == 1 and not capsys.readouterr().out
    with pytest.raises(ValueError, match=r"chunk_parallel_size=2.* do not make up 1 processes"):
        plan(cfg)


def test_memory_of_a_gpu_is_looked_at_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "GPU_DRIVERS", (str(tmp_path),))
    cfg = composed("experiment=7b", folder=tmp_path)
    # Whether there is one is not certain yet, and how large it is not known.
    check_memory(cfg)
    assert refusal(cfg, 80 * GIB, 1)[8] == "its GPU"
    many = ("trainer.devices=8", "trainer.num_nodes=32")
    check_memory(composed("experiment=7b", *many, folder=tmp_path), 80 * GIB, 8)


def test_a_run_that_trains_nothing_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "machine_memory", lambda: 1)
    check_memory(composed("train=false", folder=tmp_path))
    check_memory(composed("ckpt_path=null", folder=tmp_path, name="eval"))
    with pytest.raises(ValueError, match=r"make plan ARGS=.* says how many"):
        check_settings(composed(folder=tmp_path))


def test_memory_of_this_machine_is_what_it_has():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < settings.machine_memory() <= 1024 * int(lines["MemTotal"].split()[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.device=b300", "plan.device=b300: must be one of a100, h100, mi300x"),
        ("plan.efficiency=0", "plan.efficiency=0: must be a number above 0 and at most 1"),
        ("plan.efficiency=40", "plan.efficiency=40: must be a number above 0"),
        ("plan.links=fast", "plan.links=fast: must be a number above 0"),
        ("trainer.devices=auto", "trainer.devices=auto: a plan is for machines that are not"),
    ],
)
def test_a_plan_s_own_settings_are_checked(override, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_plan(composed(override, folder=tmp_path, name="plan"))


def test_plan_tells_the_paper_s_run_without_data_or_gpus(tmp_path):
    machines = ("trainer.num_nodes=32", "trainer.devices=8")
    done = run("plan", "experiment=7b", *machines, "hydra.run.dir=plan", cwd=tmp_path)
    for sentence in (
        "model: 7,385,817,088 parameters",
        "mesh: 256 x H100 80GB as 1 replicate x 128 data x 2 chunk, 8 to a machine",
        "step: 128 rows of 32,768 tokens, 4,194,304 tokens, bfloat16 products",
        "It fits: ",
        "The smallest mesh that holds these settings: ",
    ):
        assert sentence in done.stdout
    assert (tmp_path / "plan" / "plan.txt").read_text() in done.stdout
    assert (tmp_path / "plan" / "plan.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("experiment=7b", "trainer.devices=3"), "trainer.strategy: "),
        (("trainer.devices=8",), "data.batch_size=2: counts rows over all 8 data-parallel"),
    ],
)
def test_a_plan_s_mesh_has_to_be_possible(arguments, message, tmp_path):
    done = subprocess.run(
        command("plan", *arguments, "hydra.run.dir=plan"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["200m", "1b", "7b"])
def test_the_plan_that_a_refusal_points_to_works(name, tmp_path):
    """But for its imports, which take seconds."""
    cfg = composed(f"experiment={name}", "trainer.devices=8", folder=tmp_path, name="plan")
    degrees = check_mesh(cfg, 8)
    check_batches(cfg, degrees.readers)
    run = run_of(cfg, degrees, 8, triton=True)
    lines = list(report(run, DEVICES["h100"], 0.4, 0.7))
    assert lines[-1].startswith("The smallest mesh that holds these settings: ")
