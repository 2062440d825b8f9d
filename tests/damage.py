"""Bytes flipped, cut and swapped, and little memory to read them in."""

import resource
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st


@contextmanager
def little_memory():
    """A GiB more than is in use: a pickle can ask for room for as many objects as it likes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file's bytes with a few of them flipped, its end cut off, or two stretches swapped."""
    place = st.integers(0, len(whole) - 1)
    found = bytearray(whole)
    kind = draw(st.sampled_from(["flip", "cut", "swap"]))
    if kind == "flip":
        for i in draw(st.lists(place, min_size=1, max_size=8)):
            found[i] ^= draw(st.integers(1, 255))
    elif kind == "cut":
        del found[draw(place) :]
    else:
        i, j = sorted(draw(st.tuples(place, place)))
        found[i:] = found[j:] + found[i:j]
    return bytes(found)
