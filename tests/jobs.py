"""Pieces of work for other processes; imports little, since those import it as they start."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from benchmarks.harness import Case, Group, Setting, Target, Unavailable, Work


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


def absent() -> Work:
    """A peer that is not installed."""
    raise ImportError("No module named 'peer'")


def impossible() -> Work:
    """A measurement that this machine does not allow."""
    raise Unavailable("not on this machine")


def faulty() -> Work:
    """A case with a fault."""
    raise ValueError("a fault")


def known_work(setting: Setting) -> Group:
    """Cases whose figures are known: they are not divided by time."""
    return Group(
        "known",
        [
            Case("large", lambda: lambda: 50.0, ours=True),
            Case("small", lambda: lambda: 5.0),
            Case("absent", absent),
            Case("impossible", impossible),
            Case("faulty", faulty),
        ],
        [
            Target("large", "small", at_least=3),
            Target("small", "large", at_least=3),
            Target("large", "absent", at_least=1),
        ],
        unit="work",
        scale=1,
        per_second=False,
    )


def slow_work(setting: Setting) -> Group:
    """A case that takes at least 50 ms for a work of 10."""

    def work() -> float:
        time.sleep(0.05)
        return 10.0

    return Group("slow", [Case("slow", lambda: work)], scale=1)
