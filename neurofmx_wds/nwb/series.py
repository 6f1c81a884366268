"""Continuous series: when their samples are, what they are worth, and their values on a bin grid.

Data are read along time in bounded blocks, never whole. Knows nothing of modalities, windows or other series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError
from .clock import NS_PER_S, Grid, Int64, to_ns, union, usable
from .units import bulk

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

#: Data of one series held at once; reads are cut into blocks of about this size.
BLOCK_BYTES = 8 * 2**20
#: HDF5 chunks up to this size are read whole and held, so that none is decompressed twice.
CHUNK_BYTES = 64 * 2**20
#: Values that are scaled in one go, few enough to stay in a processor's own cache.
_CACHED_BYTES = 2**18


@dataclass(frozen=True)
class Run:
    """Samples [first, first + n) that follow one another at the series' rate, from `start` ns on."""

    first: int
    n: int
    start: int


@dataclass(frozen=True)
class Timeline:
    """When the samples of a series are, in ascending time.

    Attributes:
        n: number of samples.
        period: ns from sample to sample; the median one of an irregular series.
        rate: samples/s, where times are regular, at least between gaps; else None.
        runs: the regular pieces; empty without a rate.
        times: int64 (n,), ns; None with a rate.
        order: int64 (n,), the row in the file of each sample; None where sample i is row i.
        notes: what had to be done to the file's timestamps, by name: number of samples.
    """

    n: int
    period: float
    rate: Fraction | None
    runs: tuple[Run, ...]
    times: Int64 | None
    order: Int64 | None
    notes: dict[str, int] = field(default_factory=dict)

    def between(self, low: int, high: int) -> Int64:
        """Gives the times of samples [low, high): int64, ns."""
        if self.times is not None:
            return self.times[low:high]
        pieces = [self._run_times(run, low - run.first, high - run.first) for run in self.runs]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def search(self, time: int) -> int:
        """Gives the number of samples before `time` (ns), i.e. the first sample at or after it."""
        if self.times is not None:
            return int(np.searchsorted(self.times, time))
        found = 0
        for run in self.runs:
            if time <= run.start:
                break
            guess = min(max(int((time - run.start) / self.period) - 1, 0), run.n)
            near = self._run_times(run, guess, guess + 4)
            found = run.first + guess + int(np.searchsorted(near, time))
        return found

    def support(self, max_gap: float) -> Int64:
        """Gives the intervals (ns) that the samples cover: cut at gaps over `max_gap` ns, a period after the last."""
        starts, lasts = self._pieces()
        cut = starts[1:] - lasts[:-1] > self.longest_step(max_gap)
        starts, lasts = starts[np.r_[True, cut]], lasts[np.r_[cut, True]]
        return union([np.stack([starts, lasts + max(1, round(self.period))], axis=1)])

    def longest_step(self, max_gap: float) -> float:
        """Gives the step (ns) above which two neighbours have a gap between them: a slow series' period is none."""
        return max(max_gap, 1.5 * self.period)

    def gaps(self, max_gap: float) -> dict[str, Any]:
        """Counts the gaps over `max_gap` ns and measures the longest, for the report."""
        starts, lasts = self._pieces()
        steps = starts[1:] - lasts[:-1]
        gaps = steps[steps > self.longest_step(max_gap)]
        return {"n": len(gaps), "longest_s": float(gaps.max() / NS_PER_S) if len(gaps) else 0.0}

    @property
    def regularity(self) -> str:
        """Says "regular", "regular between gaps" or "irregular"."""
        if self.rate is None:
            return "irregular"
        return "regular" if len(self.runs) == 1 else "regular between gaps"

    def _pieces(self) -> tuple[Int64, Int64]:
        """Gives first and last times of the pieces between which gaps can be: the runs, or single samples."""
        if self.times is not None:
            return self.times, self.times
        ends = [self._run_times(run, run.n - 1, run.n)[0] for run in self.runs]
        return np.array([run.start for run in self.runs], dtype=np.int64), np.array(ends, dtype=np.int64)

    def _run_times(self, run: Run, low: int, high: int) -> Int64:
        steps = np.arange(max(0, low), min(run.n, high))
        return np.asarray(run.start + np.rint(steps * self.period).astype(np.int64))


def timeline_at_rate(n: int, start: float, rate: float) -> Timeline:
    """Makes the timeline of n samples at `rate` (samples/s) from `start` (s) on.

    Raises:
        ValueError: the rate is no positive number, or the start no time.
    """
    if not (np.isfinite(rate) and rate > 0):
        raise ValueError(f"a sampling rate of {rate} Hz")
    if not (usable(start) and usable(start + n / rate)):
        raise ValueError(f"{n} samples at {rate} Hz from {start} s on")
    return _regular(n, Fraction(rate), (Run(0, n, int(to_ns(start))),))


def timeline_of_timestamps(seconds: Any, n: int) -> Timeline:
    """Makes the timeline of the first n timestamps (s) of a dataset.

    They are regular when ``t0 + i/rate`` moves none by more than min(1 µs, 0.1 period), for the rate that the first and
    last give or the integer nearest to it; then they are not kept. Else they are read whole: unusable ones (NaN) and
    stray ones are dropped, unsorted ones stably sorted, all of it noted; then regular runs between gaps are looked for.

    Args:
        seconds: a sliceable 1-D dataset of times in seconds.
        n: how many of them have data.
    """
    rate = _regular_rate(seconds, n)
    if rate is not None:
        return _regular(n, rate, (Run(0, n, int(to_ns(seconds[0]))),))
    raw = np.asarray(seconds[:n], dtype=np.float64)
    rows = np.flatnonzero(usable(raw))
    times = to_ns(raw[rows])
    notes = {"unusable timestamps dropped": n - len(rows), "timestamps out of order": int((np.diff(times) < 0).sum())}
    if notes["timestamps out of order"]:
        ascending = np.argsort(times, kind="stable")
        rows, times = rows[ascending], times[ascending]
    kept = bulk(times)
    notes["stray timestamps dropped"] = len(times) - (kept.stop - kept.start)
    rows, times = rows[kept], times[kept]
    order = None if np.array_equal(rows, np.arange(len(rows))) else rows
    notes = {what: count for what, count in notes.items() if count}
    steps = np.diff(times)
    period = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    rate, runs = _regular_runs(times, period)
    if rate is not None:
        return _regular(len(times), rate, runs, order, notes)
    return Timeline(len(times), period, None, (), times, order, notes)


def _regular(
    n: int, rate: Fraction, runs: tuple[Run, ...], order: Int64 | None = None, notes: dict[str, int] | None = None
) -> Timeline:
    return Timeline(n, float(NS_PER_S / rate), rate, runs, None, order, notes or {})


def _tolerance(period: float) -> float:
    return min(1e-6, 0.1 * period)


def _regular_rate(seconds: Any, n: int) -> Fraction | None:
    """Finds the rate (1/s) of regular timestamps, reading them block by block; None where they are not."""
    if n < 2:
        return None
    first, last = float(seconds[0]), float(seconds[n - 1])
    if not (usable([first, last]).all() and last > first):
        return None
    rates = _candidates((n - 1) / (last - first))
    block = BLOCK_BYTES // 8
    for low in range(0, n, block):
        times = np.asarray(seconds[low : min(n, low + block)], dtype=np.float64) - first
        index = np.arange(low, low + len(times))
        rates = [r for r in rates if np.abs(times - index / float(r)).max() <= _tolerance(1 / float(r))]
        if not rates:
            return None
    return rates[0]


def _candidates(estimate: float) -> list[Fraction]:
    """Gives the rates to try: an integer one, where the estimate is near one, is the one that was meant."""
    return [Fraction(rate) for rate in (round(estimate), estimate) if rate > 0]


def _regular_runs(times: Int64, period: float) -> tuple[Fraction | None, tuple[Run, ...]]:
    """Cuts sorted times (ns) at steps over 1.5 periods and finds the rate at which all runs are regular, if any."""
    steps = np.diff(times)
    firsts = np.r_[0, np.flatnonzero(steps > 1.5 * period) + 1]
    inner = len(times) - len(firsts)
    if period == 0 or inner < 9 * len(firsts):  # mostly gaps: not a regular series
        return None, ()
    lengths = np.diff(np.r_[firsts, len(times)])
    run = np.repeat(np.arange(len(firsts)), lengths)
    since = (times - times[firsts][run]) / NS_PER_S
    index = np.arange(len(times)) - firsts[run]
    estimate = inner / (steps[steps <= 1.5 * period].sum() / NS_PER_S)
    for rate in _candidates(estimate):
        if np.abs(since - index / float(rate)).max() <= _tolerance(1 / float(rate)):
            runs = zip(firsts.tolist(), lengths.tolist(), times[firsts].tolist(), strict=True)
            return rate, tuple(Run(*each) for each in runs)
    return None, ()


class Transposed:
    """A (columns, time) dataset seen with time first: what a `Series` asks of its data, and no more.

    Args:
        stored: 2-D sliceable dataset.
    """

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self.shape: tuple[int, ...] = stored.shape[::-1]
        self.dtype: np.dtype[Any] = stored.dtype
        self.chunks = stored.chunks[::-1] if getattr(stored, "chunks", None) else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        return np.ascontiguousarray(self._stored[:, rows].T)


@dataclass
class Series:
    """One series of a recording: ``value = data · conversion (· channel conversion) + offset``, on its timeline.

    Attributes:
        path: where it is in the file; file: the file, for errors.
        columns: names of its columns.
        unit: unit of the values.
        kind: "continuous", "voltage" (electrical), "states" (boolean or integer-coded: a value holds until the next),
            "events", or "labels" (events of which each column marks one kind).
        data: sliceable dataset (rows, …) with `columns` columns.
        scale: float64, scalar or (columns,); offset: float.
        turn: a full turn in `unit` where values are angles, which are averaged on the circle; else None.
        lowest: where the circle is cut: values lie in [lowest, lowest + turn).
    """

    path: str
    file: str
    columns: tuple[str, ...]
    unit: str
    kind: str
    data: Any
    timeline: Timeline
    scale: Float64 | float = 1.0
    offset: float = 0.0
    turn: float | None = None
    lowest: float = 0.0
    _held: tuple[int, npt.NDArray[Any]] | None = None

    def on_grid(self, way: str, grid: Grid, first: int, stop: int, max_gap: float) -> Float64:
        """Gives the values on bins [first, stop) of the grid.

        Args:
            way: "bin_mean" (mean of the samples in the bin, NaN where there is none; one NaN sample makes the bin NaN),
                "linear" (interpolated at the bin's centre, never across a gap nor outside the samples), "previous" (the
                last sample at or before the bin's centre) or "count" (number of samples in the bin).
            max_gap: ns; a longer step between samples is a gap.

        Returns:
            float64 (stop − first, columns); NaN where there is no data.
        """
        low = self.timeline.search(grid.start_of(first))
        high = self.timeline.search(grid.start_of(stop))
        if stop - first > 1 and max((high - low), stop - first) * len(self.columns) * 8 > BLOCK_BYTES:
            middle = (first + stop) // 2
            halves = [self.on_grid(way, grid, a, b, max_gap) for a, b in ((first, middle), (middle, stop))]
            return np.concatenate(halves)
        if way in ("bin_mean", "count"):
            bins = grid.bin_of(self.timeline.between(low, high)) - first
            counts = np.bincount(bins, minlength=stop - first)
            if way == "count" and self.kind == "labels":
                return self._label_counts(low, high, bins, counts)
            if way == "count":
                return np.repeat(counts[:, None].astype(np.float64), len(self.columns), axis=1)
            return self._bin_mean(low, high, bins, counts)
        low, high = max(0, low - 1), min(self.timeline.n, high + 1)
        if low == high:
            return np.full((stop - first, len(self.columns)), np.nan)
        centres = grid.centres_of(first, stop)
        times = (self.timeline.between(low, high) - grid.start_of(first)).astype(np.float64)
        at = self._linear if way == "linear" else self._previous
        return at(times, centres, self.values(low, high), max_gap, high == self.timeline.n)

    def _label_counts(self, low: int, high: int, bins: Int64, counts: Int64) -> Float64:
        sums = np.zeros((len(counts), len(self.columns)))
        if low < high:
            filled = np.flatnonzero(counts)
            sums[filled] = np.add.reduceat(self.values(low, high), np.searchsorted(bins, filled))
        return sums

    def _bin_mean(self, low: int, high: int, bins: Int64, counts: Int64) -> Float64:
        means = np.full((len(counts), len(self.columns)), np.nan)
        if low == high:
            return means
        values = self.values(low, high)
        filled = np.flatnonzero(counts)
        starts = np.searchsorted(bins, filled)
        if self.turn is None:
            means[filled] = np.add.reduceat(values, starts) / counts[filled, None]
        else:
            angles = values * (2 * np.pi / self.turn)
            sine, cosine = (np.add.reduceat(part(angles), starts) for part in (np.sin, np.cos))
            means[filled] = self._on_circle(np.arctan2(sine, cosine) * (self.turn / (2 * np.pi)))
        return means

    def _linear(self, times: Float64, centres: Float64, values: Float64, max_gap: float, _: bool) -> Float64:
        left = np.clip(np.searchsorted(times, centres, side="right") - 1, 0, len(times) - 1)
        right = np.minimum(left + 1, len(times) - 1)
        step = times[right] - times[left]
        rise = values[right] - values[left]
        if self.turn is not None:  # the shorter way round
            rise = np.mod(rise + self.turn / 2, self.turn) - self.turn / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            result = values[left] + rise * ((centres - times[left]) / step)[:, None]
        exact = centres == times[left]  # a sample stands there itself, whatever its neighbour is
        result[exact] = values[left][exact]
        outside = (centres < times[0]) | (centres > times[-1]) | (step > self.timeline.longest_step(max_gap))
        result[outside & ~exact] = np.nan
        return result if self.turn is None else self._on_circle(result)

    def _previous(self, times: Float64, centres: Float64, values: Float64, max_gap: float, ends: bool) -> Float64:
        left = np.searchsorted(times, centres, side="right") - 1
        age = centres - times[left]
        period = self.timeline.period
        # A stream of states is missing in its gaps; states noted only when they change hold until the next one.
        stale = age > (self.timeline.longest_step(max_gap) if period <= max_gap else np.inf)
        if ends:
            stale |= (left == len(times) - 1) & (age > period)
        return np.where(((left < 0) | stale)[:, None], np.nan, values[np.maximum(left, 0)])

    def _on_circle(self, angles: Float64) -> Float64:
        turn = self.turn or 1.0
        turned = np.mod(angles - self.lowest, turn)
        return np.where(turned == turn, 0.0, turned) + self.lowest  # mod of a tiny negative number rounds up to a turn

    def native_start(self, start: Fraction, run: Run) -> int:
        """Gives the sample nearest to `start` (ns) on a run's clock: ``round((start − t0) · rate)``."""
        return run.first + round((start - run.start) * (self.timeline.rate or 0) / NS_PER_S)

    def native(self, start: Fraction, n: int) -> Float32:
        """Gives n samples at the series' own rate from `start` (ns) on.

        Returns:
            float32 (n, columns); NaN where the recording has none.
        """
        out = np.full((n, len(self.columns)), np.nan, dtype=np.float32)
        for run in self.timeline.runs:
            i0 = self.native_start(start, run)
            low, high = max(i0, run.first), min(i0 + n, run.first + run.n)
            if low < high:
                self._fill(out[low - i0 : high - i0], low)
        return out

    def natives(self, start: Fraction, step: Fraction, count: int, n: int) -> Iterator[Float32]:
        """Gives `native` of `count` windows, one every `step` ns; in one run they share memory, which is read-only."""
        per_ns = Fraction(self.timeline.rate or 0) / NS_PER_S
        for run in self.timeline.runs:
            low, high = (self.native_start(start + w * step, run) for w in (0, count - 1))
            if run.first <= low and high + n <= run.first + run.n:
                values = np.empty((high + n - low, len(self.columns)), np.float32)
                self._fill(values, low)
                values.flags.writeable = False
                i0, by = (start - run.start) * per_ns, step * per_ns
                firsts = (run.first - low + round(i0 + w * by) for w in range(count))
                yield from (values[first : first + n] for first in firsts)
                return
        yield from (self.native(start + w * step, n) for w in range(count))

    def native_covers(self, start: Fraction, n: int) -> bool:
        """Says whether `native` finds all n samples from `start` (ns) on in one run."""
        firsts = ((self.native_start(start, run), run) for run in self.timeline.runs)
        return any(run.first <= i0 and i0 + n <= run.first + run.n for i0, run in firsts)

    def values(self, low: int, high: int) -> Float64:
        """Gives the values of samples [low, high): float64 (high − low, columns), NaN kept."""
        out = np.empty((high - low, len(self.columns)))
        self._fill(out, low)
        return out

    def value_range(self) -> tuple[float, float]:
        """Reads all values, block by block, for the least and the greatest; NaN where there are none."""
        extremes: list[float] = []
        block = self._rows_per_block()
        for low in range(0, self.timeline.n, block):
            values = self.values(low, min(self.timeline.n, low + block))
            known = values[~np.isnan(values)]
            if len(known):
                extremes += [float(known.min()), float(known.max())]
        return (min(extremes), max(extremes)) if extremes else (np.nan, np.nan)

    def _rows_per_block(self) -> int:
        return max(1, BLOCK_BYTES // (8 * len(self.columns)))

    def _fill(self, out: npt.NDArray[Any], low: int) -> None:
        """Scales samples [low, low + len(out)) into `out`, block by block."""
        block = self._rows_per_block()
        for done in range(0, len(out), block):
            part = out[done : done + block]
            raw = self._samples(low + done, low + done + len(part)).reshape(part.shape)
            step = max(1, _CACHED_BYTES // (8 * len(self.columns)))
            for i in range(0, len(part), step):
                values = raw[i : i + step].astype(np.float64)
                values *= self.scale
                values += self.offset
                part[i : i + step] = values

    def _samples(self, low: int, high: int) -> npt.NDArray[Any]:
        """Reads samples [low, high) in time order, wherever in the file their rows are."""
        if self.timeline.order is None:
            return self._rows(low, high)
        rows = self.timeline.order[low:high]
        first, stop = int(rows.min()), int(rows.max()) + 1
        if stop - first <= 2 * len(rows) + 1024:
            return np.asarray(self._rows(first, stop)[rows - first])
        ascending, where = np.unique(rows, return_inverse=True)
        return np.asarray(self._guarded(lambda: self.data[ascending])[where])

    def _rows(self, low: int, high: int) -> npt.NDArray[Any]:
        """Reads rows [low, high) in whole HDF5 chunks and holds them: the next window mostly wants the same ones."""
        start, held = self._held or (0, self.data[:0])
        if not (start <= low and high <= start + len(held)):
            step = self._rows_per_chunk()
            first, stop = low // step * step, min(-(-high // step) * step, len(self.data))
            if start <= first < start + len(held) < stop:
                fresh = self._guarded(lambda: self.data[start + len(held) : stop])
                held = np.concatenate([held[first - start :], fresh])
            else:
                held = self._guarded(lambda: self.data[first:stop])
            start, self._held = first, (first, held)
        return held[low - start : high - start]

    def release(self) -> None:
        """Lets go of the rows that are held for the next window."""
        self._held = None

    def _rows_per_chunk(self) -> int:
        chunks = getattr(self.data, "chunks", None)
        rows = int(chunks[0]) if chunks else 1
        return rows if rows * len(self.columns) * self.data.dtype.itemsize <= CHUNK_BYTES else 1

    def _guarded(self, read: Callable[[], Any]) -> npt.NDArray[Any]:
        try:
            return np.asarray(read())
        except (OSError, RuntimeError, ValueError) as error:
            raise SourceError(
                f"the data of {self.path} cannot be read: {error}",
                file=self.file,
                remedy="the file is damaged or cut short; copy it again, or leave this modality out",
            ) from error
