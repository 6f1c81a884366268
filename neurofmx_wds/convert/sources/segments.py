"""A recording as a source of segments: everything in it stored once, for windows that are cut while training.

Knows recordings; knows nothing of shards, nor of windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...nwb.clock import NS_PER_S, Int64, to_ns, usable
from ...nwb.intervals import Intervals
from ...nwb.names import JOINED, field_name
from ...nwb.series import Series
from ...nwb.stored import Held, alignable_rows, describe, table_of
from ...nwb.timeline import Timeline
from ...nwb.video import Video
from .contract import SourceDescription
from .nwb import Fields, OpenRecording, RecordingSource
from .windows import WindowConfig

_ALWAYS = np.iinfo(np.int64)


@dataclass(frozen=True)
class _Span:
    """One segment: its place in time, and where it starts and stops, ns."""

    place: int
    start: int
    stop: int


class SegmentSource(RecordingSource):
    """The segments of one recording.

    Segment p holds what lies in ``[p, p + 1) · segment_s``, counted from the recording's time 0. Stretches of time in
    which nothing was recorded have no segments.

    Args:
        recording: an open NWB file, or arrays along time.
        config: which modalities, and the length of a segment.

    Raises:
        SourceError: the file lacks a modality that was asked for.
    """

    def __init__(self, recording: OpenRecording, config: WindowConfig) -> None:
        super().__init__(recording, config)
        self._segment_ns = round(config.segment_s * NS_PER_S)

    @cached_property
    def _held(self) -> list[Held]:
        held: list[Held] = []
        for modality in self.modalities:
            if modality in JOINED:
                shorts = [(field_name(each.path.rsplit("/", 1)[-1]), each) for each in self.series_of(modality)]
                held += [Held(modality, short, f"{modality}_{short}", each) for short, each in shorts]
            elif modality != "spikes":
                named = {each.path: field for field, each in self.separate.items()}
                for short, each in self.recording.fields_of(modality).items():
                    held.append(Held(modality, short, named[each.path], each))
                videos = {each.path: field for field, each in self.videos.items()}
                for short, video in self.recording.videos_of(modality).items():
                    held.append(Held(modality, short, videos[video.path], video))
        shapes = getattr(self.recording, "shapes", {})
        held = [replace(each, shape=shapes.get(each.short)) for each in held]
        return _with_shared_times(_with_distinct_fields(held))

    @cached_property
    def _places(self) -> Int64:
        """The places in time of the segments, ascending."""
        length = self._segment_ns
        places = [np.unique(self.recording.spikes.times // length)] if "spikes" in self.modalities else []
        for each in self._held:
            if not (isinstance(each.source, Video) and each.source.endless):
                firsts, lasts = each.source.timeline.pieces_at(length)
                pairs = zip((firsts // length).tolist(), (lasts // length).tolist(), strict=True)
                places += [np.arange(first, last + 1) for first, last in pairs]
        return np.unique(np.concatenate([np.empty(0, np.int64), *places]))

    @property
    def _segment_runs(self) -> list[list[int]]:
        """The segments as (place of the first, number of segments) of each run without a break."""
        places = self._places
        firsts = np.flatnonzero(np.diff(places, prepend=places[:1] - 2) > 1)
        return [[int(places[i]), int(n)] for i, n in zip(firsts, np.diff(np.r_[firsts, len(places)]), strict=True)]

    def describe(self) -> SourceDescription:
        """Count the segments and describe what is in them.

        Raises:
            SourceError: the file is damaged, or lacks what was asked for.
        """
        n = len(self._places)
        stored = describe(self._open, self.modalities, self._held, self.max_gap)
        stored |= {"segment_ns": self._segment_ns, "segments": self._segment_runs}
        report = self._stored_report(n) | {"stored": stored}
        return SourceDescription(n, self._described_fields(), report, "" if n else "nothing was recorded")

    def _measured(self) -> dict[str, float]:
        return {}  # no bins are chosen yet

    def _stored_report(self, n: int) -> dict[str, Any]:
        """Return the report of a conversion, of which nothing is about windows: none are cut yet."""
        report = self.report_on("" if n else "nothing was recorded")
        about_windows = ("support_rule", "segments", "bins_in_tails")
        report = {name: value for name, value in report.items() if name not in about_windows}
        report["windows"] = {"emitted": n, "dropped": {}}
        if "spikes" in report:
            spikes = report["spikes"]
            binned = spikes["total"] - spikes["invalid"]
            report["spikes"] = {**spikes, "binned": binned, "outside": 0, "outside_because": {}}
        return report

    def _described_fields(self) -> dict[str, dict[str, Any]]:
        fields: dict[str, dict[str, Any]] = {}
        if "spikes" in self.modalities:
            ids = [str(unit) for unit in self.recording.spikes.ids]
            fields["spike_times"] = {"dtype": "int64", "shape": [None], "unit": "ns"}
            fields["spike_units"] = {"dtype": self._unit_dtype.name, "shape": [None], "unit": "column", "columns": ids}
        for each in self._held:
            source = each.source
            if isinstance(source, Series):
                about = {"unit": source.unit, "columns": list(source.columns), "paths": [source.path]}
                shape = [None, *((len(source.columns),) if each.shape is None else each.shape)]
                fields[each.field] = {"dtype": source.data.dtype.name, "shape": shape, **about}
            else:
                fields[f"{each.field}_numbers"] = {"dtype": "int64", "shape": [None], "unit": "number"}
                if source.data is not None:
                    shape = [None, *source.data.shape[1:]]
                    fields[each.field] = {"dtype": source.data.dtype.name, "shape": shape, "unit": source.unit}
            if each.times:
                fields[each.times] = {"dtype": "int64", "shape": [None], "unit": "ns"}
        return fields

    @property
    def _unit_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if len(self.recording.spikes.ids) <= 1 << 16 else np.uint32)

    def read(self, start: int, stop: int) -> Iterator[tuple[Fields, dict[str, Any]]]:
        """Yield the segments [start, stop) in order.

        Yields:
            (fields, metadata): spike_times int64 (n,), ns, and spike_units (n,); each series as stored, (n, columns),
            in time order, with ``<field>_times`` int64 (n,), ns, where it has no rate (one array for all series with
            the same times); of a video ``<field>_numbers`` int64 (n,) and, if the recording holds them, its frames.

        Raises:
            IndexError: there are no such segments.
            SourceError: the file is damaged.
        """
        if not 0 <= start <= stop <= len(self._places):
            raise IndexError(f"segments [{start}, {stop}) of {len(self._places)} in {self.recording.path}")
        for place in self._places[start:stop].tolist():
            span = _Span(place, place * self._segment_ns, (place + 1) * self._segment_ns)
            yield self._in_segment(span), self._about_segment(span)

    def _in_segment(self, span: _Span) -> Fields:
        fields: Fields = {}
        if "spikes" in self.modalities:
            spikes = self.recording.spikes.within(span.start, span.stop)
            fields["spike_times"] = self.recording.spikes.times[spikes]
            fields["spike_units"] = self.recording.spikes.units[spikes].astype(self._unit_dtype)
        for each in self._held:
            source, timeline = each.source, each.source.timeline
            low, high = timeline.search(span.start), timeline.search(span.stop)
            if isinstance(source, Series):
                rows = source.stored(low, high)
                fields[each.field] = rows if each.shape is None else rows.reshape(len(rows), *each.shape)
            else:
                numbers = _numbers(timeline, low, high)
                fields[f"{each.field}_numbers"] = numbers
                if source.data is not None:
                    fields[each.field] = source.frames(numbers)
            if each.times and each.times not in fields:
                fields[each.times] = timeline.between(low, high)
        return fields

    def _about_segment(self, span: _Span) -> dict[str, Any]:
        start, stop = self._reach(span)
        tables = {each.name: _overlapping(each, start, stop) for each in self.recording.intervals.values()}
        others = {path: _beginning(each, start, stop) for path, each in self._others.items()}
        return {
            "session_id": self.recording.identity["session_id"],
            "source": self._name,
            "segment": span.place,
            "t_start_ns": span.start,
            "t_stop_ns": span.stop,
            "intervals": tables,
            **({"alignable": others} if others else {}),
        }

    @cached_property
    def _others(self) -> dict[str, Intervals]:
        """The tables that windows can be aligned to and whose rows do not stand in every window's metadata, by path."""
        known = {path for table in self.recording.intervals.values() for path in table.paths}
        rows = alignable_rows(self._open)
        return {each.path: table_of(table) for each, table in rows if each.path not in known}

    def _reach(self, span: _Span) -> tuple[int, int]:
        """Return the time (ns) of which a segment has the rows of tables: up to the next one, so that none is lost."""
        i = int(np.searchsorted(self._places, span.place))
        start = span.start if i else _ALWAYS.min
        return start, int(self._places[i + 1]) * self._segment_ns if i + 1 < len(self._places) else _ALWAYS.max


def _overlapping(table: Intervals, start: int, stop: int) -> list[list[Any]]:
    """Return (row, start, stop, *cells) of the intervals that overlap a time, by start.

    Rows without a usable start and stop are there from the beginning of time; their start and stop are None.
    """
    taken = (table.starts < stop) & (table.stops > start)
    rows, starts, stops = (each[taken].tolist() for each in (table.rows, table.starts, table.stops))
    if start == _ALWAYS.min:
        unusable = sorted(set(range(_n_rows(table))).difference(table.rows.tolist()))
        rows, starts, stops = rows + unusable, starts + [None] * len(unusable), stops + [None] * len(unusable)
    times = zip(rows, starts, stops, strict=True)
    return [[row, first, last, *(cells[row] for cells in table.cells.values())] for row, first, last in times]


def _beginning(table: Intervals, start: int, stop: int) -> list[list[Any]]:
    """Return (row, *cells) of the rows that begin in a time; those without a time begin at the beginning of time."""
    seconds = table.times(table.event)
    times = np.full(_n_rows(table), _ALWAYS.min)
    if seconds is not None and len(seconds):
        known = usable(seconds)
        times[known] = to_ns(seconds[known])
    rows = np.flatnonzero((times >= start) & (times < stop)).tolist()
    return [[row, *(cells[row] for cells in table.cells.values())] for row in rows]


def _n_rows(table: Intervals) -> int:
    return len(next(iter(table.cells.values()), ()))


def _with_distinct_fields(held: Iterable[Held]) -> list[Held]:
    """Return the series with a number at the end of each field that another array of the recording has, too."""
    taken: set[str] = set()
    distinct = []
    for each in held:
        field, k = each.field, 2
        while not taken.isdisjoint({field, f"{field}_times", f"{field}_numbers"}):
            field, k = f"{each.field}_{k}", k + 1
        taken |= {field, f"{field}_times", f"{field}_numbers"}
        distinct.append(replace(each, field=field))
    return distinct


def _with_shared_times(held: Iterable[Held]) -> list[Held]:
    """Name the array with the times of each irregular series, one array for all that have the same times."""
    known: list[tuple[Int64, str]] = []
    named = []
    for each in held:
        times = each.source.timeline.times if each.source.timeline.rate is None else None
        if times is not None:
            name = next((name for other, name in known if np.array_equal(times, other)), f"{each.field}_times")
            known += [] if any(name == other for _, other in known) else [(times, name)]
            each = replace(each, times=name)
        named.append(each)
    return named


def _numbers(timeline: Timeline, low: int, high: int) -> Int64:
    return np.arange(low, high) if timeline.order is None else timeline.order[low:high]
