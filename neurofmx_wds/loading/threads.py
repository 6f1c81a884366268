"""A function of many things, called by several threads, its results in order.

Knows functions and threads; knows nothing of batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_threads(make: Callable[[Given], Made], given: Iterable[Given], n_threads: int, ahead: int) -> Iterator[Made]:
    """Yield what `make` returns for each item, in the order of the items.

    Args:
        make: the function; several threads call it at once.
        given: the items, taken in the caller's thread.
        n_threads: number of threads.
        ahead: results that are made, or under way, beside the one that is yielded.

    Raises:
        Exception: what `make` raises, where its result would have been yielded.

    Example:
        >>> list(in_threads(abs, [-3, 2, -1], n_threads=2, ahead=2))
        [3, 2, 1]
    """
    pool = ThreadPoolExecutor(n_threads, "neurofmx_wds reader")
    pending: deque[Future[Made]] = deque()
    try:
        for item in given:
            pending.append(pool.submit(make, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # No waiting: garbage may be collected in one of these threads, which cannot wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)
