import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from litmegalodon.data import permute, row_at

SIZES = [*range(1, 130), 255, 256, 257, 299, 300]


def shuffled(size, key):
    return [permute(i, size, key) for i in range(size)]


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permute_is_a_bijection(key):
    for size in SIZES:
        assert sorted(shuffled(size, key)) == list(range(size)), size


def test_every_permutation_of_four_is_about_as_likely():
    counts = Counter(tuple(shuffled(4, key)) for key in range(2400))
    assert len(counts) == math.factorial(4)
    # 100 each is expected; six standard deviations either side.
    assert min(counts.values()) > 40 and max(counts.values()) < 160


def test_neighbours_do_not_stay_neighbours():
    size = 1000
    order = shuffled(size, key=3)
    close = sum(abs(a - b) <= 5 for a, b in pairwise(order))
    # Chance leaves 10 of 999 pairs within five of one another.
    assert close < 30
    mean = (size - 1) / 2
    correlation = sum((i - mean) * (row - mean) for i, row in enumerate(order))
    assert abs(correlation / sum((i - mean) ** 2 for i in range(size))) < 0.15


def test_the_order_differs_between_epochs_and_seeds():
    rows = 50
    orders = {
        (seed, epoch): tuple(row_at(epoch * rows + i, rows, seed)[1] for i in range(rows))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == len(orders)


def test_every_row_comes_once_an_epoch():
    rows = 7
    for epoch in range(3):
        samples = [row_at(epoch * rows + i, rows, seed=5) for i in range(rows)]
        assert {e for e, _ in samples} == {epoch}
        assert sorted(row for _, row in samples) == list(range(rows))


def test_without_shuffling_rows_come_in_order():
    assert [row_at(i, 3, 9, shuffle=False) for i in range(5)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
    ]


def test_an_index_outside_the_range_raises():
    for index in (-1, 5):
        with pytest.raises(IndexError):
            permute(index, 5, key=0)


def test_the_order_is_the_same_in_every_process():
    program = (
        "from litmegalodon.data.order import row_at\n"
        "print([row_at(i, 37, 11)[1] for i in range(80)])"
    )
    expected = str([row_at(i, 37, 11)[1] for i in range(80)])
    for hash_seed in ("1", "2"):
        environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": hash_seed}
        output = subprocess.check_output([sys.executable, "-c", program], env=environment)
        assert output.decode().strip() == expected


def test_importing_the_data_package_loads_neither_torch_nor_lightning():
    program = "import sys, litmegalodon.data; print({'torch', 'lightning'} & sys.modules.keys())"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    output = subprocess.check_output([sys.executable, "-c", program], env=environment)
    assert output.decode().strip() == "set()"
