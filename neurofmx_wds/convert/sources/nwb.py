"""NWB recordings as a source of windows: spikes, behavior and other series of the same bins, side by side.

Reads what :mod:`neurofmx_wds.nwb.windows` plans, and reports on it; knows nothing of shards.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import SourceError
from ...nwb.alignable import Alignable
from ...nwb.clock import NS_PER_S, Aligned, Grid, Int64, Windows, intersection, main_span, stride_of, union
from ...nwb.coverage import share_of_bins, share_of_time
from ...nwb.doubts import Extent, clock_doubts, events_outside
from ...nwb.gridding import Float64
from ...nwb.names import JOINED
from ...nwb.series import Series
from ...nwb.timeline import BLOCK_BYTES
from ...nwb.windows import IN_NO_WINDOW, NOT_GIVEN, AnyRecording, WindowedRecording, intervals_given, start_of
from ...storage.location import name_of
from .contract import SourceDescription
from .listing import Listing
from .windows import WindowConfig

Fields = dict[str, npt.NDArray[Any]]
#: Of windows side by side, as many to a spike are doubtful where the spikes alone say where windows are.
MOST_EMPTY = 100


class OpenRecording(AnyRecording, Protocol):
    """A recording whose samples can be read."""

    @property
    def to_align(self) -> Sequence[Alignable]:
        """Tables whose rows windows can be aligned to."""

    @property
    def unit_paths(self) -> tuple[str, ...]:
        """Paths of the tables of units."""

    def close(self) -> None:
        """Close the file."""

    def not_taken(self, modalities: Sequence[str], paths: Collection[str]) -> list[dict[str, str]]:
        """Return the objects of the file that are not converted: path, type, reason and remedy of each."""


class RecordingSource(WindowedRecording):
    """The windows of one recording.

    Args:
        recording: an open NWB file, or arrays along time.
        config: bins, windows and ways.

    Raises:
        SourceError: the file lacks a modality that was asked for.
    """

    listing: Listing | None = None

    def __init__(self, recording: OpenRecording, config: WindowConfig) -> None:
        self.settings = config
        super().__init__(recording, config, stride_of(config.sequence_length, config.overlap))
        self._open = recording
        self._name = name_of(recording.path)
        self._shares: dict[tuple[int, str, bool], tuple[int, int]] = {}

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def describe(self) -> SourceDescription:
        """Count the windows and describe what is in them.

        Raises:
            SourceError: the file is damaged, or lacks what was asked for.
        """
        fields = self.describe_fields()
        empty = "" if len(self.plan.windows) else self._why_empty()
        return SourceDescription(len(self.plan.windows), fields, self.report_on(empty), empty)

    def _why_empty(self) -> str:
        """Describe what keeps every window from fitting, and what helps."""
        plan, config = self.plan, self.settings
        window = f"one takes {float(config.sequence_length * self.grid.width) / NS_PER_S:.9g} s"
        told = f"no window fits: {window}; {plan.modalities[0]}: {_extent(plan.support)} ({plan.rule})"
        if config.align is not None:
            dropped = ", ".join(f"{n} {reason}" for reason, n in plan.dropped.items()) or "none in it"
            events = f"{len(self._events[0])} around {config.align}/{self.event}: {dropped}"
            return f"{told}; of {events} (see before_s, after_s and the intervals given)"
        remedy = "give a smaller sequence_length"
        if not len(self._windows(plan.support)):
            scaled = plan.modalities[0] == "spikes" and config.seconds_per_time != 1
            return f"{told} ({f'is time_scale {config.time_scale} right? else ' if scaled else ''}{remedy})"
        if config.intervals is not None:
            left = intersection([plan.support, intervals_given(config)])
            told += f"; in the intervals given: {_extent(left)}"
            if not len(self._windows(left)):
                return f"{told} (give intervals in which a window fits)"
        return f"{told}; outside invalid_times: {_extent(plan.valid)} ({remedy})"

    def report_on(self, empty: str) -> dict[str, Any]:
        """Return the entry of the recording in the manifest."""
        plan, recording = self.plan, self.recording
        report: dict[str, Any] = {
            "path": self._name,
            **recording.identity,
            "support_rule": plan.rule,
            "segments": self.segments,
            "windows": {"emitted": len(plan.windows), "dropped": plan.dropped},
            "bins_in_tails": plan.windows.tail_bins() if isinstance(plan.windows, Windows) else 0,
        }
        if self.config.align is not None:
            report["aligned_to"] = f"{self.config.align}/{self.event}"
        report["measured"] = self._measured()
        if "spikes" in plan.modalities:
            report["units"] = recording.units_table
            report["spikes"] = self._spike_account()
        report["series"] = [
            {
                "path": each.path,
                "unit": each.unit,
                "way": self.ways[each.path],
                "samples": each.timeline.n,
                "rate": NS_PER_S / each.timeline.period if each.timeline.period else None,
                "regularity": each.timeline.regularity,
                "gaps": each.timeline.gaps(self.max_gap),
                **({"columns": dict(each.about)} if each.about else {}),
            }
            for each in self.all_series
        ]
        report["videos"] = [
            {"path": each.path, "frames": None if each.endless else each.timeline.n, "files": list(each.files)}
            for each in self.videos.values()
        ]
        taken = {s.path for s in self.all_series} | {video.path for video in self.videos.values()}
        report["unused"] = [f.path for f in recording.unused() if f.path not in taken and f.in_recording]
        rows = [path for table in self.tables.values() for path in table.paths]
        report["not_taken"] = self._open.not_taken(plan.modalities, {*taken, *rows})
        report["intervals"] = {name: len(table.rows) for name, table in recording.intervals.items()}
        renamed = [name for name, table in self.tables.items() if self.words[name] != table.word]
        recording.warn(*self._unheeded())
        recording.warn(*(f"intervals/{n}: its metadata begin with {self.words[n]}: others are taken" for n in renamed))
        recording.warn(*self._doubts(), *filter(None, [empty]))
        report["warnings"] = list(recording.warnings)
        return report

    def _measured(self) -> dict[str, float]:
        """Return the share of the windows' bins in which each field has values, as far as times tell."""
        fields = {modality: self.joined(modality) for modality in JOINED} | {f: [s] for f, s in self.separate.items()}
        found: dict[str, float] = {}
        for field, series in fields.items():
            parts = [(len(each.columns), self._measured_of(each)) for each in series]
            total = sum(n * of for n, (_, of) in parts)
            if total:
                found[field] = round(sum(n * part for n, (part, _) in parts) / total, 4)
        return found

    def _measured_of(self, series: Series) -> tuple[int, int]:
        windows, way = self.plan.windows, self.ways[series.path]
        key = id(series.timeline), way, series.is_sparse
        if key not in self._shares:  # series may share their timeline
            if isinstance(windows, Aligned) or way == "native":
                self._shares[key] = share_of_time(series, self._covered(), self.max_gap)
            else:
                self._shares[key] = share_of_bins(series, way, self.grid, windows.spans(), self.max_gap)
        return self._shares[key]

    def _doubts(self) -> Iterator[str]:
        """Yield what does not fit together of the times of the objects that are taken."""
        if len(self.plan.support):
            zero = self.recording.identity.get("timestamps_reference_time")
            known = None if zero is None else datetime.fromisoformat(zero).timestamp()
            yield from clock_doubts(self._reference(), self._extents(), known)
        table = self.aligned_table
        if table is not None and len(table.starts):
            seconds = table.times(self.event)
            yield from filter(None, [] if seconds is None else [events_outside(table, self.event, seconds)])

    def _reference(self) -> Extent:
        first = self.plan.modalities[0]
        start, stop = (int(each) for each in self.plan.support[[0, -1], [0, 1]])
        if first == "spikes":
            return Extent.of(" and ".join(self._open.unit_paths), start, stop, len(self.recording.spikes))
        return Extent.of(first, start, stop, sum(each.timeline.n for each in self.series_of(first)))

    def _extents(self) -> Iterator[Extent]:
        """Yield when each object begins and ends but those that decide where windows are."""
        first = {each.path for each in self.series_of(self.plan.modalities[0])}
        if "spikes" in self.plan.modalities[1:] and len(self.recording.spikes):
            times = self.recording.spikes.times
            start, stop = times[main_span(times)][[0, -1]].tolist()
            yield Extent.of(" and ".join(self._open.unit_paths), start, stop, len(times))
        for each in self.all_series:
            if each.path not in first and each.timeline.n:
                steady = each.timeline.rate is not None and not each.is_sparse
                yield Extent.of(each.path, *each.extent(), each.timeline.n, steady)
        for table in self.tables.values():
            if len(table.starts):
                path = table.paths[0] if table.paths else table.name
                yield Extent.of(path, int(table.starts.min()), int(table.stops.max()), len(table.starts))

    def _covered(self) -> Int64:
        """Return what the windows cover, overlaps once: int64 (n, 2), ns."""
        windows = self.plan.windows
        if isinstance(windows, Aligned):
            return union([windows.spans()])
        return np.array([[*map(self.grid.start_of, span)] for span in windows.spans()], np.int64).reshape(-1, 2)

    def _spike_account(self) -> dict[str, Any]:
        trains = self.recording.spikes
        spans = [trains.within(start, stop) for start, stop in self._covered().tolist()]
        binned, invalid = sum(each.stop - each.start for each in spans), sum(trains.invalid.values())
        self.recording.warn(*(f"units: {n} spike times dropped: {reason}" for reason, n in trains.invalid.items()))
        if self.modalities[0] == "spikes" and trains.obs_intervals is None:
            self._doubt_empty(binned)
        if trains.unsorted_units:
            self.recording.warn(f"units: spike times were out of order and sorted: {list(trains.unsorted_units)}")
        if trains.duplicates:
            self.recording.warn(f"units: {trains.duplicates} spikes at the very time of another of their unit; kept")
        if trains.bad_obs_intervals:
            self.recording.warn(f"units: {trains.bad_obs_intervals} obs_intervals have no usable start and stop")
        return {
            "total": len(trains) + invalid,
            "binned": binned,
            "outside": len(trains) - binned,
            "invalid": invalid,
            "outside_because": self._outside_because(binned),
        }

    def _outside_because(self, binned: int) -> dict[str, int]:
        """Return how many spikes are in no window, by reason."""
        trains, plan = self.recording.spikes, self.plan

        def among(intervals: Int64) -> int:
            return sum(each.stop - each.start for each in (trains.within(a, b) for a, b in intervals.tolist()))

        given = (
            plan.support
            if self.config.intervals_ns is None
            else intersection([plan.support, intervals_given(self.config)])
        )
        counts = [len(trains), among(plan.support), among(given), among(plan.valid), binned]
        reasons = (f"outside the support of {plan.modalities[0]}", NOT_GIVEN, "in invalid_times", IN_NO_WINDOW)
        lost = {reason: a - b for reason, (a, b) in zip(reasons, itertools.pairwise(counts), strict=True)}
        return {reason: n for reason, n in lost.items() if n}

    def _doubt_empty(self, binned: int) -> None:
        """Warn where windows, which lie between spikes, hold so few that a time or its unit may be wrong."""
        n, covered = len(self.plan.windows), int(np.diff(self._covered()).sum())
        if covered > MOST_EMPTY * max(1, binned) * self.config.sequence_length * self.grid.width:
            first, last = (ns / NS_PER_S for ns in self.plan.valid[[0, -1], [0, 1]].tolist())
            self.recording.warn(
                f"units: {n:,} windows from {first:.6g} s to {last:.6g} s hold {binned} spikes: is one far off, or all "
                "in another unit? intervals (--interval) keeps to the recording, time_scale (--time-scale) mends units"
            )

    def _unheeded(self) -> list[str]:
        """Return a line for each expression that has nothing to choose from in this recording."""
        there = {"units"} if "spikes" in self.plan.modalities else set()
        there |= {"electrodes" if each.kind == "voltage" else "rois" for each in self.all_series if each.about}
        given = {name: getattr(self.settings, name) for name in ("units", "electrodes", "rois")}
        return [
            f"{name}: nothing that is taken of the recording is what {name}={wanted!r} could choose from"
            for name, wanted in given.items()
            if wanted is not None and name not in there
        ]

    def read(self, start: int, stop: int) -> Iterator[tuple[Fields, dict[str, Any]]]:
        """Return the windows [start, stop) in order; those that overlap share memory, which nobody can write to.

        Yields:
            (fields, metadata), as `describe` says: spikes (L, n_units), spikes_mask where the units' observation
            intervals differ; spike_times and spike_units (n_spikes,); behavior float32 (L, columns) and behavior_mask,
            bool; events float32 (L, labels); series with a field of their own float32 (n, columns), with a mask where
            this recording's windows can miss samples; a video's frame shown at each bin's centre, as stored, (L, …)
            and its mask (L,), or, of a video in other files, int64 (L, 2): number of the file, of the frame in it.

        Raises:
            IndexError: there are no such windows.
            SourceError: the file is damaged, or a count does not fit the integer dtype asked for.
        """
        windows = self.plan.windows
        if not 0 <= start <= stop <= len(windows):
            raise IndexError(f"windows [{start}, {stop}) of {len(windows)} in {self.recording.path}")
        for index, grid, first, n in self._runs(start, stop):
            stride = windows.stride if isinstance(windows, Windows) else 0
            block = self._block(grid, first, first + (n - 1) * stride + windows.length)
            for rows in block.values():
                rows.flags.writeable = False
            for w, native in enumerate(self._native(grid, first, stride, n)):
                low = w * stride
                yield (
                    {name: rows[low : low + windows.length] for name, rows in block.items()}
                    | native
                    | self._in_window(grid, first + low),
                    self.metadata(self._name, index + w, grid, first + low),
                )

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, Grid, int, int]]:
        """Return pieces of consecutive windows on one grid: first window, grid, its first bin there, number of them."""
        windows = self.plan.windows
        if isinstance(windows, Aligned):
            yield from ((i, windows.grid(i), windows.first, 1) for i in range(start, stop))
            return
        widths = [len(self.recording.spikes.ids)] if "spikes" in self.modalities else []
        natives = self.natives.values()
        widths += [len(each.columns) * self.native_length(each) // windows.length for each in natives]
        bins = BLOCK_BYTES // (8 * max(1, sum(widths) + sum(len(each.columns) for each in self.all_series)))
        most = max(1, (bins - windows.length) // windows.stride + 1)
        yield from ((index, self.grid, first, n) for index, first, n in windows.runs(start, stop, most))

    def _block(self, grid: Grid, first: int, stop: int) -> Fields:
        """Return all fields that are on the grid, for its bins [first, stop)."""
        fields: Fields = {}
        if "spikes" in self.modalities:
            if self.config.spike_format != "ragged":
                fields["spikes"] = self._counts(grid, first, stop)
            if self.recording.spikes.unit_intervals is not None:
                fields["spikes_mask"] = self.recording.spikes.observed(grid, first, stop)
        for modality in JOINED:
            series = self.joined(modality)
            if series:
                values = np.concatenate([self._on_grid(each, grid, first, stop) for each in series], axis=1)
                fields[modality] = values.astype(np.float32)
                if modality == "behavior":
                    fields["behavior_mask"] = ~np.isnan(values)
        for field, each in self.separate.items():
            if self.ways[each.path] != "native":
                values = self._on_grid(each, grid, first, stop)
                fields[field], fields[f"{field}_mask"] = values.astype(np.float32), ~np.isnan(values)
        return fields

    def _on_grid(self, series: Series, grid: Grid, first: int, stop: int) -> Float64:
        return series.on_grid(self.ways[series.path], grid, first, stop, self.max_gap)

    def _counts(self, grid: Grid, first: int, stop: int) -> npt.NDArray[Any]:
        counts = self.recording.spikes.counts(grid, first, stop)
        cast = counts.astype(self.config.spike_dtype)
        if not np.array_equal(cast, counts):
            k, unit = np.unravel_index(int(counts.argmax()), counts.shape)
            raise SourceError(
                f"{counts[k, unit]} spikes of unit {self.recording.spikes.ids[unit]} in the bin at "
                f"{grid.start_of(first + int(k)) / NS_PER_S} s do not fit {self.config.spike_dtype}",
                file=self.recording.path,
                member="spikes",
                remedy="use a wider spike_dtype (float32 is the default) or smaller bins",
            )
        return cast

    def _native(self, grid: Grid, first: int, stride: int, n: int) -> Iterator[Fields]:
        """Return the fields at their series' own rate, and their masks, of n windows, one every `stride` bins."""
        start, step = start_of(grid, first), stride * grid.width
        windows = {f: each.natives(start, step, n, self.native_length(each)) for f, each in self.natives.items()}
        for _ in range(n):
            fields = {field: next(rows) for field, rows in windows.items()}
            masks = {f"{field}_mask": ~np.isnan(rows) for field, rows in fields.items() if field in self.masked}
            yield fields | masks

    def _in_window(self, grid: Grid, k: int) -> Fields:
        """Return the spikes' times, and the videos with their masks, of the window that starts at bin k."""
        fields: Fields = {}
        if "spikes" in self.modalities and self.config.spike_format != "dense":
            ends = grid.start_of(k), grid.start_of(k + self.config.sequence_length)
            fields["spike_times"], fields["spike_units"] = self.recording.spikes.ragged(*ends)
        for field, video in self.videos.items():
            shown = video.shown(grid, k, k + self.config.sequence_length, self.max_gap)
            if video.data is None:
                fields[f"{field}_frame"] = video.in_files(shown)
            else:
                fields[field], fields[f"{field}_mask"] = video.frames(shown), shown >= 0
        return fields


def _extent(intervals: Int64) -> str:
    """Describe how long some intervals are, and where."""
    if not len(intervals):
        return "nothing"
    start, stop, longest = (ns / NS_PER_S for ns in (intervals[0, 0], intervals[-1, 1], np.diff(intervals).max()))
    pieces = "" if len(intervals) == 1 else f"{len(intervals)} pieces of up to "
    return f"{pieces}{longest:.9g} s, from {start:.9g} s to {stop:.9g} s"
