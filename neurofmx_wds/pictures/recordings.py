"""Pictures of a recording, stretch by stretch: what would be converted, on the recording's own clock.

Knows recordings and panels; reads only the stretch that is drawn. Knows nothing of files or shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from ..convert.sources.nwb import RecordingSource
from ..format.info import count
from ..nwb.clock import NS_PER_S, Int64, difference, intersection, union
from ..nwb.events import LABEL_COLUMNS
from ..nwb.intervals import Intervals
from ..nwb.series import Series
from ..nwb.timeline import BLOCK_BYTES, Timeline
from ..nwb.video import Video
from .figure import Picture
from .panels import (
    MOST_FRAMES,
    MOST_POINTS,
    MOST_TRACES,
    Coverage,
    Floats,
    Frames,
    Marks,
    Panel,
    Raster,
    Traces,
    evenly,
    thinned,
)

#: More columns than this are drawn one below the other.
_MOST_TOGETHER = 3
#: Tables in the panel of coverage.
_MOST_TABLES = 4
#: A column of texts tells intervals apart if it has at most so many different ones.
_MOST_LABELS = 12


class RecordingPictures(Sequence[Picture]):
    """Pictures of stretches of a recording that follow one another.

    Args:
        source: the recording, with what would be converted of it. Pictures are read from it when they are asked for.
        seconds: length of a stretch.
        start: s, where the first begins; None: in the middle of the longest stretch in which everything was measured.
    """

    def __init__(self, source: RecordingSource, seconds: float = 10.0, start: float | None = None) -> None:
        self._source = source
        self._recording = source.recording
        self._length = max(1, round(seconds * NS_PER_S))
        self._supports = _supports(source)
        tables = [np.stack([table.starts, table.stops], axis=1) for table in source.tables.values()]
        every = union([*self._supports.values(), *tables])
        self._span = (int(every[0, 0]), int(every[-1, 1])) if len(every) else (0, self._length)
        self._start = self._good_start() if start is None else round(start * NS_PER_S)

    def __len__(self) -> int:
        return max(1, -(-(self._span[1] - self._start) // self._length))

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return self._picture(self._start + index * self._length)

    def _good_start(self) -> int:
        """Return where the middle stretch of the longest time begins in which everything was measured."""
        supports = [each for each in self._supports.values() if len(each)]
        common = intersection(supports) if supports else np.empty((0, 2), np.int64)
        if not len(common):
            common = supports[0] if supports else np.array([[0, self._length]])
        start, stop = common[int(np.diff(common, axis=1).argmax())].tolist()
        middle = max(start, (start + stop - self._length) // 2)
        whole = middle // NS_PER_S * NS_PER_S
        return int(whole if whole >= start else middle)

    def _picture(self, start: int) -> Picture:
        stop = start + self._length
        panels = [*self._spikes(start, stop), *self._series(start, stop), *self._sparse(start, stop)]
        panels += [*self._tables(start, stop), *self._videos(start, stop), self._coverage(start, stop)]
        identity = self._recording.identity
        title = f"{identity['session_id']}: {start / NS_PER_S:.6g} to {stop / NS_PER_S:.6g} s"
        return Picture(title, panels, (start / NS_PER_S, stop / NS_PER_S), self._recording.path)

    def _spikes(self, start: int, stop: int) -> Iterator[Panel]:
        if "spikes" not in self._source.modalities:
            return
        trains = self._recording.spikes
        own = trains.within(start, stop)
        title = f"{count(own.stop - own.start, 'spike')} of {count(len(trains.ids), 'unit')}"
        names = populations(self._recording.units_table, len(trains.ids))
        yield Raster(trains.times[own] / NS_PER_S, trains.units[own], len(trains.ids), names, title=title)

    def _series(self, start: int, stop: int) -> Iterator[Panel]:
        for series in _alike(each for each in self._source.all_series if not each.is_sparse):
            times, values = _read(series, start, stop, self._source.max_gap)
            columns = [column for each in series for column in each.columns]
            chosen = evenly(len(columns), MOST_TRACES)
            stacked = series[0].kind == "voltage" or len(columns) > _MOST_TOGETHER
            missing = _missing(series[0].timeline, start, stop, self._source.max_gap)
            path = series[0].path if len(series) == 1 else series[0].path.rpartition("/")[0]
            title = f"{path}, {len(chosen)} of {len(columns)} columns" if len(chosen) < len(columns) else path
            yield Traces(times, values, [columns[i] for i in chosen], series[0].unit, stacked, missing, title)

    def _sparse(self, start: int, stop: int) -> Iterator[Panel]:
        for each in self._source.all_series:
            if each.kind in ("labels", "epochs"):
                spans = [*(_events if each.kind == "labels" else _states)(each, start, stop)]
                if spans:
                    yield Marks(spans, each.path)

    def _tables(self, start: int, stop: int) -> Iterator[Panel]:
        tables = self._source.tables
        for table in tables.values():
            spans = spans_of(table, start, stop)
            if spans:
                yield Marks(
                    spans, f"{table.name} ({', '.join(filter(None, [label_column(table)]))})".removesuffix(" ()")
                )
        invalid = intersection([self._recording.invalid_times, np.array([[start, stop]])])
        if len(invalid):
            yield Marks([(a / NS_PER_S, b / NS_PER_S, "invalid") for a, b in invalid.tolist()], "invalid_times")

    def _videos(self, start: int, stop: int) -> Iterator[Panel]:
        for field, video in self._source.videos.items():
            if video.data is not None:
                yield _frames(field, video, start, stop)

    def _coverage(self, start: int, stop: int) -> Coverage:
        tables = [table for table in self._source.tables.values() if len(table.rows)][:_MOST_TABLES]
        marks = {table.name: union([np.stack([table.starts, table.stops], axis=1)]) for table in tables}
        if len(self._recording.invalid_times):
            marks["invalid_times"] = union([self._recording.invalid_times])
        rows = [(name, intervals / NS_PER_S) for name, intervals in (*self._supports.items(), *marks.items())]
        first, last = (time / NS_PER_S for time in self._span)
        shown = start / NS_PER_S, stop / NS_PER_S
        return Coverage(rows, (first, last), shown, "what was measured when", len(marks))


def _supports(source: RecordingSource) -> dict[str, Int64]:
    """Return the intervals (ns) in which each thing was measured, by name."""
    supports: dict[str, Int64] = {}
    if "spikes" in source.modalities:
        supports["spikes"] = union([source.recording.spike_support[0]])
    for group in _alike(each for each in source.all_series if not each.is_sparse):
        name = group[0].path if len(group) == 1 else group[0].path.rpartition("/")[0]
        own = group[0].timeline.support(source.max_gap)
        supports[name] = union([supports[name], own]) if name in supports else own
    for field, video in source.videos.items():
        if not video.endless:
            supports[field] = video.timeline.support(source.max_gap)
    return supports


def _alike(series: Iterable[Series]) -> list[list[Series]]:
    """Return series of one container, unit and timeline together: they are drawn in one panel."""
    groups: list[list[Series]] = []
    for each in series:
        alone = each.kind == "voltage" or len(each.columns) > 1
        own = next((group for group in groups if not alone and _are_alike(group[0], each)), None)
        if own is None:
            groups.append([each])
        else:
            own.append(each)
    return groups


def _are_alike(one: Series, other: Series) -> bool:
    same = one.path.rpartition("/")[0] == other.path.rpartition("/")[0] and one.unit == other.unit
    times, others = one.timeline, other.timeline
    if not same or one.kind != other.kind or len(one.columns) > 1 or times.n != others.n or times.runs != others.runs:
        return False
    if times.times is None or others.times is None:
        return times.rate == others.rate
    return np.array_equal(times.times, others.times)


def populations(units: Mapping[str, Sequence[Any]], n: int) -> list[str]:
    """Return the population of each of n units: its location, else its electrode group; [] if neither is known."""
    for name in ("location", "brain_area", "brain_region", "electrode_group"):
        column = units.get(name)
        if column is not None and len(column) == n and any(column):
            return [str(value or "unknown") for value in column]
    return []


def _read(series: Sequence[Series], start: int, stop: int, max_gap: float) -> tuple[Floats, Floats]:
    """Return the times (s) and the values of the chosen columns of series of one timeline, thinned, NaN at gaps."""
    timeline = series[0].timeline
    low, high = timeline.search(start), timeline.search(stop)
    chosen = evenly(sum(len(each.columns) for each in series), MOST_TRACES)
    turns = np.array([each.turn or np.inf for each in series for _ in each.columns])[chosen]
    rows = max(1, BLOCK_BYTES // (8 * sum(len(each.columns) for each in series)))
    times, values = [], []
    for first in range(low, high, rows):
        last = min(high, first + rows)
        block = np.concatenate([each.values(first, last) for each in series], axis=1)[:, chosen]
        most = max(2, MOST_POINTS * (last - first) // (high - low))
        each_time, each_value = thinned(timeline.between(first, last) / NS_PER_S, block, most)
        times.append(each_time)
        values.append(each_value)
    if not times:
        return np.empty(0), np.empty((0, len(chosen)))
    every = np.concatenate(values)
    wraps = np.abs(np.diff(every, axis=0, prepend=every[:1])) > turns / 2
    every[wraps] = np.nan  # an angle that passes its zero does not cross all values
    return _broken(np.concatenate(times), every, _missing(timeline, start, stop, max_gap))


def _broken(times: Floats, values: Floats, gaps: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    """Return the same with a NaN in each gap, so that no line crosses it."""
    middles = np.array([(a + b) / 2 for a, b in gaps])
    places = np.searchsorted(times, middles)
    return np.insert(times, places, middles), np.insert(values, places, np.nan, axis=0)


def _missing(timeline: Timeline, start: int, stop: int, max_gap: float) -> list[tuple[float, float]]:
    """Return where a series has no samples (s), of one stretch (ns)."""
    missing = difference(np.array([[start, stop]]), timeline.support(max_gap))
    return [(a / NS_PER_S, b / NS_PER_S) for a, b in missing.tolist()]


def _events(series: Series, start: int, stop: int) -> Iterator[tuple[float, float, str]]:
    low, high = series.timeline.search(start), series.timeline.search(stop)
    times = series.timeline.between(low, high) / NS_PER_S
    rows, columns = np.nonzero(np.asarray(series.stored(low, high)))
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        yield float(times[row]), float(times[row]), series.columns[column]


def _states(series: Series, start: int, stop: int) -> Iterator[tuple[float, float, str]]:
    times = series.timeline.between(0, series.timeline.n)
    holds = np.asarray(series.stored(0, series.timeline.n))
    for column, name in enumerate(series.columns):
        edges = np.diff(holds[:, column], prepend=0, append=0)
        begins, ends = np.flatnonzero(edges > 0), np.minimum(np.flatnonzero(edges < 0), len(times) - 1)
        for a, b in zip(times[begins].tolist(), times[ends].tolist(), strict=True):
            if a < stop and b > start:
                yield a / NS_PER_S, b / NS_PER_S, name


def label_column(table: Intervals) -> str:
    """Return the column that tells the intervals of a table apart; "" if none does."""
    texts = [name for name, cells in table.cells.items() if any(isinstance(cell, (str, bool)) for cell in cells)]
    for name in (*LABEL_COLUMNS, *texts):
        if name in table.cells and 1 < len(set(map(str, table.cells[name]))) <= _MOST_LABELS:
            return name
    return ""


def _text(cell: Any) -> str:
    return ", ".join(map(str, cell)) if isinstance(cell, list) else str(cell)


def spans_of(table: Intervals, start: int, stop: int) -> list[tuple[float, float, str]]:
    """Return (start, stop, label) in s of the intervals of a table that overlap a stretch (ns)."""
    column = label_column(table)
    seconds = table.times(table.event) if not len(table.rows) else None
    if seconds is not None:  # a table of events
        times = seconds[(seconds * NS_PER_S >= start) & (seconds * NS_PER_S < stop)]
        return [(float(time), float(time), table.name) for time in times]
    near = np.flatnonzero((table.starts < stop) & (table.stops > start))
    labels = [_text(table.cells[column][table.rows[i]]) if column else "" for i in near]
    times = np.stack([table.starts[near], table.stops[near]], axis=1) / NS_PER_S
    return [(a, b, label) for (a, b), label in zip(times.tolist(), labels, strict=True)]


def _frames(field: str, video: Video, start: int, stop: int) -> Frames:
    low, high = video.timeline.search(start), video.timeline.search(stop)
    places = low + evenly(high - low, MOST_FRAMES)
    numbers = [int(i if video.timeline.order is None else video.timeline.order[i]) for i in places]
    frames = [*video.frames(np.array(numbers, np.int64))]
    return Frames([video.timeline.time_of(int(i)) / NS_PER_S for i in places], frames, f"{field}: {video.path}")
