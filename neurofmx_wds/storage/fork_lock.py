"""A lock that a forked child gets anew: a thread of the parent, which the child lacks, may hold the parent's.

Knows nothing of the rest of the package.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType

_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()


class ForkLock:
    """A reentrant lock of the threads of one process.

    Example:
        >>> lock = ForkLock()
        >>> with lock, lock:
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._lock.release()


def _renew() -> None:
    for lock in _locks:
        lock._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)
