"""An ordered ``map`` in threads that runs a few items ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int, ahead: int, name: str) -> Iterator[R]:
    """Yield ``work`` of each item, in their order, computed in ``threads`` threads.

    At most ``ahead + 1`` items are taken before the first of them is yielded. Closing the iterator waits for those that
    have begun and cancels the others. The threads' names begin with ``name``.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
