"""The windows of a recording: where they are, what they hold, and which way each series goes onto the grid.

Knows a recording by its clock, series and tables; reads no samples, and knows nothing of shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NoReturn, Protocol

import numpy as np

from ..errors import SourceError, did_you_mean
from .clock import NS_PER_S, Aligned, Grid, Int64, Windows, difference, intersection, to_ns, union, usable
from .intervals import Intervals
from .names import JOINED, by_field, names_of, words_of
from .options import MODALITIES
from .series import Series
from .units import SpikeTrains
from .video import Video

#: Why windows are dropped, and spikes are in none.
NOT_GIVEN, IN_NO_WINDOW = "outside the intervals given", "where no whole window fits"


class WindowSettings(Protocol):
    """The settings that decide where windows are and what they hold."""

    @property
    def modalities(self) -> tuple[str, ...] | None: ...
    @property
    def bin_width_ns(self) -> Fraction: ...
    @property
    def origin_ns(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def intervals_ns(self) -> list[tuple[int, int]] | None: ...
    @property
    def align(self) -> str | None: ...
    @property
    def event(self) -> str: ...
    @property
    def bins_before(self) -> int: ...
    @property
    def max_gap_s(self) -> float: ...
    @property
    def behavior_method(self) -> str: ...
    @property
    def lfp_method(self) -> str: ...
    @property
    def spike_format(self) -> str: ...
    @property
    def spike_dtype(self) -> str: ...
    @property
    def seconds_per_time(self) -> Fraction: ...


class AnyRecording(Protocol):
    """A recording: an NWB file, arrays along time, a sweep, or one whose samples lie in the segments of a dataset."""

    path: str
    warnings: list[str]

    @property
    def units_table(self) -> dict[str, list[Any]]: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def contents(self) -> str: ...
    @property
    def spikes(self) -> SpikeTrains: ...
    @property
    def spike_support(self) -> tuple[Int64, str, int]: ...
    @property
    def behavior(self) -> tuple[Series, ...]: ...
    @property
    def events(self) -> tuple[Series, ...]: ...
    @property
    def intervals(self) -> dict[str, Intervals]: ...
    @property
    def invalid_times(self) -> Int64: ...
    def has(self, modality: str) -> bool: ...
    def has_units(self, path: str) -> bool: ...
    def why_not(self, path: str) -> str: ...
    def align_table(self, name: str) -> Intervals | None: ...
    @property
    def alignable(self) -> tuple[str, ...]: ...
    def fields_of(self, modality: str) -> dict[str, Series]: ...
    def videos_of(self, modality: str) -> dict[str, Video]: ...
    def unused(self) -> list[Any]: ...
    def warn(self, *lines: str) -> None: ...


@dataclass(frozen=True)
class Plan:
    """Where the windows of a recording are, and what kept others from being there.

    Attributes:
        modalities: what is converted; the first one's support decides.
        windows: the windows, in segments of whole bins, or each around an event.
        support: int64 (n, 2), ns, where the first modality is.
        valid: int64 (n, 2), ns, where windows may be.
        rule: how the support was found.
        dropped: windows that there are not, by reason.
    """

    modalities: tuple[str, ...]
    windows: Windows | Aligned
    support: Int64
    valid: Int64
    rule: str
    dropped: dict[str, int]


class WindowedRecording:
    """A recording with the settings of its windows.

    Args:
        recording: the recording.
        config: bins, windows and ways.
        stride: bins from window to window.

    Raises:
        SourceError: the recording lacks a modality that was asked for.
    """

    def __init__(self, recording: AnyRecording, config: WindowSettings, stride: int) -> None:
        self.recording = recording
        self.config = config
        self.stride = stride
        self.grid = Grid(config.bin_width_ns, config.origin_ns)
        self.max_gap = config.max_gap_s * NS_PER_S

    @cached_property
    def plan(self) -> Plan:
        """Find the windows: support of the first modality ∩ intervals given − invalid_times, inward to the grid."""
        modalities = self.modalities
        support, rule = self._support(modalities[0])
        stages = {
            f"outside the support of {modalities[0]}": union([support]),
            NOT_GIVEN: support,
            "in invalid_times": support,
        }
        if self.config.intervals_ns is not None:
            stages[NOT_GIVEN] = intersection([support, intervals_given(self.config)])
        valid = stages["in invalid_times"] = difference(stages[NOT_GIVEN], self.recording.invalid_times)
        before, dropped = self._most_windows(support), {}
        for reason, intervals in stages.items():
            left = len(self._windows(intervals))
            dropped[reason] = max(0, before - left)
            before = left
        windows = self._windows(valid)
        if isinstance(windows, Windows):
            dropped["segment shorter than a window"] = windows.counts().count(0)
        else:
            dropped[f"{self.event} is not a time"] = self._events[1]
        lost = {reason: n for reason, n in dropped.items() if n}
        return Plan(modalities, windows, union([support]), valid, rule, lost)

    @property
    def segments(self) -> list[list[int]]:
        """Where windows may be, (start, stop) in ns; of windows on the grid in whole bins."""
        windows = self.plan.windows
        if isinstance(windows, Aligned):
            return self.plan.valid.tolist()
        return [[self.grid.start_of(a), self.grid.start_of(b)] for a, b in windows.segments]

    def _windows(self, intervals: Int64) -> Windows | Aligned:
        if self.config.align is not None:
            return self._events[0].within(intervals)
        length = self.config.sequence_length
        return Windows(tuple(self.grid.whole_bins(intervals)), length, self.stride)

    def _most_windows(self, support: Int64) -> int:
        """Count the windows that there would be if nothing between the support's ends kept them from being there."""
        if self.config.align is not None:
            return len(self._events[0])
        return len(self._windows(np.array([[support[0, 0], support[-1, 1]]]))) if len(support) else 0

    @cached_property
    def _events(self) -> tuple[Aligned, int]:
        """The windows around all events, by row, and how many rows have no usable time.

        Raises:
            SourceError: the recording has no such table, or that no such column of times.
        """
        config, table = self.config, self.aligned_table
        if table is None:
            self._refuse(f"there is no table {config.align} in it to align to", self.recording.alignable)
        seconds = table.times(self.event)
        if seconds is None:
            self._refuse(f"{config.align} has no column {self.event} of times", table.cells)
        rows = np.flatnonzero(usable(seconds))
        aligned = Aligned(rows, to_ns(seconds[rows]), self.grid.width, -config.bins_before, config.sequence_length)
        return aligned, len(seconds) - len(rows)

    @cached_property
    def aligned_table(self) -> Intervals | None:
        """The table that windows are aligned to."""
        return None if self.config.align is None else self.recording.align_table(self.config.align)

    @property
    def event(self) -> str:
        """The column of times that windows are aligned to; a table of events has its own."""
        table, asked = self.aligned_table, self.config.event
        return table.event if table is not None and asked == "start_time" and asked not in table.cells else asked

    @cached_property
    def tables(self) -> dict[str, Intervals]:
        """The tables whose rows become metadata, by name: those of intervals, and the one that is aligned to."""
        tables, aligned = dict(self.recording.intervals), self.aligned_table
        return tables if aligned is None else {**tables, aligned.name: aligned}

    def _refuse(self, problem: str, available: Iterable[str]) -> NoReturn:
        told = f"{problem}; it has {', '.join(available) or 'none'}"
        remedy = "align to a table that it has, and a column of one time in seconds per row"
        raise SourceError(told, file=self.recording.path, remedy=remedy)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """What is converted: what was asked for, or all modalities; paths of units are spikes."""
        found = [name for name in self.recording.modalities if self.config.modalities is None and self._usable(name)]
        asked = self.config.modalities or found or self._all_there_is()
        missing = [name for name in asked if not (self.recording.has(name) and self._usable(name))]
        if missing or not asked:
            known = (*self.recording.modalities, *(found.path for found in self.recording.unused()))
            hints = [self.recording.why_not(name) or did_you_mean(name, known) for name in missing]
            hints = [*filter(None, hints), "ask for what it has, by modality or by path in the file"]
            raise SourceError(
                f"there is no {' and no '.join(missing or MODALITIES)} in it; it has {self.recording.contents}",
                file=self.recording.path,
                remedy="; ".join(hints).replace("?;", "?"),
            )
        return tuple(dict.fromkeys(each for name in asked for each in self._usable(name)))

    def _usable(self, name: str) -> list[str]:
        """Return a modality or path: spikes if there are units, itself if there is anything else that can be used."""
        spikes = ["spikes"] if name == "spikes" or self.recording.has_units(name) else []
        return [*spikes, name] if self.series_of(name) or self._videos_of(name) else spikes

    def _all_there_is(self) -> tuple[str, ...]:
        """Return the paths of the series of a recording that has no modality."""
        every = [f for f in self.recording.unused() if f.kind in ("series", "epochs") and f.in_recording]
        paths = [found.path for found in every if self.recording.fields_of(found.path)]
        if paths:
            problem = f"there is no {' and no '.join(MODALITIES)} in it"
            self.recording.warn(f"{problem}: {', '.join(paths)} are taken instead")
        return tuple(paths)

    def _support(self, modality: str) -> tuple[Int64, str]:
        if modality == "spikes":
            support, rule, stray = self.recording.spike_support
            if stray:
                self.recording.warn(f"{stray} spikes more than a day away from the others do not stretch the support")
            return support, rule
        series = self.series_of(modality)
        timelines = [each.timeline for each in series if not each.is_sparse]
        timelines += [each.timeline for each in self._videos_of(modality).values() if not each.endless]
        if series and not timelines:
            starts, stops = zip(*(each.extent() for each in series), strict=True)
            return np.array([[min(starts), max(stops)]], np.int64), "first to last event"
        supports = [times.support(self.max_gap) for times in timelines]
        return union(supports), f"where any {modality} series has samples, cut at gaps over {self.config.max_gap_s} s"

    def series_of(self, modality: str) -> list[Series]:
        joined = {"behavior": lambda: self.recording.behavior, "events": lambda: self.recording.events}
        if modality in joined:
            return list(joined[modality]())
        return [] if modality == "spikes" else list(self.recording.fields_of(modality).values())

    def _videos_of(self, modality: str) -> dict[str, Video]:
        return {} if modality in (*JOINED, "spikes") else self.recording.videos_of(modality)

    @cached_property
    def videos(self) -> dict[str, Video]:
        """The videos, by field."""
        found = [pair for modality in self.modalities for pair in self._videos_of(modality).items()]
        return by_field(found, names_of(self.separate))

    def joined(self, modality: str) -> list[Series]:
        """Return the series that are columns of one field, behavior or events, if that is asked for."""
        return self.series_of(modality) if modality in self.modalities else []

    @cached_property
    def separate(self) -> dict[str, Series]:
        """The series that have a field of their own, by field."""
        alone = [each for each in self.modalities if each not in (*JOINED, "spikes")]
        return by_field([pair for modality in alone for pair in self.recording.fields_of(modality).items()])

    @cached_property
    def all_series(self) -> list[Series]:
        every = [*self.joined("behavior"), *self.separate.values(), *self.joined("events")]
        return list({each.path: each for each in every}.values())

    @cached_property
    def ways(self) -> dict[str, str]:
        """How each series (by path) goes onto the grid."""
        return {s.path: self._lfp_way(s) if s.kind == "voltage" else self._other_way(s) for s in self.all_series}

    def _other_way(self, series: Series) -> str:
        if series.is_sparse:
            return {"labels": "count", "values": "bin_mean", "epochs": "inside"}[series.kind]
        if self.config.behavior_method != "auto":
            return self.config.behavior_method
        if series.kind != "continuous":
            return "previous"
        return "bin_mean" if 2 * series.timeline.period <= self.grid.width else "linear"

    def _lfp_way(self, series: Series) -> str:
        way, fast = self.config.lfp_method, 2 * series.timeline.period <= self.grid.width
        if way == "native" and series.timeline.rate is None:
            raise SourceError(
                f"{series.path} has irregular timestamps and so no native rate",
                file=self.recording.path,
                remedy="use lfp_method bin_mean or linear",
            )
        if way != "auto":
            return way
        return ("native" if series.timeline.rate is not None else "bin_mean") if fast else "linear"

    def native_length(self, series: Series) -> int:
        rate = series.timeline.rate or 0
        return max(1, round(self.config.sequence_length * self.grid.width * rate / NS_PER_S))

    @cached_property
    def natives(self) -> dict[str, Series]:
        """The series that keep their own rate, by field."""
        return {field: each for field, each in self.separate.items() if self.ways[each.path] == "native"}

    @cached_property
    def masked(self) -> frozenset[str]:
        """Which fields of their own can miss samples in this recording's windows, told by time alone."""
        return frozenset(f for f, each in self.separate.items() if not self._whole(each))

    def _whole(self, series: Series) -> bool:
        if self.ways[series.path] != "native":
            return False
        windows, n = self.plan.windows, self.native_length(series)
        if isinstance(windows, Aligned):
            grids = (windows.grid(i) for i in range(len(windows)))
            return all(series.native_covers(start_of(grid, windows.first), n) for grid in grids)
        return all(
            any(
                run.first <= series.native_start(start_of(self.grid, first), run)
                and series.native_start(start_of(self.grid, stop - windows.length), run) + n <= run.first + run.n
                for run in series.timeline.runs
            )
            for first, stop in self._spans(windows)
        )

    def _spans(self, windows: Windows) -> list[tuple[int, int]]:
        """Return the bins that windows can cover."""
        return windows.spans()

    def describe_fields(self) -> dict[str, dict[str, Any]]:
        length = self.config.sequence_length
        fields: dict[str, dict[str, Any]] = {}
        if "spikes" in self.modalities:
            fields |= self._spike_fields()
        for modality in JOINED:
            series = self.joined(modality)
            if series:
                fields[modality] = self._joined_field(series)
                if modality == "behavior":  # a count is never missing
                    fields["behavior_mask"] = _mask_of(fields["behavior"])
        for field, each in self.separate.items():
            native = self.ways[each.path] == "native"
            rate = each.timeline.rate if native else NS_PER_S / self.grid.width
            fields[field] = {
                "dtype": "float32",
                "shape": [self.native_length(each) if native else length, len(each.columns)],
                "unit": each.unit,
                "columns": list(each.columns),
                "rate": float(rate or 0),
                "ways": [self.ways[each.path]],
                "paths": [each.path],
            }
            if field in self.masked:
                self._refuse_as_mask(f"{field}_mask")
                fields[f"{field}_mask"] = _mask_of(fields[field])
        for field, video in self.videos.items():
            fields |= self._video_fields(field, video)
        return fields

    def _refuse_as_mask(self, field: str) -> None:
        if field in self.separate:
            remedy = "rename the array, or leave it out with modalities"
            raise SourceError("has the name of another's mask", file=self.recording.path, member=field, remedy=remedy)

    def _video_fields(self, field: str, video: Video) -> dict[str, dict[str, Any]]:
        length, paths = self.config.sequence_length, [video.path]
        if video.data is None:
            about = {"unit": "number", "columns": ["file", "frame"], "paths": paths, "files": list(video.files)}
            return {f"{field}_frame": {"dtype": "int64", "shape": [length, 2], **about}}
        shape, dtype = [length, *video.data.shape[1:]], video.data.dtype.name
        mask = {"dtype": "bool", "shape": [length], "unit": ""}
        return {field: {"dtype": dtype, "shape": shape, "unit": video.unit, "paths": paths}, f"{field}_mask": mask}

    def _spike_fields(self) -> dict[str, dict[str, Any]]:
        length, trains = self.config.sequence_length, self.recording.spikes
        ids = [str(i) for i in trains.ids]
        fields: dict[str, dict[str, Any]] = {}
        if self.config.spike_format != "ragged":
            dtype = np.dtype(self.config.spike_dtype).name
            fields["spikes"] = {"dtype": dtype, "shape": [length, len(ids)], "unit": "count", "columns": ids}
        if trains.unit_intervals is not None:
            fields["spikes_mask"] = {"dtype": "bool", "shape": [length, len(ids)], "unit": "", "columns": ids}
        if self.config.spike_format != "dense":
            fields["spike_times"] = {"dtype": "int64", "shape": [None], "unit": "ns"}
            fields["spike_units"] = {"dtype": "int32", "shape": [None], "unit": "column", "columns": ids}
        return fields

    def _joined_field(self, series: list[Series]) -> dict[str, Any]:
        units = [each.unit for each in series for _ in each.columns]
        columns = [column for each in series for column in each.columns]
        return {
            "dtype": "float32",
            "shape": [self.config.sequence_length, len(columns)],
            "unit": units[0] if len(set(units)) == 1 else "various",
            "columns": columns,
            "units": units,
            "ways": [self.ways[each.path] for each in series for _ in each.columns],
            "paths": [each.path for each in series],
        }

    def metadata(
        self, source: str, index: int, grid: Grid, k: int, tables: Mapping[str, Intervals] | None = None
    ) -> dict[str, Any]:
        """Return the metadata of a window.

        Args:
            source: what the recording is called.
            index: the window's number in the recording.
            grid: its bins.
            k: its first bin.
            tables: the rows of interval tables that may be running when it starts; by default all.
        """
        start, windows = grid.start_of(k), self.plan.windows
        metadata: dict[str, Any] = {
            "session_id": self.recording.identity["session_id"],
            "source": source,
            "window_index": index,
            "t_start_ns": start,
            "t_stop_ns": grid.start_of(k + self.config.sequence_length),
            "bin_ns": grid.to_json(),
        }
        if isinstance(windows, Aligned):
            metadata["event_ns"] = grid.origin
        aligned = "" if self.aligned_table is None else self.aligned_table.name
        for table in (self.tables if tables is None else tables).values():
            around = isinstance(windows, Aligned) and table.name == aligned
            row = int(windows.rows[index]) if isinstance(windows, Aligned) and around else table.at(start)
            metadata |= table.metadata(row, self.words[table.name])
        return metadata

    @cached_property
    def words(self) -> dict[str, str]:
        """What the metadata of each table's rows begin with."""
        return words_of(self.tables)


def intervals_given(config: WindowSettings) -> Int64:
    """Return the intervals (ns) that windows are kept to: int64 (n, 2)."""
    return np.array(config.intervals_ns, np.int64).reshape(-1, 2)


def start_of(grid: Grid, k: int) -> Fraction:
    """Return where bin k starts (ns), exactly."""
    return grid.origin + k * grid.width


def _mask_of(field: dict[str, Any]) -> dict[str, Any]:
    return {"dtype": "bool", "shape": field["shape"], "unit": "", "columns": field["columns"]}
