"""Mistaken commands, as a user types them: one sentence of ours, exit code 2, nothing begun."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runs import ENVIRONMENT, command
from test_cli_settings import assert_says, make_checkpoint

# Script and arguments: what the sentence begins with.
MISTAKES = {
    "train model.optimizer.lr=fast": "model.optimizer.lr=fast: must be a number above 0",
    "train data=c4 data.source.validation_fraction=0.1": (
        "data.source.validation_fraction=0.1: has no effect with data.source.val_split"
    ),
    "train data=mixture data.source.sources.recall.length=5": (
        "data.source.sources.recall.length=5: must be a whole number, at least 23"
    ),
    "train callbacks.last_checkpoint.dirpath=s3://bucket/run": (
        "callbacks.last_checkpoint.dirpath=s3://bucket/run: must be on this machine; mount"
    ),
    "eval ckpt_path=nowhere": "ckpt_path=nowhere: there is no such file or folder",
    "eval ckpt_path=ckpt evaluation=files evaluation.paths=a.txt": (
        "evaluation.paths=a.txt: must be a list; write"
    ),
    "eval ckpt_path=ckpt evaluation=files evaluation.paths=[a] data.seq_len=9": (
        "data.seq_len: has no effect on an evaluation that reads text of its own"
    ),
    "generate prompt=a": "ckpt_path: give the checkpoint to write with, or `last`",
    "generate ckpt_path=ckpt top_p=2 prompt=a": "top_p=2: must be above 0 and at most 1",
    "generate ckpt_path=ckpt prompt_file=image.png": "prompt_file=image.png: is no UTF-8 text",
    "generate ckpt_path=ckpt prompt=a state=nowhere": "state=nowhere: there is no such file",
    "plan plan.device=abacus": "plan.device=abacus: must be one of ",
    "plan experiment=7b trainer.devices=auto": "trainer.devices=auto: a plan is for machines",
    "scripts/prepare_corpus shard=3/2": "shard=3/2: must be i/n with i from 1 to n",
    "scripts/prepare_corpus workers=0": "workers=0: must be a whole number, at least 1",
    "scripts/train_tokenizer vocab_size=many": "vocab_size=many: must be a whole number",
    "scripts/train_tokenizer output=a.txt": "output=a.txt: is there already; name another",
    "scripts/show_data show.rows=-1": "show.rows=-1: must be a whole number, at least 0",
    "scripts/show_data data=filles": "data=filles: there is no such data; there are ",
    "scripts/export_checkpoint ckpt_path=ckpt output=out format=onnx": "format=onnx: must be hf, ",
    "scripts/export_checkpoint output=out": "ckpt_path: must be given",
    "scripts/import_checkpoint from=elsewhere path=a output=b": "from=elsewhere: must be reference",
    "scripts/compare_runs nowhere": "RUN=nowhere: there is no such folder",
    "scripts/serve last eighty": "port=eighty: must be a whole number, 0",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are typed."""
    return tmp_path_factory.mktemp("mistakes")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """What every one of them prints; side by side, since they mostly start up."""
    make_checkpoint(folder / "ckpt" / "checkpoints" / "last-step=000020.ckpt")
    (folder / "image.png").write_bytes(b"\xff\xd8\xff")
    (folder / "a.txt").write_text("text")

    def run(mistake: str) -> subprocess.CompletedProcess[str]:
        script, *arguments = mistake.split()
        makes_a_folder = not script.startswith(("generate", "scripts/compare", "scripts/serve"))
        place = [f"paths.log_dir={folder}/logs"] if makes_a_folder else []
        return subprocess.run(
            command(script, *arguments, *place),
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(MISTAKES, pool.map(run, MISTAKES), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_command_ends_in_one_sentence(mistake: str, said) -> None:
    done = said[mistake]
    assert done.returncode == 2, done.stdout + done.stderr
    *_, line = done.stderr.splitlines()
    assert done.stderr.count("\n") == 1, done.stderr
    assert_says(line, "error: " + MISTAKES[mistake])


@pytest.mark.slow
def test_no_mistaken_command_has_left_anything_but_its_own_folder(said, folder: Path) -> None:
    there = {path.name for path in folder.iterdir()}
    assert there == {"ckpt", "image.png", "a.txt", "logs"}
    assert not list(folder.glob("logs/**/*.ckpt"))
