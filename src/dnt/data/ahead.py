"""The next batch, while a step computes. No torch."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The same items in the same order, each made in a background thread while the one before it is used.

    What making one raises is raised where it was to be used. No item is None.
    """
    coming = iter(items)
    with ThreadPoolExecutor(1) as background:
        future = background.submit(next, coming, None)
        while (item := future.result()) is not None:
            future = background.submit(next, coming, None)
            yield item
