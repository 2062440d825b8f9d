"""A plan agrees with the real sharding at any size, and with what 2 x 2 processes measure.

The processes' work is in plan_processes.py, which runs once.
"""

import dataclasses
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from config_helpers import composed
from litmegalodon.models import MegalodonConfig
from litmegalodon.parallel.mesh import Degrees
from litmegalodon.planning import sizes
from litmegalodon.planning.devices import DEVICES, Device
from litmegalodon.planning.picture import LENGTHS, Llama, at, draw, exchange
from litmegalodon.planning.plan import Run
from litmegalodon.planning.report import report
from litmegalodon.planning.sharded import elements
from plan_processes import CASES, CONFIG, LENGTH, ROWS, Case
from runs import ENVIRONMENT, ROOT

SMALL = replace(CONFIG, swiglu=False)


def experiment(name: str, folder: Path) -> MegalodonConfig:
    return instantiate(composed(f"experiment={name}", folder=folder).model.config)


def paper_s_run(folder: Path, **changes) -> Run:
    run = Run(experiment("7b", folder), Degrees(1, 128, 2), 128, 2**15)
    changes = {"checkpointing": True, "bf16": True, "triton": True, "machine": 8} | changes
    return dataclasses.replace(run, **changes)


@pytest.mark.parametrize(
    "degrees",
    [
        Degrees(1, 1, 1),
        Degrees(1, 2, 2),
        Degrees(1, 7, 1),
        Degrees(2, 4, 4),
        Degrees(1, 32, 8),
    ],
    ids=lambda degrees: "x".join(map(str, degrees)),
)
def test_shares_are_those_of_the_real_sharding(degrees):
    run = Run(SMALL, degrees, 1, 128)
    assert run.elements == elements(SMALL, degrees)
    halved = dataclasses.replace(run, bf16_parameters=True)
    assert halved.elements == elements(SMALL, degrees, bf16_parameters=True)


@pytest.mark.parametrize("degrees", [Degrees(1, 2, 2), Degrees(1, 8, 8), Degrees(2, 2, 4)])
def test_the_largest_share_of_200m_is_total_over_data_and_chunk(degrees, tmp_path):
    config = experiment("200m", tmp_path)
    held = elements(config, degrees).held
    memory = Run(config, degrees, 8, 8192, measured=elements(config, degrees)).memory()
    got = memory["parameters"] + memory["gradients"] + memory["optimizer"]
    # Four float32 numbers for each parameter.
    want = 16 * sizes.parameters(config) / (degrees.data * degrees.chunk)
    assert got == 16 * held == pytest.approx(want, rel=0.02)


def test_a_message_at_7b_is_512_5_kib(tmp_path):
    run = paper_s_run(tmp_path)
    assert sum(sizes.message(run.config, 1)) == 512.5 * 1024
    # However long the rows are.
    twice = dataclasses.replace(run, length=2 * run.length)
    assert exchange(twice) == exchange(run)


def test_the_paper_s_run_fits_its_gpus_with_checkpointing_alone(tmp_path):
    run = paper_s_run(tmp_path)
    assert run.fits(DEVICES["a100"])
    assert not dataclasses.replace(run, checkpointing=False).fits(DEVICES["h100"])


def test_the_smallest_mesh_is_the_smallest_that_fits(tmp_path):
    run, device = paper_s_run(tmp_path, checkpointing=False), DEVICES["h100"]
    small = run.smallest(device)
    assert small.fits(device)
    for world in (2**i for i in range(1, 12)):
        for chunk in (1, 2, 4, 8):
            if world < small.processes and world % chunk == 0:
                degrees = Degrees(1, world // chunk, chunk)
                smaller = dataclasses.replace(run, degrees=degrees)
                possible = run.batch_size % degrees.readers == 0
                assert not possible or not smaller.fits(device)
    tiny = Device("tiny", 1, {}, 1000, 1, 1)
    assert run.smallest(tiny) is None


def test_a_report_tells_each_degree_or_why_it_can_t_be(tmp_path):
    run = paper_s_run(tmp_path)
    text = "\n".join(report(run, DEVICES["h100"], 0.4, 0.7))
    rows = {line[:44].strip(): line[44:].split() for line in text.splitlines()}
    assert rows["processes to a row (chunk_parallel_size)"] == ["2", "4", "8"]
    assert rows["fits H100 80GB"] == ["yes"] * 3
    assert "chunk_parallel_size=1 can't be: 128 rows do not divide over 256 groups" in text
    assert "time, an estimate" in text
    in_all = [sum(r.memory().values()) / 2**30 for r in (run, run.sharing(4), run.sharing(8))]
    assert rows["in all"] == [f"{total:.2f}" for total in in_all]
    for line in text.splitlines():
        assert len(line) < 140


def test_time_is_the_longer_of_arithmetic_and_sharding_and_the_exchange(tmp_path):
    run, device = paper_s_run(tmp_path), DEVICES["h100"]
    times = run.seconds(device, 0.4, 0.7)
    _, done = sizes.step_flops(run.config, run.length, True)
    assert times["arithmetic"] == pytest.approx(done * 2**22 / 256 / (0.4 * 989.4e12))
    assert times["step"] == times["arithmetic"] + times["exchange"]
    assert run.seconds(device, 0.2, 0.7)["arithmetic"] == 2 * times["arithmetic"]
    # Inside a machine links are faster than between machines.
    inside = dataclasses.replace(run, machine=256).seconds(device, 0.4, 0.7)
    assert inside["sharding"] < times["sharding"]


def test_a_llama_of_the_same_size_sends_keys_and_values_around(tmp_path):
    run = paper_s_run(tmp_path)
    llama, c = Llama(run), run.config
    block = 4 * c.model_dim**2 + 3 * c.model_dim * llama.hidden
    assert block == pytest.approx(sizes.numel(sizes.block_shapes(c)))
    # Two processes with 16K tokens each: keys and values there, and in the backward pass with
    # their gradients.
    assert llama.traffic() == 32 * 3 * 2 * 2**14 * 4096 * 2


def test_the_picture_keeps_tokens_of_a_process_and_is_drawn(tmp_path):
    run = paper_s_run(tmp_path)
    runs = [at(run, length) for length in LENGTHS]
    assert [r.share.tokens for r in runs] == [run.share.tokens] * len(runs)
    assert [r.tokens for r in runs] == [run.tokens] * len(runs)
    assert runs[LENGTHS.index(run.length)].degrees == run.degrees
    draw(tmp_path / "plan.png", run)
    assert (tmp_path / "plan.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    path = os.pathsep.join(
        [str(ROOT / "src"), str(ROOT / "benchmarks"), ENVIRONMENT.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "plan_processes.py"), str(folder)],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = (*CASES, "peaks")
    return {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in names}


def planned(case: Case) -> Run:
    run = Run(CONFIG, case.degrees, ROWS, LENGTH, case.accumulation, case.checkpointing)
    halves = case.bf16_parameters
    measured = elements(CONFIG, case.degrees, halves)
    return dataclasses.replace(run, bf16=case.bf16, bf16_parameters=halves, measured=measured)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sharded_memory_is_what_processes_hold(name, measured):
    memory = planned(CASES[name]).memory()
    for part in ("parameters", "gradients", "optimizer"):
        held = max(figures[part] for figures in measured[name])
        assert memory[part] == pytest.approx(held, rel=0.01), part
    if CASES[name].accumulation > 1:
        waiting = max(figures["unreduced"] for figures in measured[name])
        assert memory["gradients of earlier micro-batches"] == pytest.approx(waiting, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_traffic_is_what_processes_send(name, measured):
    got = planned(CASES[name]).traffic()
    got["all-reduce"] = got.pop("norm and counts") + got.pop("replicas' all-reduce")
    sent = measured[name][0]["traffic"]
    want = {
        "FSDP all-gather": sent["c10d::_allgather_base_"],
        "FSDP reduce-scatter": sent["c10d::_reduce_scatter_base_"],
        "chunk exchange, forward": sent["_c10d_functional::all_gather_into_tensor"],
        "chunk exchange, backward": sent["_c10d_functional::reduce_scatter_tensor"],
        "all-reduce": sent["c10d::allreduce_"] + sent["_c10d_functional::all_reduce"],
    }
    # Nothing else was sent.
    assert len(sent) == 6
    assert got == pytest.approx(want, rel=0.01)


@pytest.mark.slow
def test_matrices_gathered_in_bf16_halve_the_traffic_and_keep_the_losses(measured):
    plain, halved = measured["bf16-mixed"][0], measured["bf16 parameters"][0]
    # Products take them in bfloat16 either way, and gradients are not rounded on their way.
    assert halved["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    gathered, reduced = "c10d::_allgather_base_", "c10d::_reduce_scatter_base_"
    # Two micro-batches; embedding, norms, CEMA and biases stay as they are.
    assert halved["traffic"][gathered] / 2 < 0.55 * plain["traffic"][gathered]
    # Gradients are reduced in float32, parameters and optimizer are float32.
    for part in ("gradients", "parameters", "optimizer"):
        assert halved[part] == plain[part]
    assert halved["traffic"][reduced] == plain["traffic"][reduced]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_activations_are_what_processes_save(name, measured):
    memory = planned(CASES[name]).memory()
    saved = max(figures["activations"] for figures in measured[name])
    want = memory["activations"] + memory["logits and loss"]
    assert want == pytest.approx(saved, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_all_is_no_less_than_the_peak_and_not_much_more(checkpointing, measured):
    run = Run(CONFIG, Degrees(1, 4, 1), 4, LENGTH, checkpointing=checkpointing)
    assert 1 <= run.total / measured["peaks"][checkpointing] <= 1.4
