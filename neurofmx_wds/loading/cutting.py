"""Windows cut from segments: many at once, with the same bytes as a conversion writes.

Knows recordings, bins and segments; knows nothing of order, epochs or ranks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..errors import NeurofmxError
from ..nwb.clock import NS_PER_S, Grid
from ..nwb.clock import Windows as Strided
from ..nwb.gridding import Centres, previous
from ..nwb.names import JOINED, words_of
from ..nwb.series import Series, at_centres
from ..nwb.video import Video
from ..nwb.windows import WindowedRecording, start_of
from .gathering import Cut, Gathered, gather_rows, gather_samples, gather_spikes, numbers_field, rows_between
from .memory import Memory
from .segments import SegmentedRecording
from .windows import Windows

Column = Any  # a tensor (n_windows, …), or Events


@dataclass(frozen=True)
class Events:
    """The spikes of some windows, window after window: times (ns from its window's start), units, and how many each."""

    times: np.ndarray
    units: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, windows: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> Events:
        """Put together the times and units of some windows; None stands for no spikes."""
        nothing = np.empty(0, np.int64), np.empty(0, np.int32)
        given = [nothing if each is None else each for each in windows]
        times, units = (np.concatenate([each[k] for each in given]) for k in (0, 1))
        return cls(times, units, np.array([len(each) for each, _ in given]))

    def each(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the times and units of each window, as arrays of their own."""
        cuts = np.cumsum(self.counts)[:-1]
        pairs = zip(np.split(self.times, cuts), np.split(self.units, cuts), strict=True)
        return [(times.copy(), units.copy()) for times, units in pairs]

    def flat(self) -> dict[str, torch.Tensor]:
        """Return the spikes of all windows one after the other, and where each window's begin."""
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        flat = {"spike_times": self.times, "spike_units": self.units, "spike_offsets": offsets}
        return {name: torch.from_numpy(values) for name, values in flat.items()}

    def padded(self, multiple: int) -> dict[str, torch.Tensor]:
        """Return the spikes as (n_windows, n) arrays with a mask, n being a multiple of a number; 0 where none is."""
        n = int(self.counts.max(initial=0))
        n += -n % multiple
        first = np.cumsum(self.counts) - self.counts
        window = np.repeat(np.arange(len(self.counts)), self.counts)
        cell = window * n + np.arange(len(self.times)) - first[window]
        columns: dict[str, torch.Tensor] = {}
        for name, values in (("times", self.times), ("units", self.units), ("mask", np.True_)):
            padded = np.zeros(len(self.counts) * n, np.asarray(values).dtype)
            padded[cell] = values
            columns[f"spike_{name}"] = torch.from_numpy(padded.reshape(len(self.counts), n))
        return columns


class CutRecording(WindowedRecording):
    """A recording in segments, with the windows that are cut from it."""

    def __init__(self, segmented: SegmentedRecording, windows: Windows) -> None:
        if isinstance(windows.within, str):
            table = segmented.about.intervals.get(windows.within)
            if table is None:
                known = ", ".join(segmented.about.columns) or "none"
                problem = f"there is no table {windows.within} of intervals to keep windows within; it has {known}"
                raise NeurofmxError(problem, file=segmented.about.path, remedy="name one of its tables")
            windows = windows.inside(np.stack([table.starts, table.stops], axis=1))
        shortest = segmented.about.shortest_gap / NS_PER_S
        if windows.max_gap_s < shortest:
            rule = f"the segments know gaps from {shortest:.9g} s on, the max_gap_s of their conversion"
            raise ValueError(f"max_gap_s={windows.max_gap_s!r}: {rule}")
        super().__init__(segmented.about, windows, windows.stride)
        self.segmented = segmented
        self.length = windows.sequence_length
        self._jitter = windows.jitter
        self._even: dict[str, tuple[int, int, int] | None] = {}
        self._joined: dict[str, list[Series]] = {}
        self.field_of = {each.source.path: each.field for each in segmented.about.held}
        self.shape_of = {each.source.path: each.shape for each in segmented.about.held}

    @cached_property
    def words(self) -> dict[str, str]:
        """What the metadata of each table's rows begin with."""
        aligned = self.aligned_table
        return words_of(self.segmented.heads if aligned is None else {**self.segmented.heads, aligned.name: aligned})

    def _spans(self, windows: Strided) -> list[tuple[int, int]]:
        if not self._jitter:
            return windows.spans()
        held = zip(windows.segments, windows.counts(), strict=True)
        return [segment for segment, n in held if n]  # up to where jitter moves them

    @cached_property
    def signature(self) -> Hashable:
        """What the windows hold and how it is made; windows of recordings alike are cut together."""
        n_units = len(self.recording.spikes.ids) if "spikes" in self.modalities else None
        masked = n_units is not None and self.recording.spikes.unit_intervals is not None
        joined = tuple((name, *map(self._kind, self.joined(name))) for name in JOINED)
        alone = tuple(
            (field, self._kind(each), self.native_length(each) if self.ways[each.path] == "native" else 0)
            for field, each in self.separate.items()
        )
        videos = tuple(
            (field, video.data is None, getattr(video.data, "shape", ())) for field, video in self.videos.items()
        )
        return n_units, masked, joined, alone, videos, self.masked

    def evenly_spaced(self, series: Series) -> tuple[int, int, int] | None:
        """Return start (ns), period (ns) and number of the samples; None where they have gaps or no such period."""
        if series.path not in self._even:
            timeline = series.timeline
            whole = timeline.rate is not None and len(timeline.runs) == 1 and timeline.period == int(timeline.period)
            even = whole and timeline.n > 0 and series.circle is None
            self._even[series.path] = (timeline.runs[0].start, int(timeline.period), timeline.n) if even else None
        return self._even[series.path]

    def joined(self, modality: str) -> list[Series]:
        """Return the series that are columns of one field, behavior or events, if that is asked for."""
        if modality not in self._joined:
            self._joined[modality] = super().joined(modality)
        return self._joined[modality]

    def _kind(self, series: Series) -> Hashable:
        return self.ways[series.path], series.kind, len(series.columns), series.circle, self.shape_of[series.path]


class Cutter:
    """Cuts windows of recordings that are alike into one batch.

    Args:
        recordings: the recording of each window.
        origins: int64 (n,): where bin 0 of each window's grid starts, ns.
        firsts: int64 (n,): the first bin of each window on that grid.
        memory: where tensors are made.
    """

    def __init__(
        self, recordings: Sequence[CutRecording], origins: np.ndarray, firsts: np.ndarray, memory: Memory
    ) -> None:
        self.recordings = recordings
        self.first_of_all = recordings[0]
        self.settings: Any = self.first_of_all.config
        self.length = self.first_of_all.length
        self.origins, self.firsts, self.memory = origins, firsts, memory
        self.grid = Grid(self.settings.bin_width_ns)
        bins = firsts[:, None] + np.arange(self.length)
        self._bin_starts, self._lead = self.grid.starts_of(bins)
        stops, _ = self.grid.starts_of(firsts + self.length)
        starts = self._bin_starts[:, 0] + origins
        self.cut = Cut([each.segmented for each in recordings], starts, stops + origins)

    def columns(self) -> dict[str, Column]:
        """Return the fields of the windows, (n, …) each; spikes that are not dense as :class:`Events`."""
        columns: dict[str, Column] = {}
        if "spikes" in self.first_of_all.modalities:
            columns |= self._spikes()
        for modality in JOINED:
            columns |= self._joined(modality)
        for field in self.first_of_all.separate:
            columns |= self._separate(field)
        for field in self.first_of_all.videos:
            columns |= self._video(field)
        return columns

    def _spikes(self) -> dict[str, Column]:
        spikes = gather_spikes(self.cut)
        ids = self.first_of_all.recording.spikes.ids
        columns: dict[str, Column] = {}
        if self.settings.spikes == "dense":
            columns["spikes"] = self._counts(spikes, len(ids))
        if self.first_of_all.recording.spikes.unit_intervals is not None:
            masks = [
                each.recording.spikes.observed(Grid(self.grid.width, origin), first, first + self.length)
                for each, origin, first in zip(
                    self.recordings, self.origins.tolist(), self.firsts.tolist(), strict=True
                )
            ]
            columns["spikes_mask"] = torch.from_numpy(np.stack(masks))
        if self.settings.spikes != "dense":
            columns["spike_times"] = Events(spikes.times, spikes.values.astype(np.int32), spikes.counts)
        return columns

    def _counts(self, spikes: Gathered, n_units: int) -> torch.Tensor:
        dtype = np.dtype(self.settings.spike_dtype)
        shape = (len(self.firsts), self.length, n_units)
        cells = self._bins(spikes) * n_units + spikes.values
        tensor = self.memory.empty(shape, torch.from_numpy(np.empty(0, dtype)).dtype)
        counts = tensor.numpy().reshape(-1)
        if dtype == np.float32:
            counts[:] = 0
            np.add.at(counts, cells, np.float32(1))
            return tensor
        whole = np.bincount(cells, minlength=len(counts))
        counts[:] = whole
        if not np.array_equal(counts, whole):
            window = int(np.flatnonzero(counts != whole)[0]) // (self.length * n_units)
            start = self.cut.starts[window] / NS_PER_S
            raise NeurofmxError(
                f"{whole.max()} spikes of a unit in a bin, in the window at {start} s, do not fit {dtype}",
                file=self.recordings[window].recording.path,
                member="spikes",
                remedy="use a wider spike_dtype (float32 is the default) or smaller bins",
            )
        return tensor

    def _bins(self, found: Gathered) -> np.ndarray:
        """Return the bin of each sample, counted over all windows; ascending."""
        window = np.repeat(np.arange(len(self.firsts)), found.counts)
        width = self.grid.width
        if width.denominator == 1:
            return window * self.length + found.times // width.numerator
        since_origin = found.times + (self.cut.starts - self.origins)[window]
        return window * self.length + self.grid.bin_of(since_origin) - self.firsts[window]

    def _joined(self, modality: str) -> dict[str, Column]:
        parts = [each.joined(modality) for each in self.recordings]
        if not parts[0]:
            return {}
        each = [self._resampled([p[i] for p in parts]) for i in range(len(parts[0]))]
        values = each[0] if len(each) == 1 else np.concatenate(each, axis=2)
        columns: dict[str, Column] = {modality: self._float32(values)}
        if modality == "behavior":  # a count is never missing
            columns["behavior_mask"] = torch.from_numpy(~np.isnan(values))
        return columns

    def _separate(self, field: str) -> dict[str, Column]:
        series = [each.separate[field] for each in self.recordings]
        if self.first_of_all.ways[series[0].path] == "native":
            columns: dict[str, Column] = {field: self._native(series)}
            if field in self.first_of_all.masked:
                columns[f"{field}_mask"] = ~torch.isnan(columns[field])
        else:
            values = self._resampled(series)
            columns = {field: self._float32(values), f"{field}_mask": torch.from_numpy(~np.isnan(values))}
        shape = self.first_of_all.shape_of[series[0].path]
        if shape is None:
            return columns
        return {name: column.reshape(*column.shape[:2], *shape) for name, column in columns.items()}

    def _float32(self, values: np.ndarray) -> torch.Tensor:
        tensor = self.memory.empty(values.shape, torch.float32)
        tensor.numpy()[...] = values
        return tensor

    def _resampled(self, series: Sequence[Series]) -> np.ndarray:
        """Return a series of each window on its bins: float64 (n, bins, columns)."""
        way = self.first_of_all.ways[series[0].path]
        on_bins = way in ("bin_mean", "count")
        field = self.first_of_all.field_of[series[0].path]
        between = self._between(field, series) if way == "linear" else None
        if between is not None:
            return between
        found = gather_samples(self.cut, field, series, neighbours=not on_bins)
        values = _scaled(found.values, found.counts, series)
        n_bins = len(self.firsts) * self.length
        if on_bins:
            needed = values if series[0].needs_values(way) else None
            grid = series[0].binned(way, self._bins(found), needed, n_bins)
        else:
            starts = self._bin_starts - self._bin_starts[:, :1]
            centres = Centres(starts, self._lead, found.times, np.cumsum(found.counts))
            grid = at_centres(way, series, centres, values, found.complete, self.first_of_all.max_gap)
        return grid.reshape(len(self.firsts), self.length, -1)

    def _between(self, field: str, series: Sequence[Series]) -> np.ndarray | None:
        """Interpolate series with a rate as `gridding.linear` does; None where it takes more than arithmetic.

        That is so for angles, gaps, periods of no whole ns, and centres before the first sample or after the last.
        """
        spaced = [one.evenly_spaced(each) for one, each in zip(self.recordings, series, strict=True)]
        if None in spaced:
            return None
        start, period, n = np.array(spaced, np.int64).T
        alike = self.grid.width.denominator == 1 and (period == self.grid.width.numerator).all()
        starts = (self._bin_starts[:, :1] if alike else self._bin_starts) + self.origins[:, None]
        left = (starts + np.floor(self._lead).astype(np.int64) - start[:, None]) // period[:, None]
        low, high = left[:, 0], left[:, -1] + 2
        if alike:  # a sample a bin
            high = high + self.length - 1
        if (low < 0).any() or (high > n).any():
            return None
        counts = high - low
        values = _scaled(gather_rows(self.cut, field, series, low, high, start + low * period), counts, series)
        if alike:
            values = values.reshape(len(series), self.length + 1, -1)
            found, rise = values[:, :-1], values[:, 1:] - values[:, :-1]
        else:
            row = left + (np.cumsum(counts) - counts - low)[:, None]
            found = values.take(row, axis=0)
            rise = values.take(row + 1, axis=0)
            rise -= found
        age = (starts - (start[:, None] + left * period[:, None])) + self._lead
        rise *= (age / period[:, None].astype(np.float64))[:, :, None]
        rise += found
        there = np.broadcast_to(age == 0, rise.shape[:2])  # a sample is there itself, whatever its neighbour is
        if there.any():
            rise[there] = found[there]
        return np.asarray(rise)

    def _native(self, series: Sequence[Series]) -> torch.Tensor:
        """Return a series of each window at its own rate: float32 (n, samples, columns), NaN where it has none."""
        n = self.first_of_all.native_length(series[0])
        tensor = self.memory.empty((len(series), n, len(series[0].columns)), torch.float32)
        rows = tensor.numpy()
        field = self.first_of_all.field_of[series[0].path]
        for i, (each, one) in enumerate(zip(series, self.recordings, strict=True)):
            start = start_of(Grid(self.grid.width, int(self.origins[i])), int(self.firsts[i]))
            filled = 0
            for run in each.timeline.runs:
                i0 = each.native_start(start, run)
                low, high = max(i0, run.first), min(i0 + n, run.first + run.n)
                if low < high:
                    filled += high - low
                    if high - low < n and filled == high - low:
                        rows[i] = np.nan
                    at = low - i0
                    for part in rows_between(one.segmented, field, each, low, high):
                        _scale_into(rows[i, at : at + len(part)], part, each)
                        at += len(part)
            if not filled:
                rows[i] = np.nan
        return tensor

    def _video(self, field: str) -> dict[str, Column]:
        videos = [each.videos[field] for each in self.recordings]
        name = self.first_of_all.field_of[videos[0].path]
        found = gather_samples(self.cut, name, videos, neighbours=True)
        starts = self._bin_starts - self._bin_starts[:, :1]
        centres = Centres(starts, self._lead, found.times, np.cumsum(found.counts))
        stale_after = [each.timeline.longest_step(self.first_of_all.max_gap) for each in videos]
        period = [each.timeline.period for each in videos]
        order = np.arange(len(found.times), dtype=np.float64)[:, None]
        shown = previous(centres, order, stale_after, found.complete, period).reshape(len(videos), self.length)
        is_shown = ~np.isnan(shown)
        address = found.values[np.where(is_shown, shown, 0).astype(np.int64)] if len(found.values) else found.values
        each_window = [
            _frames(one.segmented, name, video, there, address[i] if len(address) else address)
            for i, (one, video, there) in enumerate(zip(self.recordings, videos, is_shown, strict=True))
        ]
        if videos[0].data is None:
            return {f"{field}_frame": torch.from_numpy(np.stack(each_window))}
        return {field: torch.from_numpy(np.stack(each_window)), f"{field}_mask": torch.from_numpy(is_shown)}


def _frames(
    recording: SegmentedRecording, field: str, video: Video, shown: np.ndarray, address: np.ndarray
) -> np.ndarray:
    """Return the frames of a window: (bins, …) as stored, zeros where none is shown; or file and number of each."""
    if video.data is None:
        numbers = np.full(len(shown), -1, np.int64)
    else:
        numbers = np.zeros((len(shown), *video.data.shape[1:]), video.data.dtype.newbyteorder("="))
    stored = numbers_field(field) if video.data is None else field
    for k in np.flatnonzero(shown).tolist():
        place, row = address[k].tolist()
        numbers[k] = recording.array(place, stored)[row]  # type: ignore[index]
    return video.in_files(numbers) if video.data is None else numbers


def _scaled(stored: np.ndarray, counts: np.ndarray, series: Sequence[Series]) -> np.ndarray:
    """Return the values that stored samples stand for, float64; of each series there are so many."""
    values = stored.astype(np.float64)
    first = series[0]
    if all(each is first or each.scaling == first.scaling for each in series):
        values *= first.scale
        values += first.offset
        return values
    stops = np.cumsum(counts).tolist()
    for each, start, stop in zip(series, [0, *stops], stops, strict=False):
        values[start:stop] *= each.scale
        values[start:stop] += each.offset
    return values


def _scale_into(out: np.ndarray, stored: np.ndarray, series: Series) -> None:
    values = stored.reshape(out.shape).astype(np.float64)
    values *= series.scale
    values += series.offset
    out[...] = values
