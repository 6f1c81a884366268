"""NWB recordings as a source of windows: spikes, behavior and other series of the same bins, side by side.

Decides where windows are and which way each series goes onto the grid; knows nothing of shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from ...errors import SourceError, did_you_mean
from ...nwb.clock import (
    NS_PER_S,
    Aligned,
    Grid,
    Int64,
    Windows,
    difference,
    intersection,
    stride_of,
    to_ns,
    union,
    usable,
)
from ...nwb.finding import MODALITIES
from ...nwb.gridding import Float64
from ...nwb.recording import Recording
from ...nwb.series import Series
from ...nwb.timeline import BLOCK_BYTES
from ...nwb.units import support_of
from ...nwb.video import Video
from ...storage.location import name_of
from .config import WindowConfig
from .contract import NOT_GIVEN, SourceDescription
from .listing import Listing
from .names import JOINED, by_field, names_of, words_of

if TYPE_CHECKING:
    from .sweeps import SweepRecording
    from .time_major import ArrayRecording

Fields = dict[str, npt.NDArray[Any]]
#: Of windows side by side, as many to a spike are doubtful where the spikes alone say where windows are.
MOST_EMPTY = 100


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


class RecordingSource:
    """The windows of one recording.

    Args:
        recording: an open NWB file, or arrays along time.
        config: bins, windows and ways.

    Raises:
        SourceError: the file lacks a modality that was asked for.
    """

    listing: Listing | None = None

    def __init__(self, recording: Recording | ArrayRecording | SweepRecording, config: WindowConfig) -> None:
        self.recording = recording
        self.config = config
        self.grid = Grid(config.bin_width_ns, config.origin_ns)
        self._max_gap = config.max_gap_s * NS_PER_S
        self._name = name_of(recording.path)

    def close(self) -> None:
        """Close the file."""
        self.recording.close()

    @cached_property
    def plan(self) -> Plan:
        """Find the windows: support of the first modality ∩ intervals given − invalid_times, inward to the grid."""
        modalities = self._modalities()
        support, rule = self._support(modalities[0])
        stages = {
            f"outside the support of {modalities[0]}": union([support]),
            NOT_GIVEN: support,
            "in invalid_times": support,
        }
        if self.config.intervals is not None:
            stages[NOT_GIVEN] = intersection([support, _intervals_given(self.config)])
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
            dropped[f"{self.config.event} is no time"] = self._events[1]
        lost = {reason: n for reason, n in dropped.items() if n}
        return Plan(modalities, windows, union([support]), valid, rule, lost)

    def _windows(self, intervals: Int64) -> Windows | Aligned:
        if self.config.align is not None:
            return self._events[0].within(intervals)
        length = self.config.sequence_length
        return Windows(tuple(self.grid.whole_bins(intervals)), length, stride_of(length, self.config.overlap))

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
        config, tables = self.config, self.recording.intervals
        table = tables.get(config.align or "")
        seconds = None if table is None else table.times(config.event)
        if table is None:
            self._refuse(f"there is no table {config.align} in it to align to", tables)
        if seconds is None:
            self._refuse(f"{config.align} has no column {config.event} of times", table.cells)
        rows = np.flatnonzero(usable(seconds))
        aligned = Aligned(rows, to_ns(seconds[rows]), self.grid.width, -config.bins_before, config.sequence_length)
        return aligned, len(seconds) - len(rows)

    def _refuse(self, problem: str, available: Iterable[str]) -> NoReturn:
        told = f"{problem}; it has {', '.join(available) or 'none'}"
        remedy = "align to a table that it has, and a column of one time in seconds per row"
        raise SourceError(told, file=self.recording.path, remedy=remedy)

    def _modalities(self) -> tuple[str, ...]:
        asked, present = self.config.modalities, self.recording.modalities
        missing = [name for name in asked or () if not self.recording.has(name)]
        if missing or not (asked or present):
            known = (*present, *(found.path for found in self.recording.unused()))
            close = [did_you_mean(name, known) for name in missing]
            raise SourceError(
                f"there is no {' and no '.join(missing or MODALITIES)} in it; it has {self.recording.contents}",
                file=self.recording.path,
                remedy=" ".join([*filter(None, close), "ask for what it has, by modality or by path in the file"]),
            )
        return asked or present

    def _support(self, modality: str) -> tuple[Int64, str]:
        if modality == "spikes":
            support, rule, stray = support_of(self.recording.spikes)
            if stray:
                self.recording.warn(f"{stray} spikes more than a day away from the others do not stretch the support")
            return support, rule
        timelines = [each.timeline for each in self._series_of(modality)]
        timelines += [each.timeline for each in self._videos_of(modality).values() if not each.endless]
        if modality == "events":
            ends = [int(times.between(k, k + 1)[0]) for times in timelines for k in (0, times.n - 1)]
            return union([np.array([[min(ends), max(ends) + 1]])] if ends else []), "first to last event"
        supports = [times.support(self._max_gap) for times in timelines]
        return union(supports), f"where any {modality} series has samples, cut at gaps over {self.config.max_gap_s} s"

    def _series_of(self, modality: str) -> list[Series]:
        joined = {"behavior": lambda: self.recording.behavior, "events": lambda: self.recording.events}
        if modality in joined:
            return list(joined[modality]())
        return [] if modality == "spikes" else list(self.recording.fields_of(modality).values())

    def _videos_of(self, modality: str) -> dict[str, Video]:
        return {} if modality in (*JOINED, "spikes") else self.recording.videos_of(modality)

    @cached_property
    def _videos(self) -> dict[str, Video]:
        """The videos, by field."""
        found = [pair for modality in self.plan.modalities for pair in self._videos_of(modality).items()]
        return by_field(found, names_of(self._separate))

    def _joined(self, modality: str) -> list[Series]:
        """Return the series that are columns of one field, behavior or events, if that is asked for."""
        return self._series_of(modality) if modality in self.plan.modalities else []

    @cached_property
    def _separate(self) -> dict[str, Series]:
        """The series that have a field of their own, by field."""
        alone = [each for each in self.plan.modalities if each not in (*JOINED, "spikes")]
        return by_field([pair for modality in alone for pair in self.recording.fields_of(modality).items()])

    @cached_property
    def _all_series(self) -> list[Series]:
        every = [*self._joined("behavior"), *self._separate.values(), *self._joined("events")]
        return list({each.path: each for each in every}.values())

    @cached_property
    def _ways(self) -> dict[str, str]:
        """How each series (by path) goes onto the grid."""
        return {s.path: self._lfp_way(s) if s.kind == "voltage" else self._other_way(s) for s in self._all_series}

    def _other_way(self, series: Series) -> str:
        if series.kind == "labels":
            return "count"
        if self.config.behavior_method != "auto":
            return self.config.behavior_method
        if series.kind != "continuous":
            return {"states": "previous", "events": "count"}[series.kind]
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

    def _native_length(self, series: Series) -> int:
        rate = series.timeline.rate or 0
        return max(1, round(self.config.sequence_length * self.grid.width * rate / NS_PER_S))

    @cached_property
    def _natives(self) -> dict[str, Series]:
        """The series that keep their own rate, by field."""
        return {field: each for field, each in self._separate.items() if self._ways[each.path] == "native"}

    @cached_property
    def _masked(self) -> frozenset[str]:
        """Which fields of their own can miss samples in this recording's windows, told by time alone."""
        return frozenset(f for f, each in self._separate.items() if not self._whole(each))

    def _whole(self, series: Series) -> bool:
        if self._ways[series.path] != "native":
            return False
        windows, n = self.plan.windows, self._native_length(series)
        if isinstance(windows, Aligned):
            grids = (windows.grid(i) for i in range(len(windows)))
            return all(series.native_covers(_start(grid, windows.first), n) for grid in grids)
        return all(
            any(
                run.first <= series.native_start(_start(self.grid, first), run)
                and series.native_start(_start(self.grid, stop - windows.length), run) + n <= run.first + run.n
                for run in series.timeline.runs
            )
            for first, stop in windows.spans()
        )

    def describe(self) -> SourceDescription:
        """Count the windows and says what is in them.

        Raises:
            SourceError: the file is damaged, or lacks what was asked for.
        """
        fields = self._fields()
        empty = "" if len(self.plan.windows) else self._why_empty()
        return SourceDescription(len(self.plan.windows), fields, self._report(empty), empty)

    def _why_empty(self) -> str:
        """Describe what keeps every window from fitting, and what helps."""
        plan, config = self.plan, self.config
        window = f"one takes {float(config.sequence_length * self.grid.width) / NS_PER_S:.9g} s"
        told = f"no window fits: {window}; {plan.modalities[0]}: {_extent(plan.support)} ({plan.rule})"
        if config.align is not None:
            dropped = ", ".join(f"{n} {reason}" for reason, n in plan.dropped.items()) or "none in it"
            events = f"{len(self._events[0])} around {config.align}/{config.event}: {dropped}"
            return f"{told}; of {events} (see before_s, after_s and the intervals given)"
        remedy = "give a smaller sequence_length"
        if not len(self._windows(plan.support)):
            scaled = plan.modalities[0] == "spikes" and config.seconds_per_time != 1
            return f"{told} ({f'is time_scale {config.time_scale} right? else ' if scaled else ''}{remedy})"
        if config.intervals is not None:
            left = intersection([plan.support, _intervals_given(config)])
            told += f"; in the intervals given: {_extent(left)}"
            if not len(self._windows(left)):
                return f"{told} (give intervals in which a window fits)"
        return f"{told}; outside invalid_times: {_extent(plan.valid)} ({remedy})"

    def _fields(self) -> dict[str, dict[str, Any]]:
        length = self.config.sequence_length
        fields: dict[str, dict[str, Any]] = {}
        if "spikes" in self.plan.modalities:
            fields |= self._spike_fields()
        for modality in JOINED:
            series = self._joined(modality)
            if series:
                fields[modality] = self._joined_field(series)
                if modality == "behavior":  # a count is never missing
                    fields["behavior_mask"] = _mask_of(fields["behavior"])
        for field, each in self._separate.items():
            native = self._ways[each.path] == "native"
            rate = each.timeline.rate if native else NS_PER_S / self.grid.width
            fields[field] = {
                "dtype": "float32",
                "shape": [self._native_length(each) if native else length, len(each.columns)],
                "unit": each.unit,
                "columns": list(each.columns),
                "rate": float(rate or 0),
                "ways": [self._ways[each.path]],
                "paths": [each.path],
            }
            if field in self._masked:
                self._refuse_as_mask(f"{field}_mask")
                fields[f"{field}_mask"] = _mask_of(fields[field])
        for field, video in self._videos.items():
            fields |= self._video_fields(field, video)
        return fields

    def _refuse_as_mask(self, field: str) -> None:
        if field in self._separate:
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
            "ways": [self._ways[each.path] for each in series for _ in each.columns],
            "paths": [each.path for each in series],
        }

    def _report(self, empty: str) -> dict[str, Any]:
        plan, recording = self.plan, self.recording
        report: dict[str, Any] = {
            "path": self._name,
            **recording.identity,
            "support_rule": plan.rule,
            "segments": self._segments(),
            "windows": {"emitted": len(plan.windows), "dropped": plan.dropped},
            "bins_in_tails": plan.windows.tail_bins() if isinstance(plan.windows, Windows) else 0,
        }
        if self.config.align is not None:
            report["aligned_to"] = f"{self.config.align}/{self.config.event}"
        if "spikes" in plan.modalities:
            report["units"] = recording.units_table
            report["spikes"] = self._spike_account()
        report["series"] = [
            {
                "path": each.path,
                "unit": each.unit,
                "way": self._ways[each.path],
                "samples": each.timeline.n,
                "rate": NS_PER_S / each.timeline.period if each.timeline.period else None,
                "regularity": each.timeline.regularity,
                "gaps": each.timeline.gaps(self._max_gap),
            }
            for each in self._all_series
        ]
        report["videos"] = [
            {"path": each.path, "frames": None if each.endless else each.timeline.n, "files": list(each.files)}
            for each in self._videos.values()
        ]
        taken = {s.path for s in self._all_series} | {video.path for video in self._videos.values()}
        report["unused"] = [found.path for found in recording.unused() if found.path not in taken]
        report["intervals"] = {name: len(table.rows) for name, table in recording.intervals.items()}
        renamed = [name for name, table in recording.intervals.items() if self._words[name] != table.word]
        recording.warn(*(f"intervals/{n}: its metadata begin with {self._words[n]}: others are taken" for n in renamed))
        recording.warn(*filter(None, [empty]))
        report["warnings"] = list(recording.warnings)
        return report

    def _segments(self) -> list[list[int]]:
        windows = self.plan.windows
        if isinstance(windows, Aligned):
            return self.plan.valid.tolist()
        return [[self.grid.start_of(a), self.grid.start_of(b)] for a, b in windows.segments]

    def _covered(self) -> Int64:
        """Return what the windows cover, overlaps once: int64 (n, 2), ns."""
        windows = self.plan.windows
        if isinstance(windows, Aligned):
            return union([windows.spans()])
        return np.array([[*map(self.grid.start_of, span)] for span in windows.spans()], np.int64).reshape(-1, 2)

    def _spike_account(self) -> dict[str, int]:
        trains = self.recording.spikes
        spans = [trains.within(start, stop) for start, stop in self._covered().tolist()]
        binned, invalid = sum(each.stop - each.start for each in spans), sum(trains.invalid.values())
        self.recording.warn(*(f"units: {n} spike times dropped: {reason}" for reason, n in trains.invalid.items()))
        if self.plan.modalities[0] == "spikes" and trains.obs_intervals is None:
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
        }

    def _doubt_empty(self, binned: int) -> None:
        """Warn where windows, which lie between spikes, hold so few that a time or its unit may be wrong."""
        n, covered = len(self.plan.windows), int(np.diff(self._covered()).sum())
        if covered > MOST_EMPTY * max(1, binned) * self.config.sequence_length * self.grid.width:
            first, last = (ns / NS_PER_S for ns in self.plan.valid[[0, -1], [0, 1]].tolist())
            self.recording.warn(
                f"units: {n:,} windows from {first:.6g} s to {last:.6g} s hold {binned} spikes: is one far off, or all "
                "in another unit? intervals (--interval) keeps to the recording, time_scale (--time-scale) mends units"
            )

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
                    self._metadata(index + w, grid, first + low),
                )

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, Grid, int, int]]:
        """Return pieces of consecutive windows on one grid: first window, grid, its first bin there, number of them."""
        windows = self.plan.windows
        if isinstance(windows, Aligned):
            yield from ((i, windows.grid(i), windows.first, 1) for i in range(start, stop))
            return
        widths = [len(self.recording.spikes.ids)] if "spikes" in self.plan.modalities else []
        natives = self._natives.values()
        widths += [len(each.columns) * self._native_length(each) // windows.length for each in natives]
        bins = BLOCK_BYTES // (8 * max(1, sum(widths) + sum(len(each.columns) for each in self._all_series)))
        most = max(1, (bins - windows.length) // windows.stride + 1)
        yield from ((index, self.grid, first, n) for index, first, n in windows.runs(start, stop, most))

    def _block(self, grid: Grid, first: int, stop: int) -> Fields:
        """Return all fields that are on the grid, for its bins [first, stop)."""
        fields: Fields = {}
        if "spikes" in self.plan.modalities:
            if self.config.spike_format != "ragged":
                fields["spikes"] = self._counts(grid, first, stop)
            if self.recording.spikes.unit_intervals is not None:
                fields["spikes_mask"] = self.recording.spikes.observed(grid, first, stop)
        for modality in JOINED:
            series = self._joined(modality)
            if series:
                values = np.concatenate([self._on_grid(each, grid, first, stop) for each in series], axis=1)
                fields[modality] = values.astype(np.float32)
                if modality == "behavior":
                    fields["behavior_mask"] = ~np.isnan(values)
        for field, each in self._separate.items():
            if self._ways[each.path] != "native":
                values = self._on_grid(each, grid, first, stop)
                fields[field], fields[f"{field}_mask"] = values.astype(np.float32), ~np.isnan(values)
        return fields

    def _on_grid(self, series: Series, grid: Grid, first: int, stop: int) -> Float64:
        return series.on_grid(self._ways[series.path], grid, first, stop, self._max_gap)

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
        start, step = _start(grid, first), stride * grid.width
        windows = {f: each.natives(start, step, n, self._native_length(each)) for f, each in self._natives.items()}
        for _ in range(n):
            fields = {field: next(rows) for field, rows in windows.items()}
            masks = {f"{field}_mask": ~np.isnan(rows) for field, rows in fields.items() if field in self._masked}
            yield fields | masks

    def _in_window(self, grid: Grid, k: int) -> Fields:
        """Return the spikes' times, and the videos with their masks, of the window that starts at bin k."""
        fields: Fields = {}
        if "spikes" in self.plan.modalities and self.config.spike_format != "dense":
            ends = grid.start_of(k), grid.start_of(k + self.config.sequence_length)
            fields["spike_times"], fields["spike_units"] = self.recording.spikes.ragged(*ends)
        for field, video in self._videos.items():
            shown = video.shown(grid, k, k + self.config.sequence_length, self._max_gap)
            if video.data is None:
                fields[f"{field}_frame"] = video.in_files(shown)
            else:
                fields[field], fields[f"{field}_mask"] = video.frames(shown), shown >= 0
        return fields

    def _metadata(self, index: int, grid: Grid, k: int) -> dict[str, Any]:
        start, windows = grid.start_of(k), self.plan.windows
        metadata: dict[str, Any] = {
            "session_id": self.recording.identity["session_id"],
            "source": self._name,
            "window_index": index,
            "t_start_ns": start,
            "t_stop_ns": grid.start_of(k + self.config.sequence_length),
            "bin_ns": grid.to_json(),
        }
        if isinstance(windows, Aligned):
            metadata["event_ns"] = grid.origin
        for table in self.recording.intervals.values():
            aligned = isinstance(windows, Aligned) and table.name == self.config.align
            row = int(windows.rows[index]) if isinstance(windows, Aligned) and aligned else table.at(start)
            metadata |= table.metadata(row, self._words[table.name])
        return metadata

    @cached_property
    def _words(self) -> dict[str, str]:
        """What the metadata of each table's rows begin with."""
        return words_of(self.recording.intervals)


def _intervals_given(config: WindowConfig) -> Int64:
    return np.array(config.intervals_ns, np.int64).reshape(-1, 2)


def _extent(intervals: Int64) -> str:
    """Describe how long some intervals are, and where."""
    if not len(intervals):
        return "nothing"
    start, stop, longest = (ns / NS_PER_S for ns in (intervals[0, 0], intervals[-1, 1], np.diff(intervals).max()))
    pieces = "" if len(intervals) == 1 else f"{len(intervals)} pieces of up to "
    return f"{pieces}{longest:.9g} s, from {start:.9g} s to {stop:.9g} s"


def _start(grid: Grid, k: int) -> Fraction:
    return grid.origin + k * grid.width


def _mask_of(field: dict[str, Any]) -> dict[str, Any]:
    return {"dtype": "bool", "shape": field["shape"], "unit": "", "columns": field["columns"]}
