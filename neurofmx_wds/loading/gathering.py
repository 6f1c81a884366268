"""The spikes and samples that some windows need, gathered from the segments that they lie in.

Knows segments and timelines; knows nothing of bins, batches or order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..nwb.series import Series
from ..nwb.stored import StoredTimeline
from ..nwb.timeline import Timeline
from ..nwb.video import Video
from .segments import SegmentedRecording


def numbers_field(field: str) -> str:
    """Return the name of the array with the numbers of a video's frames."""
    return f"{field}_numbers"


@dataclass(frozen=True)
class Cut:
    """Where some windows lie.

    Attributes:
        recordings: the recording of each window.
        starts, stops: int64 (n_windows,), ns.
    """

    recordings: Sequence[SegmentedRecording]
    starts: np.ndarray
    stops: np.ndarray

    def __iter__(self) -> Iterator[tuple[SegmentedRecording, int, int]]:
        return zip(self.recordings, self.starts.tolist(), self.stops.tolist(), strict=True)


@dataclass(frozen=True)
class Gathered:
    """Samples of one series, or spikes, window after window.

    Attributes:
        times: int64 (n_samples,), ns after the start of the sample's window; ascending in each window.
        values: (n_samples, …): as stored, or units of spikes.
        counts: int64 (n_windows,): samples of each window.
        complete: bool (n_windows,): whether the last sample of each window is the series' last.
    """

    times: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    complete: np.ndarray


def gather_spikes(cut: Cut) -> Gathered:
    """Gather the spikes of some windows: times from the window's start, and units."""
    times: list[np.ndarray] = []
    units: list[np.ndarray] = []
    counts: list[int] = []
    for recording, start, stop in cut:
        n, length = 0, recording.segment_ns
        for place in range(start // length, -(-stop // length)):
            spikes = recording.spikes(place)
            if spikes is None:
                continue
            found, of_units = spikes
            low, high = found.searchsorted(start), found.searchsorted(stop)
            if low < high:
                found, of_units = found[low:high], of_units[low:high]
                if recording.unit_numbers is not None:
                    of_units = recording.unit_numbers[of_units]
                    found, of_units = found[of_units >= 0], of_units[of_units >= 0]
                times.append(found)
                units.append(of_units)
                n += len(found)
        counts.append(n)
    n_each = np.array(counts, np.int64)
    if not times:
        return Gathered(np.empty(0, np.int64), np.empty(0, np.int64), n_each, n_each == 0)
    since = np.concatenate(times)
    since -= np.repeat(cut.starts, n_each)
    return Gathered(since, np.concatenate(units), n_each, np.ones(len(n_each), bool))


def gather_samples(cut: Cut, field: str, sources: Sequence[Series | Video], neighbours: bool) -> Gathered:
    """Gather the samples of one series of some windows.

    Args:
        cut: the windows.
        field: what the series is called in the segments.
        sources: the series in the recording of each window.
        neighbours: also the last sample before each window and the first one from its stop on.

    Returns:
        Of a video the values are addresses, (place of a segment, row): only the frames that are shown are read.
    """
    times: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    regular = _Regular.of(sources)
    if regular is not None:
        low, high = regular.search(cut.starts), regular.search(cut.stops)
        if neighbours:
            low, high = np.maximum(low - 1, 0), np.minimum(high + 1, regular.n)
        n_each, complete = high - low, high == regular.n
        times.append(regular.times(low, n_each))
        for recording, source, one, other in zip(cut.recordings, sources, low.tolist(), high.tolist(), strict=True):
            rows += rows_between(recording, field, source, one, other)
    else:
        found = [
            _in_window(recording, field, source, (start, stop), neighbours, times, rows)
            for (recording, start, stop), source in zip(cut, sources, strict=True)
        ]
        n_each, complete = np.array([n for n, _ in found], np.int64), np.array([ends for _, ends in found], bool)
    since = np.concatenate(times or [np.empty(0, np.int64)]) - np.repeat(cut.starts, n_each)
    width = len(sources[0].columns) if isinstance(sources[0], Series) else 2
    values = np.concatenate(rows).reshape(-1, width) if rows else np.empty((0, width))
    return Gathered(since, values, n_each, complete)


def gather_rows(
    cut: Cut, field: str, sources: Sequence[Series], low: np.ndarray, high: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Gather the stored rows of samples [low, high) of each window's series; none is empty.

    Args:
        cut: the windows.
        field: what the series is called in the segments.
        sources: the series, each with a rate and without gaps.
        low: int64 (n_windows,), number of the first sample.
        high: int64 (n_windows,), number after the last sample.
        times: int64 (n_windows,), ns, when sample `low` is.

    Returns:
        (n_rows, columns), window after window.
    """
    rows: list[np.ndarray] = []
    lengths = [recording.segment_ns for recording in cut.recordings]
    each = zip(cut.recordings, sources, low.tolist(), high.tolist(), (times // lengths).tolist(), strict=True)
    for recording, source, start, stop, place in each:
        first, end = recording.samples(field, source.timeline, place)
        if first <= start and stop <= end:
            rows.append(recording.array(place, field)[start - first : stop - first])  # type: ignore[index]
        else:
            rows += _rows_of_segments(recording, field, source, start, stop)
    return np.concatenate(rows).reshape(-1, len(sources[0].columns))


@dataclass(frozen=True)
class _Regular:
    """The timelines of some windows' series, each with a rate and without gaps: arrays (n_windows,).

    Attributes:
        start: int64, ns, the time of the first sample.
        period: float64, ns.
        n: int64, number of samples.
    """

    start: np.ndarray
    period: np.ndarray
    n: np.ndarray

    @classmethod
    def of(cls, sources: Sequence[Series | Video]) -> _Regular | None:
        """Return them; None if any of the series has gaps or no rate."""
        timelines = [each.timeline for each in sources]
        if any(each.rate is None or len(each.runs) != 1 for each in timelines):
            return None
        start, period, n = zip(*((each.runs[0].start, each.period, each.n) for each in timelines), strict=True)
        return cls(np.array(start, np.int64), np.array(period, np.float64), np.array(n, np.int64))

    def search(self, times: np.ndarray) -> np.ndarray:
        """Return the number of samples before one time of each, as :meth:`Timeline.search` does."""
        found = np.clip(((times - self.start) / self.period).astype(np.int64) - 1, 0, self.n)
        while True:
            later = (found < self.n) & (self.start + np.rint(found * self.period).astype(np.int64) < times)
            if not later.any():
                return found
            found += later

    def times(self, low: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the times of samples [low, low + count) of each, one after the other; int64, ns."""
        before = np.cumsum(counts) - counts
        index = np.arange(int(counts.sum())) - np.repeat(before - low, counts)
        steps = np.rint(index * np.repeat(self.period, counts)).astype(np.int64)
        return np.asarray(steps + np.repeat(self.start, counts))


def _stored(recording: SegmentedRecording, field: str, source: Series | Video, place: int, rows: slice) -> np.ndarray:
    if isinstance(source, Series):
        return recording.array(place, field)[rows]  # type: ignore[index]
    row = np.arange(rows.start, rows.stop)
    return np.stack([np.full(len(row), place), row], axis=1)


def rows_between(
    recording: SegmentedRecording, field: str, source: Series | Video, low: int, high: int
) -> Iterable[np.ndarray]:
    """Return the stored rows of samples [low, high) of a series with a rate, segment by segment."""
    if low >= high:
        return ()
    place = source.timeline.time_of(low) // recording.segment_ns
    first, stop = recording.samples(field, source.timeline, place)
    if first <= low and high <= stop:
        return (_stored(recording, field, source, place, slice(low - first, high - first)),)
    return _rows_of_segments(recording, field, source, low, high)


def _rows_of_segments(
    recording: SegmentedRecording, field: str, source: Series | Video, low: int, high: int
) -> Iterator[np.ndarray]:
    place: int | None = source.timeline.time_of(low) // recording.segment_ns
    while low < high and place is not None:
        first, stop = recording.samples(field, source.timeline, place)
        if low < stop:
            part = _stored(recording, field, source, place, slice(low - first, min(high, stop) - first))
            low += len(part)
            yield part
        place = recording.after(place)


def _in_window(
    recording: SegmentedRecording,
    field: str,
    source: Series | Video,
    span: tuple[int, int],
    neighbours: bool,
    times: list[np.ndarray],
    rows: list[np.ndarray],
) -> tuple[int, bool]:
    """Gather the samples of a series in one window; return their number, and whether the last is the series' last."""
    timeline = source.timeline
    if timeline.rate is None:
        return _irregular(recording, field, source, span, neighbours, times, rows)
    low, high = timeline.search(span[0]), timeline.search(span[1])
    if neighbours:
        low, high = max(0, low - 1), min(timeline.n, high + 1)
    times.append(timeline.between(low, high))
    rows += rows_between(recording, field, source, low, high)
    return high - low, high == timeline.n


def _irregular(
    recording: SegmentedRecording,
    field: str,
    source: Series | Video,
    span: tuple[int, int],
    neighbours: bool,
    times: list[np.ndarray],
    rows: list[np.ndarray],
) -> tuple[int, bool]:
    """Gather the samples of an irregular series in one window; return their number, and whether they are its last."""
    start, stop = span
    length, n = recording.segment_ns, 0
    name = source.timeline.field if isinstance(source.timeline, StoredTimeline) else ""

    def take(place: int, low: int, high: int) -> None:
        nonlocal n
        found = recording.array(place, name)
        if found is None or low >= high:
            return
        times.append(found[low:high])
        rows.append(_stored(recording, field, source, place, slice(low, high)))
        n += high - low

    if neighbours:
        take(*_before(recording, name, source.timeline, start))
    for place in range(start // length, -(-stop // length)):
        found = recording.array(place, name)
        if found is not None:
            low, high = found.searchsorted((start, stop)).tolist()
            take(place, low, high)
    place, low, high = _from(recording, name, source.timeline, stop)
    if neighbours:
        take(place, low, high)
        last = int(times[-1][-1]) if n else stop - 1
        place, low, high = _from(recording, name, source.timeline, last + 1)
    return n, low == high


def _before(recording: SegmentedRecording, name: str, timeline: Timeline, time: int) -> tuple[int, int, int]:
    """Return the segment of the last sample before a time, and its place there as a range; an empty range if none."""
    pieces = timeline.pieces if isinstance(timeline, StoredTimeline) else None
    if pieces is None or not len(pieces) or pieces[0, 0] >= time:
        return 0, 0, 0
    piece = int(np.searchsorted(pieces[:, 0], time)) - 1
    place: int | None = min(time - 1, int(pieces[piece, 1])) // recording.segment_ns
    while place is not None:
        found = recording.array(place, name)
        n = 0 if found is None else int(found.searchsorted(time))
        if n:
            return place, n - 1, n
        place = recording.before(place)
    return 0, 0, 0


def _from(recording: SegmentedRecording, name: str, timeline: Timeline, time: int) -> tuple[int, int, int]:
    """Return the segment of the first sample at or after a time, and its place there; an empty range if none."""
    pieces = timeline.pieces if isinstance(timeline, StoredTimeline) else None
    if pieces is None or not len(pieces) or pieces[-1, 1] < time:
        return 0, 0, 0
    piece = int(np.searchsorted(pieces[:, 1], time))
    place: int | None = max(time, int(pieces[piece, 0])) // recording.segment_ns
    while place is not None:
        found = recording.array(place, name)
        low = 0 if found is None else int(found.searchsorted(time))
        if found is not None and low < len(found):
            return place, low, low + 1
        place = recording.after(place)
    return 0, 0, 0
