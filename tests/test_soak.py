"""The soak's short form, and that it would see what it looks for."""

import json
import random
import subprocess
import sys

import pytest

from litmegalodon.checkpoints import META
from litmegalodon.checkpoints.manifest import write_file, write_manifest
from runs import ENVIRONMENT, ROOT
from soaking import rounds, storage, tally


def checkpoint(folder, step):
    """A whole one of a few bytes."""
    path = folder / "checkpoints" / f"last-step={step:06d}.ckpt"
    path.mkdir(parents=True)
    files = {name: write_file(path / name, b"bytes" * step) for name in (META, ".metadata")}
    write_manifest(path, step, files)
    return path


def test_a_row_that_is_lost_changed_or_repeated_is_seen(tmp_path):
    columns = ["step", *rounds.MEASURED]
    lines = [",".join(columns)] + [",".join([str(i), *["0.5"] * 8]) for i in (1, 2, 3)]
    (path := tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    wanted = rounds.measured(tmp_path)
    assert rounds.difference(wanted, wanted, 3) is None
    path.write_text("\n".join(lines[:2] + lines[3:]) + "\n")
    assert rounds.difference(rounds.measured(tmp_path), wanted, 3).startswith("step 2 is None")
    path.write_text("\n".join(lines).replace("0.5", "0.5000000000000001", 1) + "\n")
    assert rounds.difference(rounds.measured(tmp_path), wanted, 3).startswith("step 1 is")


@pytest.mark.parametrize("seed", range(20))
def test_damage_leaves_a_whole_checkpoint_and_is_seen(seed, tmp_path):
    checkpoint(tmp_path, 7)
    assert storage.corrupt(tmp_path, random.Random(seed)) is None
    checkpoint(tmp_path, 14)
    assert list(storage.whole(tmp_path)) == [7, 14]
    assert storage.corrupt(tmp_path, random.Random(seed)).split()[0] in storage.DAMAGES
    assert list(storage.whole(tmp_path)) == [7]


def test_the_tally_adds_all_runs_and_names_what_was_lost(tmp_path):
    one = tally.Tally(curves=2, steps=600, starts=9)
    one.count("kill one rank", survived=True, times=3)
    one.count("SIGTERM", survived=False)
    assert (one.lost, one.kills) == (1, 3)
    for _ in range(2):
        kept = tally.keep(tmp_path / "soak.json", {"seed": 1} | one.as_json())
    assert kept["all"]["faults"]["kill one rank"] == {"injected": 6, "survived": 6, "lost": 0}
    assert kept["all"]["faults"]["SIGTERM"]["lost"] == 2
    assert (kept["all"]["kills"], kept["all"]["curves"], len(kept["runs"])) == (6, 4, 2)


def test_what_is_kept_of_the_soaks_has_lost_nothing():
    kept = json.loads((ROOT / "benchmarks/results/soak.json").read_text())["all"]
    assert all(row["lost"] == 0 for row in kept["faults"].values())
    # torch's cache, in the first run kept, is no work of a fault.
    assert [name for name in kept["left"] if "torchinductor" not in name] == []


@pytest.mark.slow
def test_a_short_soak_loses_nothing_and_leaves_nothing_behind():
    command = [sys.executable, str(ROOT / "benchmarks/soak.py"), "--seconds=8", "--steps=60"]
    source = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, env=ENVIRONMENT | source, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills; left behind: 0" in done.stdout
