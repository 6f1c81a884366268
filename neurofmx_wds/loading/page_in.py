"""Make the pages of newly opened shards present before they are read, in a thread.

The first read of a few pages of a mapped file interrupts the reader: a quarter of the time of a first epoch in all.
Knows mapped files; knows nothing of samples.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from collections import deque
from typing import Any, Protocol

import numpy as np

from ..storage.checksums import QUIET_THREADS

_PROBES = 8


class Mapped(Protocol):
    """What has a mapped file."""

    source: Any


def is_cached(file: int, size: int) -> bool:
    """Return whether a file's pages are in the system's cache, judged by a few of them; False where that is unknown.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     _ = file.write(bytes(1 << 20))
        ...     file.flush()
        ...     is_cached(file.fileno(), 1 << 20)
        True
    """
    byte = bytearray(1)
    try:
        for i in range(_PROBES):
            os.preadv(file, [byte], i * size // _PROBES, os.RWF_NOWAIT)
    except (OSError, AttributeError):  # it would have to be read; not on this file system; not on this system
        return False
    return True


_waiting: deque[weakref.ref[Mapped]] = deque()
_lock = threading.Lock()


def page_in(shard: Mapped) -> None:
    """Touch all pages of a mapped shard soon, unless it is closed first."""
    with _lock:
        _waiting.append(weakref.ref(shard))
        if not QUIET_THREADS:
            thread = threading.Thread(target=_touch_waiting, name="neurofmx_wds page in")
            with contextlib.suppress(RuntimeError):  # no more threads are allowed, or Python is about to exit
                thread.start()
                QUIET_THREADS.append(thread)


def _touch_waiting() -> None:
    while True:
        with _lock:
            if not _waiting:
                QUIET_THREADS.clear()
                return
            shard = _waiting.popleft()()
        if shard is not None:
            np.frombuffer(shard.source, np.uint8)[:: mmap.PAGESIZE].max()  # in numpy, while other threads run
        del shard


def _forget_parents_thread() -> None:
    global _lock
    _lock = threading.Lock()
    _waiting.clear()
    QUIET_THREADS.clear()


os.register_at_fork(after_in_child=_forget_parents_thread)
