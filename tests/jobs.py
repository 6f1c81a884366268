"""Pieces of work for other processes; imports little, since those import it as they start."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def slow_square(n: int) -> tuple[int, int]:
    """The square, the earlier the slower, and who made it."""
    time.sleep(0.03 / (n + 1))
    return n * n, os.getpid()


def square_or_fail(job: tuple[Path, int]) -> int:
    """The square, noted in a directory; 7, 17, 27 … fail."""
    directory, n = job
    (directory / str(n)).touch()
    if n % 10 == 7:
        raise ValueError(f"{n} is one too many")
    return n * n


def die_elsewhere(parent: int) -> None:
    """End this process without a word, unless it is the one that asks."""
    if os.getpid() != parent:
        os._exit(1)


def imported(_: int) -> tuple[int, set[str]]:
    """Who works, slowly enough for all to take a part, and which large packages are there."""
    time.sleep(0.3)
    return os.getpid(), {name for name in ("torch", "pynwb", "webdataset") if sys.modules.get(name)}
