"""Counts of the real kernels three ways, printed as JSON; run with TRITON_INTERPRET=1.

With memory: the bytes of the loads and stores that Triton's own interpreter executes on random
tensors. Without: as the report counts, from a part of the programs and from all of them.
"""

import itertools
import json
import sys
from collections import Counter

import numpy as np
import torch
from triton.runtime.interpreter import InterpreterBuilder

from kernel_report import cases
from kernel_report.cases import Shape

SHAPE = Shape("small", 300, 48, 32, 48, 64, 2, 64, 3, order=4)
TARGET = "sm_90"


def executed() -> list[Counter]:
    """Bytes of each pass on tensors with memory."""
    counts: list[Counter] = []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def note(kind, pointers, mask):
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        lanes = np.broadcast_to(mask.data.astype(bool), pointers.data.shape)
        counts[-1][kind] += size * int(lanes.sum())

    def noted_load(self, pointers, mask, *rest):
        note("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def noted_store(self, pointers, value, mask, *rest):
        note("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def run(start):
        counts.append(Counter())
        with torch.no_grad():
            return tuple(start()), [], 0

    def new(*shape, dtype=torch.bfloat16):
        return torch.rand(shape).to(dtype)

    before = cases._new, cases.record
    InterpreterBuilder.create_masked_load = noted_load
    InterpreterBuilder.create_masked_store = noted_store
    cases._new, cases.record = new, run
    cases.cases_of(SHAPE, TARGET)
    cases._new, cases.record = before
    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
    return counts


def counted() -> tuple[list, list[Counter], list[Counter]]:
    """The same passes as the report counts them, and with every program looked at."""
    from kernel_report.counting import Programs
    from kernel_report.grid import Sum

    some, all_of_them, found = [], [], cases.cases_of(SHAPE, TARGET)
    for case in found:
        some.append(Counter())
        all_of_them.append(Counter())
        for launch in case.launches:
            programs = Programs(launch)
            some[-1].update(Sum(programs).over(programs.grid))
            for index in itertools.product(*map(range, programs.grid)):
                all_of_them[-1].update(programs(index))
    return found, some, all_of_them


def main() -> None:
    documents = [int(t) for t in sys.argv[1].split(",") if t]

    def resets(length):
        flags = torch.zeros(1, length, dtype=torch.bool)
        flags[0, documents] = True
        return flags

    cases._resets = resets
    with_memory = executed()
    found, some, every = counted()
    rows = zip(found, with_memory, some, every, strict=True)
    json.dump([[f"{c.operator} {c.direction}", a, b, d] for c, a, b, d in rows], sys.stdout)


if __name__ == "__main__":
    main()
