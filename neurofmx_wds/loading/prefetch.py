"""Read ahead in a thread of the trainer's process.

Knows iterators; knows nothing of what they yield.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

_WORTH_A_THREAD = 50e-6  # seconds between two batches, over 1/16 of those of reading one, from which it pays
_LONGEST_WAIT = 10.0  # seconds; the other may wait for a lock that this thread holds when garbage is collected


def prefetched(source: Iterable[Any], depth: int) -> Iterator[Any]:
    """Yield what `source` yields, reading `depth` items ahead in a thread once there is something to do meanwhile.

    Handing an item from thread to thread takes longer than many a batch, so as long as the consumer comes straight
    back there is no thread.
    """
    items = iter(source)
    slow = 0
    asked = time.perf_counter()
    for item in items:
        handed_over = time.perf_counter()
        yield item
        del item
        reading, asked = handed_over - asked, time.perf_counter()
        slow = slow + 1 if asked - handed_over > _WORTH_A_THREAD + reading / 16 else 0
        if slow == 2 and depth > 0:
            yield from _read_ahead(items, depth)
            return


def _read_ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Yield what `items` yields, read ahead by a thread."""
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    room: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one True for each batch that may be read ahead
    end = object()
    for _ in range(depth):
        room.put(True)

    def read() -> None:
        try:
            while room.get():
                ready.put((next(items, end), None))
        except BaseException as error:  # the consumer raises it
            ready.put((end, error))

    thread = threading.Thread(target=read, name="neurofmx_wds prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            room.put(True)
            yield item
            del item
    finally:
        room.put(False)
        if threading.current_thread() is not thread:  # it may be the one in which garbage is collected
            thread.join(_LONGEST_WAIT)
