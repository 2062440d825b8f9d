"""Freed memory stays with the process, where the C library can be told so."""

import subprocess
import sys

import pytest

from litmegalodon.utils.allocator import M_TRIM_THRESHOLD, SETTINGS

CODE = """
import torch
from litmegalodon.utils.allocator import keep_freed_memory
assert keep_freed_memory()
def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) * 1024
torch.ones(2**26)
before = resident()
block = torch.ones(2**27)
del block
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_freed_block_is_kept():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # The second block is 512 MiB, and lies where the first one, half as large, was.
    assert int(done.stdout) > 200 * 2**20


def test_no_amount_is_given_back():
    """Any positive limit, and an int is at most 2 GiB, would give back what lies above it."""
    assert SETTINGS[M_TRIM_THRESHOLD] == -1
