"""Runs on a user's own text, from the command to the report, and what is said of bad text."""

import errno
import json
import os
import subprocess
import threading

import pytest

from litmegalodon.utils.errors import explain, is_users, running
from runs import ENVIRONMENT, command, losses, metrics, run

SHORT = (
    "experiment=debug",
    "extras.print_config=false",
    "trainer.max_steps=4",
    "validate_every=4",
    "trainer.limit_val_batches=2",
    "callbacks.report.sample_tokens=5",
)


@pytest.mark.slow
def test_a_folder_of_text_trains_in_lanes_to_its_report(tmp_path):
    for i in range(12):
        (tmp_path / "books").mkdir(exist_ok=True)
        (tmp_path / "books" / f"{i}.txt").write_text(f"chapter {i} of many " * 5)
    own = ("data=files", "data.source.paths=[books]", "data.source.validation_fraction=0.3")
    run("train", *SHORT, *own, "data.cutting=lanes", "hydra.run.dir=run", cwd=tmp_path)
    assert "chapter" in (tmp_path / "run" / "sample.txt").read_text()
    rows = metrics(tmp_path / "run")
    # Padding is no token that was trained on.
    positions = 256 * len(rows)
    utilised = sum(256 * float(row["data/utilisation"]) for row in rows)
    assert int(rows[-1]["tokens"]) == pytest.approx(utilised)
    assert utilised < positions


@pytest.mark.slow
def test_a_bad_line_met_by_a_worker_ends_the_run_in_one_sentence(tmp_path):
    lines = [json.dumps({"text": f"line {i} " * 9}) for i in range(60)]
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, "{broken", *lines]))
    own = (
        "data=files",
        "data.source.paths=[*.jsonl]",
        "data.source.val_paths=[held.jsonl]",
        "data.streaming=true",
        "data.num_workers=2",
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "held.jsonl").write_text("\n".join(lines))
    own = (*own[:2], "data.source.val_paths=[held]", *own[3:])
    done = subprocess.run(
        command("train", *SHORT, *own, "trainer.max_steps=400", "hydra.run.dir=run"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "jsonl" in line and "61" in line and line.endswith("data.on_error=skip")
    assert losses(tmp_path / "run")


def test_what_workers_and_peers_raise_is_told_in_one_sentence():
    in_worker = ValueError(
        "Caught ValueError in DataLoader worker process 1.\nOriginal Traceback (most recent call"
        ' last):\n  File "a.py", line 1, in f\n    raise ValueError(x)\nValueError: a.txt: is bad'
    )
    assert explain(in_worker) == "a.txt: is bad"
    for text, told in (
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "data.num_workers: one of"),
        ("DataLoader worker (pid(s) 1, 2) exited unexpectedly", "data.num_workers: one of"),
        ("[gloo/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", "another process of"),
    ):
        assert is_users(RuntimeError(text))
        assert explain(RuntimeError(text)).startswith(told)
    assert not is_users(RuntimeError("a bug"))
    for error in (OSError(errno.ENOSPC, "No space left"), OSError(errno.EFBIG, "Too large", "a")):
        told = explain(error)
        assert told.startswith(error.filename or "a file of the run's folder (paths.output_dir)")
        assert told.partition("be written: ")[2].startswith(f"{error.strerror}; make room")


def test_a_folder_that_is_read_only_or_gone_is_told_in_one_sentence(tmp_path, capsys):
    gone = tmp_path / "gone" / "events"
    for error in (
        OSError(errno.EROFS, "Read-only file system", str(gone)),
        FileNotFoundError(errno.ENOENT, "No such file or directory", os.fsencode(gone)),
    ):
        with pytest.raises(SystemExit) as left, running():
            raise error
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(
            f"error: {gone}: {error.strerror}; its folder is gone or read-only: "
        )
        assert said.count("\n") == 1
    here = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "file"))
    assert "its folder" not in explain(here)


def test_a_thread_that_a_lost_disk_ends_says_so_in_one_sentence(capsys):
    def write():
        raise OSError(errno.EROFS, "Read-only file system", "events")

    with running():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    said = capsys.readouterr().err
    assert said.startswith("error in a thread: events: Read-only file system; ")
    assert said.count("\n") == 1
