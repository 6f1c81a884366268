"""CRC-32, the checksum of every payload: zlib's, ten times as fast where the optional package isal is installed.

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


def crc32_of(parts: Iterable[Any]) -> int:
    """The checksum of some bytes.

    Args:
        parts: objects with a buffer of contiguous bytes, one after the other.

    Returns:
        CRC-32 as in zip and gzip files (polynomial 0x04C11DB7), 0 … 2³² − 1.
    """
    crc = 0
    for part in parts:
        if len(part) <= _SHORT or len(part) >= LET_OTHERS_RUN or threading.active_count() == 1:
            crc = crc32(part, crc)
        else:  # others would take the interpreter for longer than this takes
            view = memoryview(part)
            for start in range(0, len(view), _SHORT):
                crc = crc32(view[start : start + _SHORT], crc)
    return crc
