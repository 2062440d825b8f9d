"""One, two and four processes in every mesh compute what one does, with two exchanges a layer.

The processes' work is in chunk_processes.py, which runs once.
"""

import os
import subprocess
import sys

import pytest
import torch

from chunk_processes import ASYNC, CONTINUED, MESHES, SYNC
from chunk_training import RESETS, SAVED, STEPS
from golden_data import assert_equal
from hard import hard_config
from litmegalodon.checkpoints.manifest import read_manifest
from runs import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    script = str(ROOT / "tests" / "chunk_processes.py")
    path = os.pathsep.join([str(ROOT / "src"), ENVIRONMENT.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, str(folder)],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = {w: torch.load(folder / f"{w}.pt", weights_only=False) for w in MESHES}
    files = {name: read_manifest(folder / name)["files"] for name in (ASYNC, SYNC)}
    return loaded | files


@pytest.mark.parametrize("dtype", TOLERANCES, ids=("float64", "fp32"))
@pytest.mark.parametrize("world, mesh", [(w, m) for w in (2, 4) for m in MESHES[w]])
def test_a_mesh_trains_and_validates_as_one_process_does(results, world, mesh, dtype):
    want, got = results[1]["1", dtype], results[world][mesh, dtype]
    tolerance = TOLERANCES[dtype]
    for name in ("loss", "grad_norm", "val"):
        assert_equal(got[name], want[name], tolerance, name)
    # Clipping has shortened the gradients.
    assert want["grad_norm"] > 0.1
    for name, value in want["gradients"].items():
        assert_equal(got["gradients"][name], value, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("world, mesh", [(w, m) for w in (2, 4) for m in MESHES[w]])
def test_ten_optimizer_steps_give_the_same_weights(results, world, mesh):
    want, got = (results[w][m, torch.float64]["weights"] for w, m in ((1, "1"), (world, mesh)))
    assert STEPS == 10
    for name, value in want.items():
        assert_equal(got[name], value, 1e-10, name)


@pytest.mark.parametrize("world, mesh", [(w, m) for w in CONTINUED for m in CONTINUED[w]])
def test_a_checkpoint_is_continued_on_any_mesh(results, world, mesh):
    """Saved by 2 data x 2 chunk processes: losses and weights as if nothing had been."""
    whole, got = results[4]["saved"], results[world]["continued", mesh]
    assert list(whole["losses"]) == list(range(1, STEPS + 1))
    assert list(got["losses"]) == list(range(SAVED + 1, STEPS + 1))
    for step, loss in got["losses"].items():
        assert loss == pytest.approx(whole["losses"][step], rel=1e-8), step
    # What lanes remember is float32 in a checkpoint.
    for name, value in whole["weights"].items():
        assert_equal(got["weights"][name], value, 1e-8, name)


def test_an_asynchronous_save_equals_a_synchronous_one_bit_for_bit(results):
    shards = {name: entry for name, entry in results[SYNC].items() if name.endswith(".distcp")}
    assert len(shards) == 4
    assert {name: results[ASYNC][name] for name in shards} == shards


@pytest.mark.parametrize("checkpointing", (False, True))
def test_a_layer_exchanges_twice_forward_and_twice_backward(results, checkpointing):
    counted = results[4]["exchanges"][checkpointing]
    times = 2 * 3 + 1  # three layers, and the final norm
    gathered, scattered = (
        f"c10d_functional.{name}" for name in ("all_gather_into_tensor", "reduce_scatter_tensor")
    )
    assert counted["forward"] == {gathered: times}
    assert counted["both"] == {gathered: times, scattered: times}
    # With sharded parameters those of FSDP come on top, and nothing else.
    sharded = counted["sharded"]
    assert (sharded.pop(gathered), sharded.pop(scattered)) == (times, times)
    assert sharded.keys() == {"c10d._allgather_base_", "c10d._reduce_scatter_base_"}


def test_a_block_computed_again_gives_the_same_gradients_bit_for_bit(results):
    plain, again = (results[4]["exchanges"][on]["gradients"] for on in (False, True))
    for name, value in plain.items():
        assert torch.equal(again[name], value), name


def test_a_compiled_block_gives_the_same_gradients(results):
    plain, compiled = (results[2]["compiled"][name] for name in ("plain", "compiled"))
    for name, value in plain.items():
        assert_equal(compiled[name], value, 1e-10, name)


def test_messages_have_the_size_of_the_states_however_long_the_rows(results):
    config, batch = hard_config(), len(RESETS)
    statistics = batch * config.norm_num_groups * 2 * 4
    states = batch * config.model_dim * config.cema_ndim * 2 * 4
    want = [statistics, states] * config.num_layers + [statistics]
    assert results[4]["sent"] == {64: want, 128: want}


def test_no_bit_of_a_document_reaches_another_process_s(results):
    kept = results[4]["isolated"]
    assert len(kept) == 16
    for case, everywhere in kept.items():
        assert all(everywhere), case


def test_a_row_continues_the_one_before_it_on_every_process(results):
    shared, alone = (results[4]["carried"][name] for name in ("shared", "alone"))
    assert_equal(shared["nll"], alone["nll"], 1e-10, "loss")
    for name, value in alone["gradients"].items():
        assert_equal(shared["gradients"][name], value, 1e-10, f"gradient of {name}")
    for state in shared["states"]:
        assert state.keys() == alone["states"][0].keys()
        for name, value in alone["states"][0].items():
            assert_equal(state[name], value, 1e-10, name)


def test_a_late_process_is_waited_for_once_and_not_in_every_layer(results):
    """Its first layer takes 2 s longer: the one measurement of time among the tests."""
    seconds = results[4]["delayed"]
    assert seconds["delayed"] > 2
    assert seconds["delayed"] - seconds["plain"] < 3
