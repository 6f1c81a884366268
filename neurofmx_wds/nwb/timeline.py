"""Timelines: when the samples of a series are, at a rate or by timestamps, and the gaps between them.

Knows times only; nothing of the samples' values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from .clock import NS_PER_S, Int64, main_span, to_ns, union, usable
from .restarts import kept_of

_RESTARTED = (
    "samples left out, since the clock starts again or goes back there, as at the start of another recording: convert "
    "that as a file of its own"
)
#: Timestamps are read in blocks of about this size.
BLOCK_BYTES = 8 * 2**20


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

    Example:
        >>> timeline = timeline_of_timestamps(np.array([0.0, 0.1, 0.2, 5.0, 5.1, 5.2]), 6)
        >>> timeline.regularity, timeline.search(5_000_000_000), timeline.gaps(250_000_000)
        ('irregular', 3, {'n': 1, 'longest_s': 4.8})
        >>> timeline.support(250_000_000).tolist()
        [[0, 300000000], [5000000000, 5300000000]]
    """

    n: int
    period: float
    rate: Fraction | None
    runs: tuple[Run, ...]
    times: Int64 | None
    order: Int64 | None
    notes: dict[str, int] = field(default_factory=dict)

    def between(self, low: int, high: int) -> Int64:
        """Return the times of samples [low, high): int64, ns."""
        if self.times is not None:
            return self.times[low:high]
        pieces = [self._run_times(run, low - run.first, high - run.first) for run in self.runs]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def time_of(self, sample: int) -> int:
        """Return the time of one sample, ns."""
        if self.times is not None:
            return int(self.times[sample])
        run = next(each for each in self.runs if sample < each.first + each.n)
        return run.start + round((sample - run.first) * self.period)

    def search(self, time: int) -> int:
        """Return the number of samples before `time` (ns), i.e. the first sample at or after it."""
        if self.times is not None:
            return int(np.searchsorted(self.times, time))
        found = 0
        for run in self.runs:
            if time <= run.start:
                break
            within = min(max(int((time - run.start) / self.period) - 1, 0), run.n)
            while within < run.n and run.start + round(within * self.period) < time:
                within += 1
            found = run.first + within
        return found

    def support(self, max_gap: float) -> Int64:
        """Return the intervals (ns) that the samples cover: cut at gaps over `max_gap` ns, a period after the last."""
        starts, lasts = self.pieces_at(max_gap)
        return union([np.stack([starts, lasts + max(1, round(self.period))], axis=1)])

    def pieces_at(self, max_gap: float) -> tuple[Int64, Int64]:
        """Return the first and last times (ns) of the pieces that gaps over `max_gap` ns cut the samples into."""
        starts, lasts = self._pieces()
        cut = starts[1:] - lasts[:-1] > self.longest_step(max_gap)
        return starts[np.r_[True, cut]], lasts[np.r_[cut, True]]

    def longest_step(self, max_gap: float) -> float:
        """Return the step (ns) above which two samples have a gap between them; regular spacing is not a gap."""
        return max(max_gap, 1.5 * self.period)

    def gaps(self, max_gap: float) -> dict[str, Any]:
        """Return the number of gaps over `max_gap` ns and the longest one (s), for the report."""
        starts, lasts = self._pieces()
        steps = starts[1:] - lasts[:-1]
        gaps = steps[steps > self.longest_step(max_gap)]
        return {"n": len(gaps), "longest_s": float(gaps.max() / NS_PER_S) if len(gaps) else 0.0}

    @property
    def regularity(self) -> str:
        """The timeline in a word: "regular", "regular between gaps" or "irregular"."""
        if self.rate is None:
            return "irregular"
        return "regular" if len(self.runs) == 1 else "regular between gaps"

    def _pieces(self) -> tuple[Int64, Int64]:
        """Return the first and last times of the pieces between which gaps can be: the runs, or single samples."""
        if self.times is not None:
            return self.times, self.times
        ends = [self._run_times(run, run.n - 1, run.n)[0] for run in self.runs]
        return np.array([run.start for run in self.runs], dtype=np.int64), np.array(ends, dtype=np.int64)

    def _run_times(self, run: Run, low: int, high: int) -> Int64:
        steps = np.arange(max(0, low), min(run.n, high))
        return np.asarray(run.start + np.rint(steps * self.period).astype(np.int64))


def timeline_at_rate(n: int, start: float, rate: float) -> Timeline:
    """Return the timeline of n samples at `rate` (samples/s) from `start` (s) on.

    Raises:
        ValueError: the rate is not a positive number, or the times are beyond the clock.
    """
    if not (np.isfinite(rate) and rate > 0):
        raise ValueError(f"a sampling rate of {rate} Hz")
    if not (usable(start) and usable(start + n / rate)):
        raise ValueError(f"{n} samples at {rate} Hz from {start} s on")
    return _regular(n, Fraction(rate), (Run(0, n, int(to_ns(start))),))


def timeline_of_timestamps(seconds: Any, n: int) -> Timeline:
    """Return the timeline of the first n timestamps (s) of a dataset.

    Timestamps are regular if ``t0 + i/rate`` moves none by more than min(1 µs, 0.1 period), where the rate is that of
    the first and last timestamp or the nearest integer; they are then not kept. Otherwise all are read: unusable (NaN)
    and stray ones are dropped, what follows when the clock starts again is left out, unsorted ones are stably sorted,
    with a note of each, and regular runs between gaps are looked for.

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
    notes = {"unusable timestamps dropped": n - len(rows)}
    if (np.diff(times) < 0).any():
        kept_rows = kept_of(times)
        notes[_RESTARTED] = int((~kept_rows).sum())
        rows, times = rows[kept_rows], times[kept_rows]
    notes["timestamps out of order"] = int((np.diff(times) < 0).sum())
    if notes["timestamps out of order"]:
        ascending = np.argsort(times, kind="stable")
        rows, times = rows[ascending], times[ascending]
    kept = main_span(times)
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
    """Return the rate (1/s) of regular timestamps, reading them block by block; None if they are irregular."""
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
    """Return the rates to try: an integer near the estimate is the one that was meant."""
    return [Fraction(rate) for rate in (round(estimate), estimate) if rate > 0]


def _regular_runs(times: Int64, period: float) -> tuple[Fraction | None, tuple[Run, ...]]:
    """Cut sorted times (ns) at steps over 1.5 periods; return the rate at which all runs are regular, and the runs."""
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
