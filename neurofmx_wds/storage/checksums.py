"""CRC-32, the checksum of every payload: that of isal, ten times as fast as zlib; zlib's where isal is missing.

Knows nothing of the rest of the package.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

crc32: Callable[..., int]
try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

_SHORT = 5 << 10  # bytes: for more, both give up the interpreter
LET_OTHERS_RUN = 256 << 10  # bytes: work on so many is long enough to be worth giving up the interpreter for
QUIET_THREADS: list[threading.Thread] = []  # those that run now but hardly need the interpreter


def crc32_function(size: int) -> Callable[[Any, int], int]:
    """Return the fastest ``f(buffer, crc)`` for buffers of `size` bytes.

    Both libraries let other threads run meanwhile, which may take the interpreter for far longer than a checksum
    takes: in their presence buffers of a middling size are cut into pieces too short for that.
    """
    if _SHORT < size < LET_OTHERS_RUN and threading.active_count() > 1 + len(QUIET_THREADS):
        return _crc32_in_pieces
    return crc32


def _crc32_in_pieces(buffer: Any, crc: int) -> int:
    view = memoryview(buffer)
    for start in range(0, len(view), _SHORT):
        crc = crc32(view[start : start + _SHORT], crc)
    return crc


def crc32_of(parts: Iterable[Any]) -> int:
    """Return the checksum of some bytes.

    Args:
        parts: objects with a buffer of contiguous bytes, one after the other.

    Returns:
        CRC-32 as in zip and gzip files (polynomial 0x04C11DB7), 0 … 2³² − 1.

    Example:
        >>> crc32_of([b"spi", b"kes"]) == crc32_of([b"spikes"])
        True
    """
    crc = 0
    for part in parts:
        crc = crc32_function(len(part))(part, crc)
    return crc
