"""Time in integer nanoseconds: the bin grid, intervals, and windows.

Pure arithmetic on integers; knows nothing of files. Floats are rounded once, on entry (`to_ns`), and never compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

NS_PER_S = 1_000_000_000
#: Times beyond ±126 years are refused or clipped, so that no sum or difference of two times overflows int64.
MAX_NS = 4_000_000_000 * NS_PER_S
DAY_NS = 86_400 * NS_PER_S


def usable(seconds: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return which times (s) the clock can hold: finite and within ±`MAX_NS`."""
    return np.abs(np.asarray(seconds, dtype=np.float64)) <= MAX_NS / NS_PER_S


def to_ns(seconds: npt.ArrayLike) -> Int64:
    """Round times in seconds to integer nanoseconds, ``rint(t · 1e9)``.

    Args:
        seconds: float array (s), any shape; infinite and far-off times are clipped to ±`MAX_NS`.

    Returns:
        int64 array (ns) of the same shape.

    Raises:
        ValueError: a time is NaN.

    Example:
        >>> to_ns([0.1, 2.0])
        array([ 100000000, 2000000000])
    """
    times = np.asarray(seconds, dtype=np.float64)
    if np.isnan(times).any():
        raise ValueError("times must not be NaN: drop and count these first")
    limit = MAX_NS / NS_PER_S
    ns = np.asarray(np.clip(times, -limit, limit))
    ns *= 1e9
    return np.rint(ns, out=ns).astype(np.int64)


@dataclass(frozen=True)
class Grid:
    """Bins of one width: bin k covers ``[origin + k·width, origin + (k+1)·width)``.

    Example:
        >>> grid = Grid(Fraction(20_000_000))  # 20 ms
        >>> grid.bin_of(np.array([0, 19_999_999, 20_000_000]))
        array([0, 0, 1])
        >>> grid.whole_bins(np.array([[1, 100_000_000]]))
        [(1, 5)]

    Args:
        width: bin width in ns, an integer or a rational p/q ≥ 1.
        origin: start of bin 0 in ns.

    Raises:
        ValueError: the width is under 1 ns, or p·q leaves int64.
    """

    width: Fraction
    origin: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", Fraction(self.width))
        object.__setattr__(self, "origin", int(self.origin))
        if self.width < 1:
            raise ValueError(f"bin width {self.width!s:.40} ns: must be at least 1 ns")
        if self.width.numerator * self.width.denominator >= 2**62:
            raise ValueError(f"bin width {self.width!s:.40} ns: the fraction is too fine for 64-bit time")
        if abs(self.origin) > MAX_NS:
            raise ValueError(f"origin {self.origin} ns: must lie within ±{MAX_NS} ns")

    def bin_of(self, times: Int64) -> Int64:
        """Return the bin of each time: ``floor((n − origin) · q / p)``, exactly. Times and bins are int64."""
        p, q = self.width.numerator, self.width.denominator
        whole, rest = np.divmod(times - np.int64(self.origin), np.int64(p))
        return np.asarray(whole * q + rest * q // p, dtype=np.int64)

    def start_of(self, k: int) -> int:
        """Return the first integer ns that lies in bin k (its edge, where the edge is an integer)."""
        return self.origin + -(-k * self.width.numerator // self.width.denominator)

    def starts_of(self, bins: Int64) -> tuple[Int64, npt.NDArray[np.float64]]:
        """Return where bins start and how far their centres are from there.

        Args:
            bins: int64, any shape.

        Returns:
            `start_of` each bin (int64, same shape), and the time (ns) from there to its centre (float64, same shape, or
            a scalar where all are alike).
        """
        p, q = self.width.numerator, self.width.denominator
        whole, rest = np.divmod(bins, np.int64(q))
        short = -(rest * (p % q)) % q  # an edge between two ns, k·p/q, lies short/q ns before the first ns in its bin
        starts = self.origin + whole * p + (rest * p + short) // q
        return starts, (p - 2 * short) / (2 * q) if q > 1 else np.array(p / 2)

    def whole_bins(self, intervals: Int64) -> list[tuple[int, int]]:
        """Shrink intervals inward to the grid.

        A bin is whole where all its integer ns are, so that `start_of` two bins gives an interval of just the bins
        between, also where their edges lie between two ns.

        Args:
            intervals: int64 (n, 2), half-open, ns.

        Returns:
            (first bin, stop bin) of each interval that contains at least one whole bin.
        """
        width = self.width
        shrunk = (
            ((start - self.origin - 1) // width + 1, (stop - self.origin) // width)
            for start, stop in intervals.tolist()
        )
        return [(int(first), int(stop)) for first, stop in shrunk if first < stop]

    def to_json(self) -> Any:
        """Return the width as plain JSON: an int (ns), or ``{"numerator", "denominator"}`` if it is no integer."""
        if self.width.denominator == 1:
            return self.width.numerator
        return {"numerator": self.width.numerator, "denominator": self.width.denominator}


def exact_number(value: float | str | Fraction) -> Fraction:
    """Return a number exactly as its digits say.

    Raises:
        ValueError: it is not a number.

    Example:
        >>> exact_number(0.1), exact_number("1/3")
        (Fraction(1, 10), Fraction(1, 3))
    """
    try:
        return value if isinstance(value, Fraction) else Fraction(str(value))
    except (ZeroDivisionError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None


def no_intervals() -> Int64:
    """Return the empty set of intervals."""
    return np.empty((0, 2), dtype=np.int64)


def intervals_of(starts: npt.ArrayLike, stops: npt.ArrayLike) -> tuple[Int64, int]:
    """Return half-open intervals (ns) from start and stop times in seconds.

    Returns:
        The intervals, sorted and merged where they touch, and the number left out: NaN, or stop before start.
    """
    start, stop = (np.asarray(t, dtype=np.float64).ravel() for t in (starts, stops))
    good = start <= stop  # False where either is NaN
    return union([np.stack([to_ns(start[good]), to_ns(stop[good])], axis=1)]), int(len(good) - good.sum())


def union(sets: Iterable[Int64]) -> Int64:
    """Merge sets of half-open intervals, int64 (n, 2) each, in any order, into sorted disjoint ones."""
    return _covered(np.concatenate([no_intervals(), *sets]), 1)


def intersection(sets: Iterable[Int64]) -> Int64:
    """Intersect one or more sets of half-open intervals, int64 (n, 2) each."""
    merged = [union([each]) for each in sets]
    return _covered(np.concatenate(merged), len(merged))


def difference(kept: Int64, removed: Int64) -> Int64:
    """Return the intervals `kept` without the intervals `removed`."""
    edges = np.concatenate([[-2 * MAX_NS], union([removed]).ravel(), [2 * MAX_NS]])
    return intersection([kept, edges.reshape(-1, 2)])


def _covered(intervals: Int64, times: int) -> Int64:
    """Return where at least `times` of the intervals overlap: a sweep over their edges."""
    if len(intervals) == 0:
        return no_intervals()
    intervals = intervals[intervals[:, 0] < intervals[:, 1]]
    edges, which = np.unique(intervals.ravel(), return_inverse=True)
    steps = np.bincount(which.ravel()[0::2], minlength=len(edges)) - np.bincount(
        which.ravel()[1::2], minlength=len(edges)
    )
    inside = np.cumsum(steps) >= times
    turns = np.flatnonzero(np.diff(inside, prepend=False))
    return edges[turns].reshape(-1, 2)


def inside(spans: Int64, intervals: Int64) -> npt.NDArray[np.bool_]:
    """Return which spans, int64 (n, 2), lie wholly in one of the sorted disjoint intervals."""
    at = np.searchsorted(intervals[:, 0], spans[:, 0], side="right")
    stops = np.r_[-2 * MAX_NS, intervals[:, 1]]
    return np.asarray(spans[:, 1] <= stops[at])


def main_span(times: Int64) -> slice:
    """Return the slice of sorted times (ns) that belong together; the times outside it are stray.

    A time is stray only when it is further from the middle 80 % of the times than 20 times their span, and than a day:
    a wrong unit or a corrupt value, not a long recording. Without this, one such time would decide the grid's size.
    With fewer than ten distinct times, the middle (all but the first and the last) says little, and a stray time must
    be a year away: no session lasts that long. Of two times, nobody knows which one is wrong.

    Example:
        >>> main_span(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 400 * 86_400]) * NS_PER_S)
        slice(0, 10, None)
    """
    distinct = times[np.diff(times, prepend=times[:1] - 1) > 0]  # repeats of one sentinel must not count as the middle
    if len(distinct) < 3:
        return slice(0, len(times))
    outer = max(1, len(distinct) // 10)
    low, high = int(distinct[outer]), int(distinct[-1 - outer])
    margin = max(DAY_NS if len(distinct) >= 10 else 365 * DAY_NS, 20 * (high - low))
    first, stop = np.searchsorted(times, [low - margin, high + margin + 1])
    return slice(int(first), int(stop))


def stride_of(length: int, overlap: float) -> int:
    """Return the step between windows in bins: ``max(1, round(L · (1 − o)))``."""
    return max(1, round(length * (1 - overlap)))


@dataclass(frozen=True)
class Windows:
    """Windows of `length` bins every `stride` bins, in segments of whole bins; no window crosses a segment's edge.

    A segment [a, b) holds ``(b − a − L) // S + 1`` windows, at ``a + w·S``; none where it is shorter than L.

    Example:
        >>> windows = Windows(((0, 10), (20, 23)), length=4, stride=2)
        >>> len(windows), windows.counts(), windows.spans()
        (4, [4, 0], [(0, 10)])
    """

    segments: tuple[tuple[int, int], ...]
    length: int
    stride: int

    def counts(self) -> list[int]:
        """Return the number of windows in each segment."""
        return [max(0, (b - a - self.length) // self.stride + 1) for a, b in self.segments]

    def __len__(self) -> int:
        return sum(self.counts())

    def spans(self) -> list[tuple[int, int]]:
        """Return the bins [first, stop) that the windows of each segment cover, for segments that hold any."""
        return [
            (a, a + (n - 1) * self.stride + self.length)
            for (a, _), n in zip(self.segments, self.counts(), strict=True)
            if n
        ]

    def tail_bins(self) -> int:
        """Return the number of bins after the last window of each segment, which no window covers."""
        return sum(b - a for a, b in self.segments) - sum(b - a for a, b in self.spans())

    def runs(self, start: int, stop: int, most: int) -> Iterable[tuple[int, int, int]]:
        """Cut windows [start, stop) into runs inside one segment, of at most `most` windows each.

        Yields:
            (index of the run's first window, that window's first bin, number of windows).
        """
        before = 0
        for (a, _), n in zip(self.segments, self.counts(), strict=True):
            low, high = max(start, before), min(stop, before + n)
            for first in range(low, high, most):
                yield first, a + (first - before) * self.stride, min(most, high - first)
            before += n


@dataclass(frozen=True)
class Aligned:
    """One window for each event: the bins [first, first + length) of a grid of its own, whose origin is the event.

    Attributes:
        rows: int64 (n,), the row of each event in its table.
        events: int64 (n,), ns.
        width: bin width in ns.
        first: the windows' first bin, negative where they begin before the event.
        length: bins in a window.
    """

    rows: Int64
    events: Int64
    width: Fraction
    first: int
    length: int

    def __len__(self) -> int:
        return len(self.events)

    def grid(self, i: int) -> Grid:
        """Return the grid of window i."""
        return Grid(self.width, int(self.events[i]))

    def spans(self) -> Int64:
        """Return each window's start and stop: int64 (n, 2), ns."""
        origin = Grid(self.width)
        edges = [origin.start_of(self.first), origin.start_of(self.first + self.length)]
        return np.asarray(self.events[:, None] + np.array(edges, dtype=np.int64))

    def within(self, intervals: Int64) -> Aligned:
        """Return the windows that lie wholly in one of the sorted disjoint intervals (ns)."""
        kept = inside(self.spans(), intervals)
        return replace(self, rows=self.rows[kept], events=self.events[kept])
