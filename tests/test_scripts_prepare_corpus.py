"""scripts/prepare_corpus.py as a user runs it, and kills it."""

import os
import random
import re
import signal
import subprocess
import time

import pytest

from litmegalodon.data import PreparedCorpus, StdlibSource
from runs import ENVIRONMENT, command, kill_after, run
from tokenizer_helpers import train

pytestmark = pytest.mark.slow

SCRIPT = "scripts/prepare_corpus"
QUIET = ("extras.print_config=false", "hydra.run.dir=run")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def entries(folder):
    return len(list(folder.glob("*-of-*.json")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder, the settings that made its corpus, and what was printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    model = train(folder / "a.model", 500)
    # Small files, so that a kill comes between and within them.
    settings = (
        *QUIET,
        "units.train=40",
        "data/tokenizer=sentencepiece",
        f"data.tokenizer.path={model}",
    )
    done = run(SCRIPT, *settings, f"output={folder / 'corpus'}", cwd=folder)
    return folder / "corpus", settings, done.stdout


def test_it_says_what_it_made_and_how_to_train_on_it(undisturbed, tmp_path):
    folder, _, printed = undisturbed
    corpus = PreparedCorpus(str(folder), verify=True)
    assert corpus.num_bytes == StdlibSource().num_bytes
    assert "42 of 42 files" in printed
    assert f"train: {corpus.store('train').num_documents} documents" in printed
    found = re.search(r"complete, fingerprint (\w{16}): (data=prepared .*)", printed)
    assert found[1] == corpus.fingerprint
    how = found[2].replace("=corpus", f"={folder}").split()
    shorter = ("experiment=debug", "trainer.max_steps=2", "callbacks.report=null")
    assert "model.config.vocab_size=500" in how
    trained = run("train", *shorter, *how, *QUIET, cwd=tmp_path)
    assert f"fingerprint {corpus.fingerprint}" in trained.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_two_kills_and_a_rerun_make_the_undisturbed_corpus(undisturbed, tmp_path, workers):
    expected, settings, _ = undisturbed
    folder = tmp_path / "corpus"
    arguments = (*settings, f"output={folder}", f"workers={workers}")
    chance = random.Random(workers)
    for at_least in (5, 20):
        moment = chance.uniform(0, 0.1)

        def until(at_least=at_least, moment=moment):
            if entries(folder) < at_least:
                return False
            time.sleep(moment)
            return True

        kill_after(SCRIPT, *arguments, cwd=tmp_path, until=until)
        assert not (folder / "manifest.json").exists()
        with pytest.raises(ValueError, match="is not complete"):
            PreparedCorpus(str(folder)).store("train")
    done = run(SCRIPT, *arguments, cwd=tmp_path)
    kept = int(re.search(r"42 of 42 files, (\d+) of them from before", done.stdout)[1])
    assert 20 <= kept < 42
    assert files(folder) == files(expected)


def test_workers_do_not_outlive_a_killed_parent(undisturbed, tmp_path):
    _, settings, _ = undisturbed
    folder = tmp_path / "corpus"
    process = subprocess.Popen(
        command(SCRIPT, *settings, f"output={folder}", "workers=2"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while entries(folder) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_machines_at_the_same_time_make_the_undisturbed_corpus(undisturbed, tmp_path):
    expected, settings, _ = undisturbed
    folder = tmp_path / "corpus"
    machines = [
        subprocess.Popen(
            command(SCRIPT, *settings, f"output={folder}", f"shard={i}/3", f"hydra.run.dir=run{i}"),
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in (1, 2, 3)
    ]
    printed = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0, 0]
    assert any("complete, fingerprint" in text for text in printed)
    assert files(folder) == files(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shard=4/3"], "shard=4/3: must be i/n with i from 1 to n, as 3/16"),
        (["workers=0"], "workers=0: must be a whole number, at least 1"),
        (["units.val=0"], "units.val=0: must be a whole number, at least 1"),
        (["data.on_error=maybe"], "data.on_error=maybe: must be raise or skip"),
        (["output=full"], r"output=full: holds other files \(a.txt\); name a new folder"),
        (["data/tokenizer=sentencepiece", "data.tokenizer.path=a.model"], "data.tokenizer.path=a"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("a")
    done = subprocess.run(
        command(SCRIPT, "output=out", *arguments, *QUIET),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {message}.*\n", done.stderr)
    assert not (tmp_path / "out").exists()
