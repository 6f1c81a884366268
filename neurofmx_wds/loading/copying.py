"""Copy payloads out of an open shard into the rows of a batch.

Knows offsets and bytes; knows nothing of fields, samples or indexes.
"""

from __future__ import annotations

import io
import itertools
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import ShardError
from ..storage.checksums import LET_OTHERS_RUN
from .memory import Rows

Copy = Callable[[Sequence[Any], Sequence[int], Rows], None]
_PIECE = 1 << 20  # bytes read at once from a tar that is not mapped


def copy_mapped(views: Sequence[memoryview], starts: Sequence[int], rows: Rows) -> None:
    """Fill the i-th row with the bytes that begin at the i-th start in the i-th mapped tar.

    Example:
        >>> from neurofmx_wds.loading.memory import Rows
        >>> tar, batch = memoryview(b"..abcd..efgh"), bytearray(6)
        >>> copy_mapped([tar, tar], [2, 8], Rows(memoryview(batch), 2))
        >>> batch
        bytearray(b'abcefg')
    """
    size, step = rows.size, even_step(starts)
    if step >= size and all(map(operator.is_, views, itertools.repeat(views[0]))):
        evenly = np.ndarray((len(starts), size), np.uint8, views[0], starts[0], (step, 1))
        np.frombuffer(rows.whole, np.uint8).reshape(-1, size)[:] = evenly  # one call, in which other threads can run
    elif size < LET_OTHERS_RUN:
        for row, view, start in zip(rows.each, views, starts, strict=True):
            row[:] = view[start : start + size]
    else:
        for row, view, start in zip(rows.each, views, starts, strict=True):
            np.frombuffer(row, np.uint8)[:] = np.frombuffer(view, np.uint8, size, start)  # numpy lets other threads run


def even_step(starts: Sequence[int]) -> int:
    """Return the distance between neighbours if it is positive and always the same, as for consecutive samples; else 0.

    Example:
        >>> even_step([512, 2048, 3584]), even_step([512, 2048, 4096]), even_step([512])
        (1536, 0, 0)
    """
    step = starts[1] - starts[0] if len(starts) > 1 else 0
    even = step > 0 and all(map(operator.eq, starts, range(starts[0], starts[0] + len(starts) * step, step)))
    return step if even else 0


def copy_pread(files: Sequence[io.FileIO], starts: Sequence[int], rows: Rows) -> None:
    """Fill the rows as :func:`copy_mapped` does, but from open files: a file that shrinks raises an error.

    Raises:
        ShardError: a file ends before its row is full.
    """
    for row, file, start in zip(rows.each, files, starts, strict=True):
        while len(row):
            count = os.preadv(file.fileno(), [row], start)
            if count == 0:
                raise ShardError("the shard was cut while it was read", file=file.name, remedy="restore it")
            row, start = row[count:], start + count


def pieces(source: memoryview | io.FileIO, start: int, stop: int) -> Iterator[memoryview]:
    """Yield the bytes from `start` to `stop` of a tar: a mapped one's as they lie, an open one's piece by piece.

    Each piece is overwritten by the next.
    """
    if isinstance(source, memoryview):
        yield source[start:stop]
        return
    piece = memoryview(bytearray(min(_PIECE, stop - start)))
    for place in range(start, stop, _PIECE):
        part = piece[: stop - place]
        copy_pread([source], [place], Rows(part))
        yield part
