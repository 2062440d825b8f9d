"""How the C library hands out the large blocks that tensors on a CPU live in."""

import ctypes
import sys

# Parameters of mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step instead of giving it back to the system.

    Otherwise each step asks the system for its activations anew, page by page: at 16,384 tokens
    400,000 page faults and an eighth of a step's time. The process stays as large as its largest
    moment. For entry points, never at import. Whether it was done: only glibc knows how.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Every block from the heap, and the heap's free end kept.
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
