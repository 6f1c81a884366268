"""Look ahead in the order, so that what will be read is requested before it is needed.

Knows plans and the ids of their samples; knows nothing of where samples are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from ..order.cursor import BatchPlan
from .interfaces import Order, Reader
from .outlook import Outlook

_FIRST_BYTES = 1 << 20  # requested at once at first, or one plan; then ever more, as neighbours can be joined

Planned = tuple[BatchPlan, np.ndarray]


def expecting(items: Iterator[Planned], reader: Reader, order: Order) -> Iterator[Planned]:
    """Yield `items`, pairs of a plan of this order and its samples' ids, after telling a reader what comes next.

    Readers that have no method ``expect`` are not told.
    """
    expect = getattr(reader, "expect", None)
    most = getattr(reader, "prefetch_bytes", 0) // max(1, reader.sample_bytes or 1)
    if expect is None or not most:
        yield from items
        return
    waiting: deque[Planned] = deque()
    n_waiting, size = 0, max(1, _FIRST_BYTES // max(1, reader.sample_bytes or 1))
    while True:
        while n_waiting <= most // 2:
            group = _take(items, min(size, most - n_waiting))
            if not group:
                break
            waiting += group
            first, last = waiting[0][0], waiting[-1][0]
            outlook = Outlook(order, first.start, last.start + last.n - first.start)
            expect(np.concatenate([ids for _, ids in group]), outlook if hasattr(order, "positions") else None)
            n_waiting += sum(len(ids) for _, ids in group)
            size = min(32 * size, max(1, most // 2))
        if not waiting:
            return
        item = waiting.popleft()
        n_waiting -= len(item[1])
        yield item


def _take(items: Iterator[Planned], n_samples: int) -> list[Planned]:
    """Return the next items, of about so many samples, at least one."""
    group: list[Planned] = []
    while n_samples > 0 and (item := next(items, None)) is not None:
        group.append(item)
        n_samples -= len(item[1])
    return group
