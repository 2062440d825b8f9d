"""make doctor says what is there and what is wrong, each with a fix; nothing secret is printed."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from litmegalodon.runs import doctor
from runs import ENVIRONMENT, ROOT

KEY = "0123456789abcdef0123456789abcdef00c0ffee"


def only(findings, what):
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def test_the_command_names_a_fault_and_its_fix_and_exits_with_1(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts/doctor.py"), "--logs", str(tmp_path)],
            env=ENVIRONMENT
            | {"PYTHONPATH": str(ROOT / "src"), "MASTER_PORT": port, "WANDB_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    at = lines.index(f"fault  port         MASTER_PORT={port}: another program has it")
    assert lines[at + 1] == "       fix: unset MASTER_PORT, or another number"
    assert lines[-1] == "faults: 1"
    found = {line[7:19].strip() for line in lines}
    assert {"Python", "packages", "extras", "torch", "triton", "cores", "memory", "logs"} <= found
    assert "ok     W&B          logged in by WANDB_API_KEY" in lines
    assert KEY not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_processes_of_this_machine_can_talk(monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert only(doctor.network(), "loopback").state == "ok"


def test_a_network_without_loopback(monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)

    def refuse(*_, **__):
        raise RuntimeError("Gloo connectFullMesh failed\nmore")

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    found = only(doctor.network(), "loopback")
    assert (found.state, found.text) == ("fault", "gloo: Gloo connectFullMesh failed")
    assert "GLOO_SOCKET_IFNAME" in found.fix


def test_packages_that_are_missing_or_of_another_version(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "hydra-core":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"torch": "2.1.0", "transformers": "1.0"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = list(doctor.packages())
    wrong = only(found, "packages")
    assert (wrong.state, wrong.fix) == ("fault", "make setup")
    assert wrong.text == "torch is 2.1.0, not ==2.13.0; hydra-core is missing"
    assert "hf" in only(found, "extras").text.partition("not there")[2]


def test_a_python_that_is_too_old(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert only(doctor.python(), "Python").state == "fault"


@pytest.mark.parametrize(
    ("build", "says"), [("13.0", "torch finds no GPU"), (None, "this torch is the one for CPUs")]
)
def test_a_gpu_that_torch_cannot_use(build, says, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "GPU_DRIVERS", (str(tmp_path),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    found = only(doctor.torch_and_gpus(), "GPU")
    assert found.state == "fault"
    assert says in found.text and found.fix


def test_logs_that_cannot_be_written_and_disks_that_are_full_or_slow(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    found = only(doctor.disk(tmp_path / "file" / "logs"), "logs")
    assert found.state == "fault" and "paths.log_dir=" in found.fix
    # Where it is not there yet it is not made either.
    assert only(doctor.disk(tmp_path / "a" / "b"), "logs").state in ("ok", "note")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(doctor, "_write_speed", lambda _: 1e6)
    usage = shutil.disk_usage(tmp_path)
    for free, state in ((2**40, "note"), (5 * 2**30, "note"), (2**29, "fault")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert only(doctor.disk(tmp_path), "logs").state == state


def test_a_cache_of_kernels_that_cannot_be_written(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = only(doctor.kernels(), "triton")
    assert found.state == "note" and "TRITON_CACHE_DIR=" in found.fix


def test_who_is_logged_in_without_a_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert only(doctor.secrets(tmp_path), "W&B").state == "note"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert only(doctor.secrets(tmp_path), "W&B").text == "logged in by ~/.netrc"
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".env").write_text(f"WANDB_API_KEY={KEY}\n{KEY}\n")
    found = list(doctor.secrets(tmp_path))
    assert os.environ.pop("WANDB_API_KEY") == KEY
    assert only(found, ".env").state == "fault"
    assert KEY not in repr(found)


def test_a_check_that_breaks_down_is_a_fault_and_the_others_go_on(monkeypatch, tmp_path):
    def broken():
        raise ImportError("libcudart.so.13: cannot open shared object file")
        yield

    monkeypatch.setattr(doctor, "torch_and_gpus", broken)
    found = list(doctor.examine(tmp_path, tmp_path))
    assert only(found, "torch").text.startswith("ImportError: libcudart.so.13")
    assert only(found, "cores").state == "ok"


def test_without_an_installation_it_says_how_to_install():
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(Path(ROOT, "scripts/doctor.py"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout.endswith("fix: make setup\n")
