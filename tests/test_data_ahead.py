"""The next batch is made while the last one is in use, and nothing else changes."""

import subprocess
import sys
import threading
from itertools import count, islice

import pytest

import litmegalodon.data.ahead as module
from litmegalodon.data.ahead import ahead


def test_the_same_items_come_in_the_same_order():
    assert list(ahead(iter(range(9)))) == list(range(9))
    assert list(ahead(iter([]))) == []


def test_the_next_item_is_fetched_while_one_is_in_use_and_no_more():
    made, second = [], threading.Event()

    def items():
        for i in count():
            made.append((i, threading.current_thread() is threading.main_thread()))
            if i == 1:
                second.set()
            yield i

    found = ahead(items())
    assert made == []
    assert next(found) == 0
    assert second.wait(20)
    assert made == [(0, False), (1, False)]
    found.close()
    assert len(made) == 2


def test_an_exception_comes_in_its_items_place():
    def items():
        yield from (1, 2)
        raise ValueError("no more")

    found, got = ahead(items()), []
    with pytest.raises(ValueError, match="no more"):
        for item in found:
            got.append(item)
    assert got == [1, 2]
    assert list(found) == []


@pytest.mark.parametrize("dropped", [True, False], ids=["dropped", "closed"])
def test_thread_and_items_end_with_the_iterator(dropped):
    ended = []

    def items():
        try:
            yield from count()
        finally:
            ended.append(True)

    before = threading.active_count()
    found = ahead(items())
    assert list(islice(found, 3)) == [0, 1, 2]
    assert threading.active_count() == before + 1
    if not dropped:
        found.close()
    del found
    assert ended
    assert threading.active_count() == before


def test_a_process_ends_amid_the_items():
    program = f"""
import importlib.util, itertools, os
spec = importlib.util.spec_from_file_location("ahead", {module.__file__!r})
ahead = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ahead)
items = ahead.ahead(i for i in itertools.count())
print(next(items), next(items), flush=True)
# A child that has nothing to do with the items.
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")
