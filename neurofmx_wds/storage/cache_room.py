"""Room in a cache of parts of objects: what leaves when it is full.

Parts that this job will need last leave first, since it knows what it will read next; among jobs, the objects that were
used least recently. Knows the cache's files; knows nothing of samples or order.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .blocks import BLOCK, DATA_SUFFIX, FLAGS_SUFFIX, Blocks, joined
from .claims import Claims

_SLACK = 50  # so much of the cache, a part in so many, is freed at once
_LOOK_AGAIN = 64  # a process looks at the whole cache again when it has filled such a part of it
_IDLE = 60.0  # seconds without use, after which an object belongs to no running job


@dataclass(frozen=True, eq=False)
class Forecast:
    """When the samples of an object will be used.

    Attributes:
        name: of the object in the cache.
        blocks: those of it that are here.
        starts, stops: int64 (n,), the blocks of each sample.
        next_use: int64 (n,), how many samples are read before it.
    """

    name: str
    blocks: Blocks
    starts: np.ndarray
    stops: np.ndarray
    next_use: np.ndarray


Forecasts = Callable[[Iterable[str]], Iterable[Forecast]]


class CacheRoom:
    """Keeps a cache's directory within its limit.

    Args:
        directory: the cache's.
        max_bytes: how much it may take.
        claims: of this process.

    Attributes:
        forecasts: of the objects with these names, as far as they are this job's; None: none are.
        own: the names of this job's objects.
    """

    def __init__(self, directory: Path, max_bytes: int, claims: Claims) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.forecasts: Forecasts | None = None
        self.own: frozenset[str] = frozenset()
        self._claims = claims
        self._room = 0

    def take(self, n_bytes: int) -> bool:
        """Return whether there is room for some bytes without looking."""
        self._room -= n_bytes
        return self._room >= 0

    def make(self, n_bytes: int) -> None:
        """Make room for some bytes."""
        with self._alone():
            sizes = self._sizes()
            total = sum(size for size, _ in sizes.values())
            excess = total + n_bytes - self.max_bytes
            if excess > 0:
                excess += self.max_bytes // _SLACK
                total -= self._free(excess, sizes)
        self._room = max(0, min(self.max_bytes - total - n_bytes, self.max_bytes // _LOOK_AGAIN))

    def touch(self, name: str) -> None:
        """Mark an object as used now."""
        with contextlib.suppress(OSError):
            os.utime(self.directory / f"{name}{FLAGS_SUFFIX}")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "forecasts": None}

    def _sizes(self) -> dict[str, tuple[int, float]]:
        """Return the bytes that each object takes on the disk, and when it was used."""
        found = {}
        for entry in os.scandir(self.directory):
            if entry.name.endswith(DATA_SUFFIX):
                name = entry.name.removesuffix(DATA_SUFFIX)
                with contextlib.suppress(OSError):
                    used = os.stat(self.directory / f"{name}{FLAGS_SUFFIX}").st_mtime
                    found[name] = entry.stat().st_blocks * 512, used
        return found

    def _free(self, wanted: int, sizes: dict[str, tuple[int, float]]) -> int:
        """Drop what is least useful until so many bytes are free; return how many are."""
        others = sorted((used, name) for name, (_, used) in sizes.items() if name not in self.own)
        idle = [name for used, name in others if used < time.time() - _IDLE]
        freed = self._remove(idle, wanted, sizes)
        mine = sum(size for name, (size, _) in sizes.items() if name in self.own)
        if freed < wanted and mine < self.max_bytes // 2:  # jobs that run at once share it
            freed += self._remove([name for _, name in others if name not in idle], wanted - freed, sizes)
        if freed < wanted and self.forecasts is not None:
            freed += _drop_farthest(list(self.forecasts([name for name in sizes if name in self.own])), wanted - freed)
        return freed

    def _remove(self, names: Iterable[str], wanted: int, sizes: dict[str, tuple[int, float]]) -> int:
        """Drop whole objects until so many bytes are free; return how many are."""
        freed = 0
        for name in names:
            if freed >= wanted:
                break
            freed += sizes[name][0]
            place = self.directory / name
            with contextlib.suppress(OSError):
                size = os.stat(place.with_suffix(DATA_SUFFIX)).st_size
                blocks = Blocks(place, size, self._claims)
                blocks.evict([(0, blocks.n)])  # whoever is reading it sees that
                place.with_suffix(DATA_SUFFIX).unlink()
                place.with_suffix(FLAGS_SUFFIX).unlink()
        return freed

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process make room at a time."""
        file = os.open(self.directory / "room.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


def _drop_farthest(forecasts: list[Forecast], wanted: int) -> int:
    """Drop the samples whose next use is farthest away until so many bytes are free; return how many are."""
    sizes = [_bytes_here(each) for each in forecasts]
    if not sizes:
        return 0
    size = np.concatenate(sizes)
    use = np.concatenate([each.next_use for each in forecasts])
    here = np.flatnonzero((size > 0) & (use >= 0))
    order = here[np.argsort(-use[here], kind="stable")]
    n = int(np.searchsorted(np.cumsum(size[order]), wanted)) + 1
    gone = np.zeros(len(size), bool)
    gone[order[:n]] = True
    ends = np.cumsum([len(each.next_use) for each in forecasts])
    for each, leaves in zip(forecasts, np.split(gone, ends[:-1]), strict=True):
        runs = zip(each.starts[leaves].tolist(), each.stops[leaves].tolist(), strict=True)
        each.blocks.evict(joined(list(runs), gap=0))
    return int(size[order[:n]].sum())


def _bytes_here(each: Forecast) -> np.ndarray:
    before = np.concatenate([[0], np.cumsum(each.blocks.present())])
    return np.asarray((before[each.stops] - before[each.starts]) * BLOCK)
