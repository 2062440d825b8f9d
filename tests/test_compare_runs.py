"""Runs beside one another: settings that differ, figures, curves; wrong folders in a sentence."""

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from litmegalodon.sweeps.compared import differences, find, grouped
from runs import ROOT


def make_run(folder: Path, lr: float, seed: int, bpb: float, speed: float = 100.0) -> Path:
    """A run of four steps of 64 tokens with two validations."""
    (folder / ".hydra").mkdir(parents=True)
    settings = {
        "seed": seed,
        "model": {"optimizer": {"lr": lr, "eps": 1e-8}},
        "tags": [str(folder)],
    }
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings))
    given = [f"model.optimizer.lr={lr}", f"seed={seed}", f"paths.log_dir={folder}"]
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(given))
    lines = ["step,tokens,train/loss,tokens_per_second,val/bpb"]
    for step in range(1, 5):
        val = bpb + (4 - step) if step % 2 == 0 else ""
        lines.append(f"{step},{64 * step},{6 - step + bpb / 10},{speed},{val}")
    # The last line was cut off by a kill.
    (folder / "metrics.csv").write_text("\n".join([*lines, "5,3"]))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for number, (lr, seed, bpb) in enumerate(
        [(0.01, 1, 2.0), (0.01, 2, 2.2), (0.02, 1, 3.0), (0.02, 2, 3.4)]
    ):
        make_run(tmp_path / "s" / str(number), lr, seed, bpb, speed=100.0 * (1 + (lr > 0.01)))
    return tmp_path / "s"


def compare(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", *arguments])
    runpy.run_path(str(ROOT / "scripts" / "compare_runs.py"), run_name="__main__")


def test_only_settings_that_differ_are_named(sweep: Path) -> None:
    runs = find([str(sweep)])
    assert [run.folder.name for run in runs] == ["0", "1", "2", "3"]
    assert sorted(differences(runs)) == ["model.optimizer.lr", "seed"]
    assert [group.name for group in grouped(runs[:2])] == ["seed=1", "seed=2"]


def test_seeds_are_joined_to_mean_and_spread(sweep: Path) -> None:
    first, second = grouped(find([str(sweep)]), ["seed"])
    assert (first.name, second.name) == ("lr=0.01", "lr=0.02")
    value, spread = first.figures()["val/bpb"]
    assert value == pytest.approx(2.1)
    assert spread == pytest.approx(0.2 / 2**0.5)
    # Tokens, seconds: 64 tokens a step at 100 and at 200 a second.
    assert [point[:2] for point in first.curve("val/bpb")] == [(128, 1.28), (256, 2.56)]
    assert [point[:2] for point in second.curve("val/bpb")] == [(128, 0.64), (256, 1.28)]
    assert [point[2] for point in second.curve("val/bpb")] == pytest.approx([5.2, 3.2])


def test_the_script_prints_a_table_and_writes_curves(sweep: Path, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out" / "c.png"
    compare(str(sweep), "--group", "--out", str(out), monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert "model.optimizer.lr  " in printed and "eps" not in printed
    assert "2.1000 ±0.1414" in printed
    assert out.stat().st_size > 10_000
    with out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val/bpb"]) for row in rows] == pytest.approx([2.1, 3.2])

    several = [str(sweep / name) for name in "012"]
    compare(*several, "--out", str(out), monkeypatch=monkeypatch)
    assert "lr=0.02 seed=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["{}/none"],
            "error: RUN={}/none: there is no such folder; runs are under logs/train/runs",
        ),
        (
            ["{}"],
            "error: RUN={}: holds no metrics.csv, nor do the folders in it; give the folder of a"
            " run or of a sweep",
        ),
        (["{}/s", "--out", "a.pdf"], "error: --out=a.pdf: must end in .png"),
        (
            ["{}/s", "--metric", "val/acc"],
            "error: --metric=val/acc: was not measured in any of these runs",
        ),
        (["{}/s/broken"], "error: RUN={}/s/broken: its metrics.csv has no steps yet"),
    ],
)
def test_what_is_no_run_is_said_in_a_sentence(arguments, sentence, sweep, monkeypatch, capsys):
    (sweep / "broken").mkdir()
    (sweep / "broken" / "metrics.csv").write_text("nothing\n")
    if "broken" not in arguments[0]:
        (sweep / "broken" / "metrics.csv").unlink()
    folder = str(sweep.parent)
    with pytest.raises(SystemExit, match="2"):
        compare(*(text.format(folder) for text in arguments), monkeypatch=monkeypatch)
    assert capsys.readouterr().err == sentence.format(folder) + "\n"


def test_comparing_needs_no_torch(sweep: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); print('torch' in sys.modules)"
    )
    script = str(ROOT / "scripts" / "compare_runs.py")
    arguments = [script, str(sweep), "--out", str(sweep / "c.png")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
