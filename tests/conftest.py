"""What all tests share: the project's folder for Hydra, Triton's interpreter, no skip unnoticed."""

import os
import signal
from pathlib import Path

import pytest
import torch


def interpret_kernels() -> None:
    """Without a GPU the kernels run in Triton's interpreter, which is decided at their import."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


interpret_kernels()


def pytest_collectstart() -> None:
    # Importing transformers takes the environment back to the one that Python started with.
    interpret_kernels()


def pytest_runtest_setup() -> None:
    interpret_kernels()


# A shell lets what it starts in the background ignore Ctrl-C, and that is inherited: runs that are
# interrupted in tests would go on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

ALLOWED_SKIPS = (ROOT / "tests" / "allowed_skips.txt").read_text().splitlines()


def unlisted_skips(session: pytest.Session) -> list[str]:
    """The reasons of skipped tests that allowed_skips.txt does not list."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = terminal.stats.get("skipped", []) if terminal else []
    reasons = {str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports}
    return sorted(reasons - set(ALLOWED_SKIPS))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CI=true an unlisted skip fails the session."""
    reasons = unlisted_skips(session) if os.environ.get("CI") == "true" else []
    if reasons:
        print(f"\nfailed: skips that tests/allowed_skips.txt does not list: {reasons}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module")
def one_process_group():
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
