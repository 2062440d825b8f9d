"""On a CPU, passes over many tokens go in tiles whose intermediates stay in the cache."""

from collections.abc import Iterator

from torch import Tensor

# 1,024 rows of 512 float32 features are 2 MiB; smaller tiles slow the matrix products down.
ROWS = 1024


def tiles(x: Tensor) -> Iterator[slice]:
    """Slices that cover the rows of x [rows, ...]; elsewhere than on a CPU a single one."""
    rows = x.shape[0]
    step = ROWS if x.device.type == "cpu" else max(rows, 1)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))
