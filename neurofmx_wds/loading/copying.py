"""Copy payloads out of open shards into the rows of a batch, and take their checksums while they are in the cache.

Knows offsets and bytes; knows nothing of fields, samples or indexes.
"""

from __future__ import annotations

import io
import itertools
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ShardError
from ..storage.checksums import LET_OTHERS_RUN, crc32_function
from .memory import Rows


class Access(NamedTuple):
    """How bytes get out of tars that are mapped, or that are open files.

    Attributes:
        copy: ``f(sources, starts, rows)`` fills the i-th row with the bytes that begin at the i-th start in the i-th
            source.
        copy_and_sum: ``f(sources, starts, rows, n)`` does the same, and returns the CRC-32 of each row together with
            the `n` bytes before it.
        read: ``f(sources, starts, sizes)`` returns that many bytes from each start.
    """

    copy: Callable[[Sequence[Any], Sequence[int], Rows], None]
    copy_and_sum: Callable[[Sequence[Any], Sequence[int], Rows, int], list[int]]
    read: Callable[[Sequence[Any], Sequence[int], Sequence[int]], list[memoryview]]


def copy_mapped(views: Sequence[memoryview], starts: Sequence[int], rows: Rows) -> None:
    """Fill the rows from mapped tars.

    Example:
        >>> from neurofmx_wds.loading.memory import Rows
        >>> tar, batch = memoryview(b"..abcd..efgh"), bytearray(6)
        >>> copy_mapped([tar, tar], [2, 8], Rows(memoryview(batch), 2))
        >>> batch
        bytearray(b'abcefg')
    """
    size = rows.size
    if _are_even(views, starts, size):
        _copy_evenly(views[0], starts, rows)
    elif size < LET_OTHERS_RUN:
        for row, view, start in zip(rows.each, views, starts, strict=True):
            row[:] = view[start : start + size]
    else:
        for row, view, start in zip(rows.each, views, starts, strict=True):
            np.frombuffer(row, np.uint8)[:] = np.frombuffer(view, np.uint8, size, start)  # numpy lets other threads run


def copy_mapped_and_sum(views: Sequence[memoryview], starts: Sequence[int], rows: Rows, n: int) -> list[int]:
    """Fill the rows from mapped tars, and return their checksums together with the `n` bytes before each.

    Example:
        >>> from neurofmx_wds.loading.memory import Rows
        >>> from neurofmx_wds.storage.checksums import crc32_of
        >>> sums = copy_mapped_and_sum([memoryview(b"header, data")], [8], Rows(memoryview(bytearray(4))), 8)
        >>> sums == [crc32_of([b"header, data"])]
        True
    """
    crc32, size = crc32_function(rows.size), rows.size
    sums = []
    for row, view, start in zip(rows.each, views, starts, strict=True):
        payload = view[start - n : start + size]
        row[:] = payload[n:]
        sums.append(crc32(payload, 0))
    return sums


def _are_even(views: Sequence[memoryview], starts: Sequence[int], size: int) -> bool:
    """Return whether all rows come from one tar and lie at equal distances in it, as those of consecutive samples."""
    step = starts[1] - starts[0] if len(starts) > 1 else 0
    return (
        step >= size
        and all(map(operator.is_, views, itertools.repeat(views[0])))
        and all(map(operator.eq, starts, range(starts[0], starts[0] + len(starts) * step, step)))
    )


def _copy_evenly(view: memoryview, starts: Sequence[int], rows: Rows) -> None:
    """Fill the rows in one call, in which other threads can run."""
    evenly = np.ndarray((len(starts), rows.size), np.uint8, view, starts[0], (starts[1] - starts[0], 1))
    np.frombuffer(rows.whole, np.uint8).reshape(-1, rows.size)[:] = evenly


def copy_pread(files: Sequence[io.FileIO], starts: Sequence[int], rows: Rows) -> None:
    """Fill the rows from open files: one that shrinks meanwhile raises an error.

    Raises:
        ShardError: a file ends before its row is full.
    """
    for row, file, start in zip(rows.each, files, starts, strict=True):
        _fill([row], file, start)


def copy_pread_and_sum(files: Sequence[io.FileIO], starts: Sequence[int], rows: Rows, n: int) -> list[int]:
    """Fill the rows from open files, and return their checksums together with the `n` bytes before each.

    Raises:
        ShardError: a file ends before its row is full.
    """
    crc32, sums, header = crc32_function(rows.size), [], memoryview(bytearray(n))
    for row, file, start in zip(rows.each, files, starts, strict=True):
        _fill([header, row], file, start - n)
        sums.append(crc32(row, crc32(header, 0)))
    return sums


def read_mapped(views: Sequence[memoryview], starts: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
    """Return bytes of mapped tars, as they lie there."""
    return [view[start : start + size] for view, start, size in zip(views, starts, sizes, strict=True)]


def read_pread(files: Sequence[io.FileIO], starts: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
    """Return bytes of open files.

    Raises:
        ShardError: a file ends too early.
    """
    buffers = [memoryview(bytearray(size)) for size in sizes]
    for buffer, file, start in zip(buffers, files, starts, strict=True):
        _fill([buffer], file, start)
    return buffers


def _fill(buffers: list[memoryview], file: io.FileIO, start: int) -> None:
    """Fill some buffers, one after the other, with the bytes of a file from `start` on."""
    while buffers:
        count = os.preadv(file.fileno(), buffers, start)
        if count == 0:
            raise ShardError("the shard was cut while it was read", file=file.name, remedy="restore it")
        start += count
        while buffers and count >= len(buffers[0]):
            count -= len(buffers.pop(0))
        if buffers:
            buffers[0] = buffers[0][count:]


MAPPED = Access(copy_mapped, copy_mapped_and_sum, read_mapped)
PREAD = Access(copy_pread, copy_pread_and_sum, read_pread)
