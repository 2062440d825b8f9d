"""src/generate.py as a user starts it: what goes where, what it leaves, how it ends."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
import torch

from inference_helpers import byte_model, reader, text_of, write_checkpoint
from runs import ENVIRONMENT, command, run
from test_cli_settings import assert_says

pytestmark = pytest.mark.slow
GREEDY = "temperature=0"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return byte_model(torch.float32)


@pytest.fixture(scope="module")
def logs(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of training left a checkpoint."""
    folder = tmp_path_factory.mktemp("logs")
    write_checkpoint(model, folder / "train" / "runs" / "a")
    return folder


def generate(*arguments: str, logs: Path, cwd: Path, given: bytes = b"", code: int = 0):
    """Run it on the newest checkpoint; (standard output, standard error)."""
    done = subprocess.run(
        command("generate", "ckpt_path=last", f"paths.log_dir={logs}", *arguments),
        cwd=cwd,
        env=ENVIRONMENT,
        input=given,
        capture_output=True,
        timeout=120,
    )
    errors = done.stderr.decode()
    assert done.returncode == code, errors
    assert "Traceback" not in errors
    return done.stdout, errors


def test_the_text_alone_is_on_standard_output(model, logs, tmp_path):
    prompt = "def f(x, 'a=b'): {return \"$x\"}\n"
    out, errors = generate(f"prompt={prompt}", GREEDY, "max_new_tokens=30", logs=logs, cwd=tmp_path)
    assert out.decode() == "".join(reader(model, prompt).generate(30, temperature=0))
    assert re.search(r"^checkpoint: .*last-step=000020\.ckpt$", errors, re.MULTILINE)
    assert re.search(rf"^read {len(prompt)} tokens in ", errors, re.MULTILINE)
    assert re.search(r"^wrote 30 tokens in .*; stopped at max_new_tokens$", errors, re.MULTILINE)
    # No bar where there is no terminal, and nothing left behind.
    assert "\r" not in errors
    assert list(tmp_path.iterdir()) == []


def test_standard_input_is_read_where_nothing_else_is_given(model, logs, tmp_path):
    text = text_of(5000)
    want = "".join(reader(model, text).generate(20, temperature=0)).encode()
    settings = (GREEDY, "max_new_tokens=20", "piece_tokens=100")
    assert generate(*settings, logs=logs, cwd=tmp_path, given=text)[0] == want
    # A prompt follows what prompt_file names.
    asked = "".join(reader(model, text, "why?").generate(20, temperature=0)).encode()
    settings = (*settings, "prompt_file=-", "prompt=why?")
    assert generate(*settings, logs=logs, cwd=tmp_path, given=text)[0] == asked


def test_several_prompts_give_the_text_of_each_in_their_order(logs, tmp_path):
    settings = ("max_new_tokens=25", "seed=3")
    prompts = ["a", "some words more", ""]
    alone = [
        generate(f"prompt={p}", *settings, logs=logs, cwd=tmp_path)[0] + b"\n" for p in prompts
    ]
    together = generate(*(f"prompt={p}" for p in prompts), *settings, logs=logs, cwd=tmp_path)
    assert together[0] == b"".join(alone)
    assert together[1].count("--- prompt") == 3


def test_a_document_is_read_once_and_asked_many_times(model, logs, tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "1.txt").write_bytes(text_of(3000))
    (tmp_path / "book" / "2.txt").write_bytes(text_of(3000, seed=1))
    (tmp_path / "book" / "cover.png").write_bytes(b"\xff\xd8")
    out, errors = generate(
        "prompt_file=book", "save_state=book.safetensors", "max_new_tokens=0",
        logs=logs, cwd=tmp_path,
    )  # fmt: skip
    assert out == b""
    assert "left out: 1 files that are no UTF-8 text, as cover.png" in errors
    assert re.search(r"^read 6,000 tokens", errors, re.MULTILINE)
    assert re.search(r"^state: book\.safetensors, [\d,]+ bytes$", errors, re.MULTILINE)
    book = text_of(3000) + text_of(3000, seed=1)
    # The same pieces as the command's, so that not even a bit differs.
    for question in ("", "who?", "where was it?"):
        want = "".join(reader(model, book, question).generate(20, temperature=0)).encode()
        got = generate(
            "state=book.safetensors", f"prompt={question}", GREEDY, "max_new_tokens=20",
            logs=logs, cwd=tmp_path,
        )  # fmt: skip
        assert got[0] == want
    assert not list(tmp_path.glob("*.partial"))


def test_a_stop_string_is_taken_as_it_is_typed(model, logs, tmp_path):
    whole = "".join(reader(model, "ab").generate(60, temperature=0))
    stop = whole[20:22]
    out, errors = generate(
        "prompt=ab", f"stop={stop}", "stop={}, '", GREEDY, "max_new_tokens=60",
        logs=logs, cwd=tmp_path,
    )  # fmt: skip
    assert out.decode() == whole.partition(stop)[0]
    assert "came to a stop string" in errors


def test_a_closed_pipe_is_no_error(logs, tmp_path):
    process = subprocess.Popen(
        command(
            "generate", "ckpt_path=last", f"paths.log_dir={logs}", "prompt=a",
            "max_new_tokens=100000",
        ),
        cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(60) == 0
    assert "error" not in errors and "Traceback" not in errors and "Exception" not in errors


@pytest.mark.parametrize("when", ["reading", "writing"])
def test_ctrl_c_ends_it_with_130_and_without_a_traceback(when, model, logs, tmp_path):
    reader(model, "before").save_state(tmp_path / "book.safetensors")
    before = (tmp_path / "book.safetensors").read_bytes()
    settings = {"writing": ["prompt=a"], "reading": ["save_state=book.safetensors"]}[when]
    process = subprocess.Popen(
        command(
            "generate", "ckpt_path=last", f"paths.log_dir={logs}", "max_new_tokens=100000",
            "piece_tokens=10", *settings,
        ),
        cwd=tmp_path, env=ENVIRONMENT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    if when == "writing":
        process.stdout.read(10)
    else:
        # A whole piece of text, so that reading begins; standard input stays open.
        process.stdin.write(text_of(1 << 20) + b"a")
        process.stdin.flush()
        time.sleep(1)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert errors.endswith("\ninterrupted\n") and "Traceback" not in errors
    # The earlier snapshot is whole, and nothing else is there.
    assert (tmp_path / "book.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["book.safetensors"]


def test_on_a_terminal_there_is_a_bar_and_text_commands_nothing(logs, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    (tmp_path / "book.txt").write_bytes(text_of(20_000))
    process = subprocess.Popen(
        command(
            "generate", "ckpt_path=last", f"paths.log_dir={logs}", "prompt_file=book.txt",
            "temperature=2", "top_p=null", "max_new_tokens=300", "piece_tokens=100",
        ),
        cwd=tmp_path, env=ENVIRONMENT,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait(60) == 0
    text = shown.decode()
    assert re.search(r"reading: +\d+%.* tokens/s", text)
    assert re.search(r"^wrote \d+ tokens", text, re.MULTILINE)
    written = text.rpartition("read 20,000 tokens")[2]
    assert "\x1b" not in written and "\x07" not in written


MISTAKES = {
    "temperature=-1 prompt=a": "error: temperature=-1: must be 0",
    "state=torn.safetensors prompt=a": r"error: state=torn\.safetensors: is no whole snapshot",
    "state=text.txt prompt=a": r"error: state=text\.txt: is no whole snapshot",
    "prompt_file=image.png": r"error: prompt_file=image\.png: is no UTF-8 text, byte 0 is",
    "prompt_file=nowhere": "error: prompt_file=nowhere: there is no such file or folder",
    "promt=a": "error: promt: there is no such setting",
    "-m seed=1,2 prompt=a": "error: -m: there is no sweep over generations",
    "ckpt_path=run": r"error: ckpt_path=.*\.ckpt: cannot be read, it is damaged",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_ends_in_one_sentence(arguments, model, logs, tmp_path):
    reader(model, "ab").save_state(tmp_path / "torn.safetensors")
    whole = (tmp_path / "torn.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[:-50])
    (tmp_path / "text.txt").write_text("Call me Ishmael.")
    (tmp_path / "image.png").write_bytes(b"\xff\xd8\xff")
    torn = write_checkpoint(model, tmp_path / "run")
    (torn / "__0_0.distcp").write_bytes(b"")
    given = [] if "ckpt_path" in arguments else ["ckpt_path=last"]
    done = subprocess.run(
        command("generate", *arguments.split(), f"paths.log_dir={logs}", *given),
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, input="",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    *_, line = done.stderr.splitlines()
    assert_says(line, MISTAKES[arguments])
    assert "Traceback" not in done.stderr


def test_input_that_is_no_text_ends_in_one_sentence(logs, tmp_path):
    _, errors = generate(logs=logs, cwd=tmp_path, given=b"ab\xff", code=2)
    assert errors.endswith("error: prompt_file=-: is no UTF-8 text, byte 2 is no character;"
                           " convert it first\n")  # fmt: skip


def test_it_works_straight_after_training(tmp_path):
    settings = (
        "experiment=debug", "trainer.max_steps=5", "extras.print_config=false",
        "trainer.limit_val_batches=1", "callbacks.report=null", f"paths.log_dir={tmp_path}",
    )  # fmt: skip
    run("train", *settings, cwd=tmp_path)
    _, errors = generate("prompt=import ", "max_new_tokens=20", logs=tmp_path, cwd=tmp_path)
    assert "last-step=000005.ckpt" in errors
    assert re.search(r"^wrote \d+ tokens", errors, re.MULTILINE)
