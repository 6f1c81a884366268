"""Which processes of a machine are fetching into a shared cache, and which of these have died.

Knows lock files only: a lock goes with the process that held it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

FIRST_CLAIM, _STOP = 65, 256


class Claims:
    """Numbers from 65 to 255, each held by one process at most.

    Args:
        directory: where the lock files are; None: no other process shares the cache.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._number = 0
        self._file = -1
        self._pid = 0
        self._lock = threading.Lock()

    @property
    def number(self) -> int:
        """The number of this process; 255 without a lock where all are taken."""
        if self._pid != os.getpid():
            self._take()
        return self._number

    def _take(self) -> None:
        if self._file >= 0:  # the parent's; its lock stays with the parent
            os.close(self._file)
        self._lock = threading.Lock()
        self._number, self._file, self._pid = _STOP - 1, -1, os.getpid()
        if self._directory is None:
            return
        for number in range(FIRST_CLAIM, _STOP - 1):
            file = self._lock_file(number)
            if file >= 0:
                self._number, self._file = number, file
                return

    def _lock_file(self, number: int) -> int:
        """Return the locked file of a number; -1 where another process holds it."""
        assert self._directory is not None
        try:
            file = os.open(self._directory / f"{number}.claim", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return -1
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return -1
        return file

    def is_alive(self, number: int) -> bool:
        """Return whether the process with this number lives, as far as is known."""
        if number == self.number:
            return True
        if self._directory is None or number == _STOP - 1:
            return self._directory is not None
        file = self._lock_file(number)
        if file < 0:
            return True
        os.close(file)
        return False

    def __getstate__(self) -> Path | None:
        return self._directory

    def __setstate__(self, directory: Path | None) -> None:
        self.__init__(directory)  # type: ignore[misc]
