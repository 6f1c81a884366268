"""Where the windows of a dataset of segments are, stretch by stretch, and which of them are selected by metadata.

Knows recordings and the windows planned for them; knows nothing of files, batches or order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..nwb.clock import Grid, Windows
from ..nwb.names import words_of
from .cutting import CutRecording
from .selection import Select, as_function, ask, why_none

_ORIGIN, _FIRST, _STOP, _COUNT, _BEFORE, _LATEST = range(6)
_NEVER_LATE = np.iinfo(np.int64).max
_PER_RECORDING = frozenset({"session_id", "source"})
_PER_WINDOW = frozenset({"window_index", "t_start_ns", "t_stop_ns", "event_ns"})


@dataclass(frozen=True)
class Stretches:
    """Where windows are, over all recordings: stretch by stretch, of which nothing is listed but counts.

    Attributes:
        recording: int64 (n,), number of the recording.
        origin: int64 (n,), where bin 0 is, ns.
        first: int64 (n,), first bin.
        stop: int64 (n,), the bin after the last.
        counts: int64 (n,), windows.
        before: int64 (n,), windows of the recording before these, also those that are not selected.
        latest: int64 (n,), ns, the latest time to which jitter may move the start of a window; with a selection only.
        number: int64 (n,), windows of the dataset before these, also those that are not selected.
    """

    recording: np.ndarray
    origin: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    counts: np.ndarray
    before: np.ndarray
    latest: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, recordings: Sequence[CutRecording], select: Select | None) -> Stretches:
        """Find the stretches of some recordings.

        Raises:
            ValueError: no window fits the selection; the message tells what there is.
            NeurofmxError: `select` raised.
        """
        parts = [np.empty((0, 8), np.int64)]
        n_windows = 0
        for i, each in enumerate(recordings):
            rows = _stretches(each)
            chosen = rows if select is None else _Selection(select, each).choose(rows)
            number = n_windows + chosen[:, _BEFORE]
            parts.append(np.column_stack([np.full(len(chosen), i), chosen, number]))
            n_windows += int(rows[:, _COUNT].sum())
        every = np.concatenate(parts)
        if n_windows and select is not None and not len(every):
            fields = {name for each in recordings for name in each.describe_fields()}
            reason = "" if callable(select) else why_none(_all_metadata(recordings), select, fields)
            raise ValueError(f"select={select!r} matches none of the {n_windows} windows{reason}")
        return cls(*every.T.copy())


def _stretches(recording: CutRecording) -> np.ndarray:
    """Return (origin, first bin, stop bin, windows, windows before, latest start) of each stretch: int64 (n, 6)."""
    windows = recording.plan.windows
    if isinstance(windows, Windows):
        counts = windows.counts()
        spans = [(recording.grid.origin, a, b, n) for (a, b), n in zip(windows.segments, counts, strict=True) if n]
    else:
        stop = windows.first + windows.length
        spans = [(event, windows.first, stop, 1) for event in windows.events.tolist()]
    rows = np.array(spans, np.int64).reshape(-1, 4)
    before = np.cumsum(rows[:, _COUNT]) - rows[:, _COUNT]
    return np.column_stack([rows, before, np.full(len(rows), _NEVER_LATE)])


@dataclass(frozen=True)
class _Piece:
    """Some windows of a stretch, one after the other, at whose starts the same rows of tables are running.

    Attributes:
        low, high: the windows, counted in their stretch.
        latest: ns, the last time at which these rows are running.
        about: the metadata of the first of them.
    """

    low: int
    high: int
    latest: int
    about: dict[str, Any]


class _Selection:
    """Chooses windows of one recording by the metadata that they would have where they were cut by a conversion."""

    def __init__(self, select: Select, recording: CutRecording) -> None:
        self._recording = recording
        self._fits = as_function(select)
        self._wanted = None if callable(select) else dict(select)

    def choose(self, rows: np.ndarray) -> np.ndarray:
        """Return the stretches of those windows that fit, of some stretches."""
        names = None if self._wanted is None else frozenset(self._wanted)
        if self._wanted is not None and names is not None:
            about = {"session_id": self._recording.recording.identity["session_id"]}
            about["source"] = self._recording.recording.path
            if not as_function({name: self._wanted[name] for name in names & _PER_RECORDING})(about):
                return rows[:0]
            if names <= _PER_RECORDING:
                return rows
        bounds = bounds_of(self._recording, names)
        find = self._whole if names is not None and names.isdisjoint(_PER_WINDOW) else self._runs
        chosen: list[tuple[int, ...]] = []
        for row in rows.tolist():
            for piece in pieces(self._recording, row, bounds):
                chosen += [self._part(row, low, high, piece.latest) for low, high in find(piece, row)]
        return np.array(chosen, np.int64).reshape(-1, 6)

    def _whole(self, piece: _Piece, row: Sequence[int]) -> Iterator[tuple[int, int]]:
        if self._asked(piece.about):
            yield piece.low, piece.high

    def _runs(self, piece: _Piece, row: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield the runs [low, high) of windows that fit."""
        low = piece.low
        for window, about in windows_of(self._recording, row, piece):
            if not self._asked(about):
                if low < window:
                    yield low, window
                low = window + 1
        if low < piece.high:
            yield low, piece.high

    def _asked(self, about: dict[str, Any]) -> bool:
        return ask(self._fits, about, self._recording.recording.path, f"window {about['window_index']}")

    def _part(self, row: Sequence[int], low: int, high: int, latest: int) -> tuple[int, ...]:
        """Return the windows [low, high) of a stretch as a stretch."""
        first = row[_FIRST] + low * self._recording.stride
        return row[_ORIGIN], first, row[_STOP], high - low, row[_BEFORE] + low, latest


def bounds_of(recording: CutRecording, names: frozenset[str] | None) -> np.ndarray:
    """Return the times (ns) at which rows of tables start or stop, of those tables that metadata of these names need.

    Args:
        recording: the recording.
        names: names of metadata; None: all.
    """
    heads = recording.segmented.heads
    words = words_of(heads)
    needed = [name for name, head in heads.items() if names is None or not names.isdisjoint(head.names(words[name]))]
    tables = [recording.recording.intervals[name] for name in needed]
    edges = [edge for table in tables for edge in (table.starts, table.stops)]
    return np.unique(np.concatenate([np.empty(0, np.int64), *edges]))


def pieces(recording: CutRecording, row: Sequence[int], bounds: np.ndarray) -> Iterator[_Piece]:
    """Yield the windows of a stretch in pieces that end where a row of a table starts or stops.

    Args:
        recording: the recording.
        row: the stretch.
        bounds: int64, ascending, ns.
    """
    grid = Grid(recording.grid.width, row[_ORIGIN])
    n, stride, first = row[_COUNT], recording.stride, row[_FIRST]
    starts = grid.start_of(first), grid.start_of(first + (n - 1) * stride)
    inner = bounds[np.searchsorted(bounds, starts[0], side="right") : np.searchsorted(bounds, starts[1], side="right")]
    after = -(-(grid.bin_of(inner - 1) + 1 - first) // stride)  # the first window that starts at or after each bound
    cuts = [0, *dict.fromkeys(after.tolist()), n]
    for low, high in zip(cuts, cuts[1:], strict=False):
        if low < high:
            k = first + low * stride
            following = np.searchsorted(bounds, grid.start_of(k), side="right")
            latest = int(bounds[following]) - 1 if following < len(bounds) else _NEVER_LATE
            about = recording.metadata(recording.recording.path, row[_BEFORE] + low, grid, k)
            yield _Piece(low, high, latest, about)


def windows_of(recording: CutRecording, row: Sequence[int], piece: _Piece) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the windows of a piece of a stretch, counted in the stretch, with the metadata of each."""
    grid = Grid(recording.grid.width, row[_ORIGIN])
    for window in range(piece.low, piece.high):
        k = row[_FIRST] + window * recording.stride
        times = {"t_start_ns": grid.start_of(k), "t_stop_ns": grid.start_of(k + recording.length)}
        yield window, {**piece.about, "window_index": row[_BEFORE] + window, **times}


def _all_metadata(recordings: Sequence[CutRecording]) -> Iterator[dict[str, Any]]:
    """Yield the metadata of the first window of each piece of each stretch."""
    for recording in recordings:
        bounds = bounds_of(recording, None)
        for row in _stretches(recording).tolist():
            yield from (piece.about for piece in pieces(recording, row, bounds))
