"""Reads samples whose shards are behind a URL: what a batch needs is here before it is read, and still after.

Knows readers, and the parts of shards that the node's cache holds; knows nothing of servers, order or batches.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from ..errors import ShardError
from ..format.index import ShardIndex
from ..format.names import field_of
from ..format.remote_shards import CachedFile, RemoteShardSet
from ..storage.blocks import BLOCK, Run, joined
from ..storage.cache_room import Forecast, Forecasts
from ..storage.node_cache import CachedObject, Part, drop, fetch
from .memory import Memory
from .outlook import Outlook
from .readers import ShardReader
from .shard_pool import max_open_shards

logger = logging.getLogger("neurofmx_wds")

_GAP = 32  # blocks: what lies between two parts and is not needed is fetched too if it is no more
_NEVER = 1 << 62
_REMEMBERED = 4  # groups of samples that were requested last
_ATTEMPTS = 30  # at reading a batch of which parts leave the cache meanwhile

T = TypeVar("T")


class SampleRuns:
    """The blocks of a shard in which the wanted fields of each sample lie.

    Args:
        index: the shard's index.
        names: the fields; None: all.
    """

    def __init__(self, index: ShardIndex, names: Sequence[str] | None) -> None:
        wanted = index.columns if names is None else [name for name in names if name in index.columns]
        columns = [index.columns[name] for name in wanted if name != "metadata" or not all(index.sample_metadata)]
        if names is not None:  # a suffix of several columns
            columns += [index.columns[each] for each in index.columns if each not in wanted and field_of(each) in names]
        first = np.array([np.where(each.offset < 0, 0, each.offset) // BLOCK for each in columns], np.int64)
        stop = np.array(
            [np.where(each.offset < 0, 0, -(-(each.offset + each.size) // BLOCK)) for each in columns], np.int64
        )
        self._first, self._stop = first.reshape(len(columns), -1), stop.reshape(len(columns), -1)
        self._is_one = len(columns) > 0 and self._spans_are_dense()

    def _spans_are_dense(self) -> bool:
        """Whether all fields of a sample can be taken in one run; then keep only that."""
        first, stop = self._first.min(axis=0), self._stop.max(axis=0)
        if (self._first > 0).all() and (stop - first <= (self._stop - self._first).sum(axis=0) + _GAP).all():
            self._first, self._stop = first[None], stop[None]
            return True
        return False

    def spread(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all runs, ascending: starts, stops and the sample of each, int64. What is between two is in them."""
        rows = np.broadcast_to(np.arange(self._first.shape[1]), self._first.shape).ravel()
        starts, stops = self._first.ravel(), self._stop.ravel()
        order = np.argsort(starts, kind="stable")
        order = order[stops[order] > starts[order]]
        starts, stops, rows = starts[order], stops[order], rows[order]
        near = starts[1:] - stops[:-1] <= _GAP
        stops[:-1][near] = np.maximum(starts[1:], stops[:-1])[near]
        return starts, stops, rows

    def of(self, rows: Sequence[int]) -> list[Run]:
        """Return the runs of some samples."""
        first, stop = self._first[:, rows], self._stop[:, rows]
        there = stop > first
        return list(zip(first[there].tolist(), stop[there].tolist(), strict=True))


class RemoteShardReader(ShardReader):
    """A :class:`ShardReader` of shards behind a URL.

    Args:
        shards: the dataset.
        modalities, selected, checksums: as :class:`ShardReader`.
        prefetch_bytes: how much is requested before it is needed.
    """

    shards: RemoteShardSet

    def __init__(
        self,
        shards: RemoteShardSet,
        modalities: Sequence[str] | None = None,
        selected: np.ndarray | None = None,
        checksums: bool | None = None,
        prefetch_bytes: int = 0,
    ) -> None:
        super().__init__(shards, modalities, selected, "pread", max_open_shards() // 4, checksums)
        self.prefetch_bytes = prefetch_bytes
        self._planner: _Planner | None = None
        self._outlook: Outlook | None = None
        self._recent: deque[np.ndarray] = deque(maxlen=_REMEMBERED)
        self._runs: dict[int, tuple[ShardIndex, SampleRuns]] = {}

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> dict[str, Any]:
        """Read samples as :meth:`ShardReader.read_batch` does, fetched if necessary.

        Raises:
            ShardError: a shard is missing or damaged, or cannot be fetched.
        """
        if len(ids) > self._pool.n_at_once and len(set(self.locate(ids)[0])) > self._pool.n_at_once:
            return super().read_batch(ids, memory)  # in parts, each of which comes here
        return _steadily(lambda: self._parts_of(ids), lambda: ShardReader.read_batch(self, ids, memory))

    @property
    def kind(self) -> tuple[str, bool]:
        """What readers must have in common to read one batch together."""
        return "remote shards", self.mapped

    @staticmethod
    def read_together(
        parts: Sequence[tuple[ShardReader, np.ndarray]], order: np.ndarray, memory: Memory | None = None
    ) -> dict[str, Any] | None:
        """Read as :meth:`ShardReader.read_together` does, fetched if necessary."""
        remote = [(reader, ids) for reader, ids in parts if isinstance(reader, RemoteShardReader)]
        return _steadily(
            lambda: [part for reader, ids in remote for part in reader._parts_of(ids)],
            lambda: ShardReader.read_together(parts, order, memory),
        )

    def array(self, sample_id: int, name: str) -> np.ndarray:
        """Return one array of a sample, read-only, fetched if necessary; see :meth:`ShardReader.array`."""
        one = np.array([sample_id])
        return _steadily(lambda: self._parts_of(one, [name]), lambda: ShardReader.array(self, sample_id, name))

    def _parts_of(self, ids: np.ndarray, names: Sequence[str] | None = None) -> list[Part]:
        """Return where the wanted fields of samples are; the shards are opened for it."""
        self._tell_cache()
        by_shard = self._by_shard(ids)
        self.shards.expect_indexes([i for i in by_shard if i not in self._pool.held])
        parts: list[Part] = []
        for i, rows in by_shard.items():
            source = self._pool[i].source
            if isinstance(source, CachedFile):
                runs = self._runs_of(i) if names is None else SampleRuns(self.shards.index(i), names)
                parts += [(source.entry, run) for run in runs.of(rows)]
        return parts

    def _by_shard(self, ids: np.ndarray) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for i, row in zip(*self.locate(ids), strict=True):
            found.setdefault(i, []).append(row)
        return found

    def _runs_of(self, i: int, index: ShardIndex | None = None) -> SampleRuns:
        index = index or self.shards.index(i)
        known = self._runs.get(i)
        if known is None or known[0] is not index:
            if len(self._runs) > 2 * len(self._pool.held) + 64:
                self._runs.clear()
            names = None if self.modalities is None else [*self.fields, "metadata"]
            known = self._runs[i] = index, SampleRuns(index, names)
        return known[1]

    def expect(self, ids: np.ndarray, outlook: Outlook | None = None) -> None:
        """Begin to fetch the samples with these ids, and return at once.

        Args:
            ids: sample ids, shape (n,), int64.
            outlook: what will be read after them.
        """
        if self._planner is None or self._planner.pid != os.getpid():
            self._planner = _Planner(self)
        self._outlook = outlook
        self._recent.append(ids)
        self._tell_cache()
        self._planner.put(ids)

    def _tell_cache(self) -> None:
        """Let the cache ask what will be used when."""
        room = self.shards.node.room
        if room is not None and room.forecasts is None:
            room.own = frozenset(self.shards.cached_names)
            room.forecasts = _forecasts_by(weakref.ref(self))

    def forecasts(self, names: Iterable[str]) -> Iterator[Forecast]:
        """Yield when the samples will be used of shards with these names in the cache."""
        for name in names:
            i = self.shards.cached_names[name]
            index = self.shards.peek_index(i)
            entry = self.shards.entry(i)
            if index is not None and entry is not None:
                starts, stops, rows = self._runs_of(i, index).spread()
                next_use = self._next_use(self._first[i] + np.arange(index.n_samples))
                yield Forecast(name, entry.blocks, starts, stops, next_use[rows])

    def _next_use(self, dataset_ids: np.ndarray) -> np.ndarray:
        """Return when samples of the dataset are used, int64 (n,); a very large number where they are not selected."""
        if self.selected is None:
            return self._next_use_of(dataset_ids)
        ids = np.searchsorted(self.selected, dataset_ids)
        ids[ids == len(self.selected)] = 0
        chosen = self.selected[ids] == dataset_ids
        return np.where(chosen, self._next_use_of(ids), _NEVER)

    def _next_use_of(self, ids: np.ndarray) -> np.ndarray:
        if self._outlook is not None:
            return self._outlook.next_use(ids)
        soon = np.concatenate([*self._recent, np.empty(0, np.int64)])  # nothing else is known of what comes
        return np.where(np.isin(ids, soon), -1, np.random.default_rng().integers(1 << 40, size=len(ids)))

    def request(self, ids: np.ndarray) -> None:
        """Request what is missing of samples; whatever goes wrong is reported when they are read."""
        by_shard = self._by_shard(ids)
        self.shards.expect_indexes(by_shard)
        for i, rows in by_shard.items():
            entry = self.shards.entry(i)
            if entry is None:
                self.shards.open(i).close()  # fetched and unpacked as a whole
                continue
            runs = [run for run in self._runs_of(i).of(rows) if not entry.blocks.has(*run)]
            for run in joined(runs, _GAP):
                self.shards.node.request(entry, run)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_planner": None, "_outlook": None, "_runs": {}}


def _steadily(find: Callable[[], list[Part]], read: Callable[[], T]) -> T:
    """Read what is in some parts, fetched first, and again if some left meanwhile or are not what was written."""
    was_damaged = False
    parts: list[Part] = []
    for _ in range(_ATTEMPTS):
        parts = find()
        missing = [(entry, run) for entry, run in parts if not entry.blocks.has(*run)]
        if missing:
            fetch(_joined(missing))
        stamps = [entry.blocks.stamp(*run) for entry, run in parts]
        if not all(stamps):
            continue
        try:
            found = read()
        except ShardError as error:
            if stamps != [entry.blocks.stamp(*run) for entry, run in parts]:
                continue
            if was_damaged or not parts:
                raise
            was_damaged = True
            logger.warning("%s; fetching it again", error)
            drop(parts)
            continue
        if stamps == [entry.blocks.stamp(*run) for entry, run in parts]:
            drop(part for part in parts if part[0].blocks.place is None)  # memory is for what comes
            return found
    where = str(parts[0][0].path)
    raise ShardError("what was fetched left the cache before it was read", file=where, remedy="raise cache_size")


def _forecasts_by(reader_ref: weakref.ref[RemoteShardReader]) -> Forecasts:
    """Return a reader's forecasts, none once it is gone."""

    def forecasts(names: Iterable[str]) -> Iterable[Forecast]:
        reader = reader_ref()
        return () if reader is None else reader.forecasts(names)

    return forecasts


def _joined(parts: Sequence[Part]) -> Iterator[Part]:
    by_entry: dict[int, tuple[CachedObject, list[Run]]] = {}
    for entry, run in parts:
        by_entry.setdefault(id(entry), (entry, []))[1].append(run)
    for entry, runs in by_entry.values():
        yield from ((entry, run) for run in joined(runs, _GAP))


class _Planner:
    """A thread that finds out where samples are, which may take requests of its own, and asks for them.

    Attributes:
        pid: the process whose thread it is.
    """

    def __init__(self, reader: RemoteShardReader) -> None:
        self.pid = os.getpid()
        self._waiting: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self.put = self._waiting.put
        threading.Thread(
            target=_request_all, args=(weakref.ref(reader), self._waiting), name="neurofmx_wds plan", daemon=True
        ).start()
        weakref.finalize(reader, self.put, None)


def _request_all(reader_ref: weakref.ref[RemoteShardReader], waiting: queue.SimpleQueue[np.ndarray | None]) -> None:
    while (ids := waiting.get()) is not None:
        reader = reader_ref()
        if reader is None:
            return
        try:
            reader.request(ids)
        except Exception as error:  # whoever reads them gets it, or reads them after all
            logger.debug("reading ahead failed: %s", error)
        del reader
