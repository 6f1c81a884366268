"""A part of an object, kept in a sparse file that all processes of a machine share: which blocks are there, and who is
fetching which.

Knows files and blocks of 512 bytes, as in a tar; knows nothing of servers, samples or order.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .claims import FIRST_CLAIM, Claims
from .fork_lock import ForkLock

BLOCK = 512
DATA_SUFFIX, FLAGS_SUFFIX = ".data", ".have"
_HEADER = 64  # bytes before the flags, of which the first 8 count evictions
_ABSENT, _PRESENT = 0, range(1, FIRST_CLAIM)  # other flags are the numbers of processes that are fetching the block
_ARE_PRESENT = bytes(_PRESENT)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of Linux's fallocate

Run = tuple[int, int]
Buffer = bytes | memoryview
_changing = ForkLock()  # flags, in this process


class Blocks:
    """The blocks of one object that are on this machine.

    Args:
        place: where its two files are, without their suffixes; None: in memory, for this process.
        size: of the object, in bytes.
        claims: of this process, and of the others.

    Raises:
        OSError: the files cannot be made.
    """

    def __init__(self, place: Path | None, size: int, claims: Claims) -> None:
        self.place = place
        self.size = size
        self.n = -(-size // BLOCK)
        self._claims = claims
        self._memory = -1
        if place is None:
            self._memory = os.memfd_create("neurofmx_wds cache") if hasattr(os, "memfd_create") else _unnamed_file()
            os.truncate(self._memory, size)
            self._flags = mmap.mmap(-1, _HEADER + self.n)
        else:
            self._flags = _mapped(place.with_suffix(FLAGS_SUFFIX), _HEADER + self.n)
            with self._data() as file:
                if os.fstat(file).st_size != size:
                    os.truncate(file, size)
        self._have = np.frombuffer(self._flags, np.uint8, self.n, _HEADER)
        self._under_way = np.zeros(self.n, bool)  # here, in this process
        self._count = np.frombuffer(self._flags, np.uint64, 1)

    @property
    def file(self) -> Path | None:
        """The file with the data, if it has a name."""
        return None if self.place is None else self.place.with_suffix(DATA_SUFFIX)

    def open(self) -> io.FileIO:
        """Open the data for reading; bytes of blocks that are not there are 0."""
        return io.FileIO(os.dup(self._memory) if self.file is None else self.file)

    def has(self, start: int, stop: int) -> bool:
        """Return whether all blocks of a range are there."""
        return bool(self.stamp(start, stop))

    def stamp(self, start: int, stop: int) -> bytes:
        """Return what changes when blocks of a range leave, also if they come again; empty if not all are there."""
        flags = self._flags[_HEADER + start : _HEADER + stop]
        return b"" if flags.translate(None, _ARE_PRESENT) else flags

    def present(self) -> np.ndarray:
        """Return which blocks are there, shape (n,), bool."""
        return _are_present(self._have)

    def claim(self, start: int, stop: int, take_over: bool = False) -> tuple[list[Run], bool]:
        """Take blocks of a range that nobody has or is fetching.

        Args:
            start, stop: the range.
            take_over: also those that others claim to be fetching.

        Returns:
            Runs of blocks that this process must now fetch, and whether others are fetching some.
        """
        with self._alone():
            here = self._have[start:stop]
            free = here == _ABSENT
            under_way = self._under_way[start:stop]
            for number in set(np.unique(here[here >= FIRST_CLAIM]).tolist()):
                if number == self._claims.number:  # also that of a process that died before this one began
                    free |= (here == number) & ~under_way
                elif take_over or not self._claims.is_alive(number):
                    free |= here == number
            here[free] = self._claims.number
            under_way[free] = True
            others = not _are_present(here[~free]).all()
        return [(start + a, start + b) for a, b in runs_of(free)], others

    def store(self, start: int, data: Buffer) -> None:
        """Put blocks that were claimed.

        Raises:
            OSError: the disk is full or cannot be written; the blocks are free again.
        """
        stop = start - (-len(data) // BLOCK)
        try:
            with self._data() as file:
                _write_all(file, data, start * BLOCK)
        except BaseException:
            self.release(start, stop)
            raise
        self._have[start:stop] = _PRESENT[int(self._count[0]) % len(_PRESENT)]
        self._under_way[start:stop] = False

    def release(self, start: int, stop: int) -> None:
        """Give back claims on blocks that could not be fetched."""
        with self._alone():
            here = self._have[start:stop]
            here[here == self._claims.number] = _ABSENT
            self._under_way[start:stop] = False

    def evict(self, runs: Iterable[Run]) -> None:
        """Drop blocks, and give back their room."""
        with self._alone(), self._data() as file:
            gone: list[Run] = []
            for start, stop in runs:
                here = self._have[start:stop]
                is_here = _are_present(here)
                here[is_here] = _ABSENT
                gone += [(start + a, start + b) for a, b in runs_of(is_here)]
            self._count[0] += 1  # blocks that come again have other flags
            for start, stop in gone:
                _punch(file, start * BLOCK, min(stop * BLOCK, self.size))

    @contextlib.contextmanager
    def _data(self) -> Iterator[int]:
        if self.place is None:
            yield self._memory
            return
        file = os.open(self.place.with_suffix(DATA_SUFFIX), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield file
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Change flags while no thread and no other process does."""
        with _changing:
            if self.place is None:
                yield
                return
            file = os.open(self.place.with_suffix(FLAGS_SUFFIX), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                with contextlib.suppress(OSError):  # without locks, something may be fetched twice
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield
            finally:
                os.close(file)

    def __del__(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)


def _are_present(flags: np.ndarray) -> np.ndarray:
    return (flags != _ABSENT) & (flags < FIRST_CLAIM)


def runs_of(flags: np.ndarray) -> list[Run]:
    """Return where a boolean array is True, as ranges.

    Example:
        >>> runs_of(np.array([True, True, False, True]))
        [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def joined(runs: Sequence[Run], gap: int) -> list[Run]:
    """Return ascending ranges in which neighbours that are at most `gap` apart, or overlap, are one.

    Example:
        >>> joined([(8, 9), (0, 3), (4, 6)], gap=1)
        [(0, 6), (8, 9)]
    """
    found: list[Run] = []
    for start, stop in sorted(runs):
        if found and start <= found[-1][1] + gap:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def _unnamed_file() -> int:
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _mapped(path: Path, size: int) -> mmap.mmap:
    """Map a file of `size` bytes that are 0 at first; room for all of it is taken now, as nothing can be told later."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(file).st_size != size:
            os.truncate(file, size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size)
        return mmap.mmap(file, size)
    finally:
        os.close(file)


def _write_all(file: int, data: Buffer, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        n = os.pwrite(file, view, offset)
        view, offset = view[n:], offset + n


def _punch(file: int, start: int, stop: int) -> None:
    """Give back the room that a part of a file takes, as far as the file system can; its bytes become 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "fallocate"):
        offset, length = ctypes.c_longlong(start), ctypes.c_longlong(stop - start)
        libc.fallocate(file, _KEEP_SIZE | _PUNCH_HOLE, offset, length)
