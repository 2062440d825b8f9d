"""Fetching the next item while the last one is in use."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")


class _End:
    """What comes after the last item."""


_END = _End()


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in the same order, each fetched by a thread while the one before is in use.

    One item is held beside the one in use, none is fetched before the first is asked for. An
    exception comes in the place of its item. When the iterator is closed or dropped, the item under
    way is waited for and `items` closed; at the end of the process the thread ends by itself.
    """
    # An executor's idle threads hold up neither a process that ends nor one that forks.
    with ThreadPoolExecutor(1, thread_name_prefix="data") as thread:
        coming = thread.submit(next, items, _END)
        try:
            while not isinstance(item := coming.result(), _End):
                coming = thread.submit(next, items, _END)
                yield item
        finally:
            # A generator at work in the thread can't be closed.
            wait([coming])
            if hasattr(items, "close"):
                items.close()
