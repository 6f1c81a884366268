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
#: Times beyond ±126 years are refused or clipped, so that no sum or difference of two times leaves int64.
MAX_NS = 4_000_000_000 * NS_PER_S


def usable(seconds: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Says which times (s) the clock can hold: finite and within ±`MAX_NS`."""
    return np.abs(np.asarray(seconds, dtype=np.float64)) <= MAX_NS / NS_PER_S


def to_ns(seconds: npt.ArrayLike) -> Int64:
    """Rounds times in seconds to integer nanoseconds, ``rint(t · 1e9)``.

    Args:
        seconds: float array (s), any shape; infinite and far-off times are clipped to ±`MAX_NS`.

    Returns:
        int64 array (ns) of the same shape.

    Raises:
        ValueError: a time is NaN.
    """
    times = np.asarray(seconds, dtype=np.float64)
    if np.isnan(times).any():
        raise ValueError("NaN is no time: drop and count such times first")
    limit = MAX_NS / NS_PER_S
    ns = np.asarray(np.clip(times, -limit, limit))
    ns *= 1e9
    return np.rint(ns, out=ns).astype(np.int64)


@dataclass(frozen=True)
class Grid:
    """Bins of one width: bin k covers ``[origin + k·width, origin + (k+1)·width)``.

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
        """Gives the bin of each time: ``floor((n − origin) · q / p)``, exactly. Times and bins are int64."""
        p, q = self.width.numerator, self.width.denominator
        whole, rest = np.divmod(times - np.int64(self.origin), np.int64(p))
        return np.asarray(whole * q + rest * q // p, dtype=np.int64)

    def start_of(self, k: int) -> int:
        """Gives the first integer ns that lies in bin k (its edge, where the edge is an integer)."""
        return self.origin + -(-k * self.width.numerator // self.width.denominator)

    def centres_of(self, first: int, stop: int) -> npt.NDArray[np.float64]:
        """Gives the centres of bins [first, stop) in ns after the start of bin `first`: float64, (stop − first,)."""
        lead = float(self.origin + first * self.width - self.start_of(first))
        return np.asarray(lead + (np.arange(stop - first) + 0.5) * float(self.width), dtype=np.float64)

    def whole_bins(self, intervals: Int64) -> list[tuple[int, int]]:
        """Shrinks intervals inward to the grid.

        A bin is whole where all its integer ns are, so that `start_of` two bins gives an interval of just the bins
        between, also where their edges lie between two ns.

        Args:
            intervals: int64 (n, 2), half-open, ns.

        Returns:
            (first bin, stop bin) of each interval that holds at least one whole bin.
        """
        width = self.width
        shrunk = (
            ((start - self.origin - 1) // width + 1, (stop - self.origin) // width)
            for start, stop in intervals.tolist()
        )
        return [(int(first), int(stop)) for first, stop in shrunk if first < stop]

    def to_json(self) -> Any:
        """Gives the width as plain JSON: an int (ns), or ``{"numerator", "denominator"}`` of a rational one."""
        if self.width.denominator == 1:
            return self.width.numerator
        return {"numerator": self.width.numerator, "denominator": self.width.denominator}


def no_intervals() -> Int64:
    """Gives the empty set of intervals."""
    return np.empty((0, 2), dtype=np.int64)


def intervals_of(starts: npt.ArrayLike, stops: npt.ArrayLike) -> tuple[Int64, int]:
    """Makes half-open ns intervals of start and stop times in seconds.

    Returns:
        The intervals, sorted, touching ones merged, and how many were left out: NaN, or stop before start.
    """
    start, stop = (np.asarray(t, dtype=np.float64).ravel() for t in (starts, stops))
    good = start <= stop  # False where either is NaN
    return union([np.stack([to_ns(start[good]), to_ns(stop[good])], axis=1)]), int(len(good) - good.sum())


def union(sets: Iterable[Int64]) -> Int64:
    """Merges sets of half-open intervals, int64 (n, 2) each, in any order, into sorted disjoint ones."""
    return _covered(np.concatenate([no_intervals(), *sets]), 1)


def intersection(sets: Iterable[Int64]) -> Int64:
    """Intersects one or more sets of half-open intervals, int64 (n, 2) each."""
    merged = [union([each]) for each in sets]
    return _covered(np.concatenate(merged), len(merged))


def difference(kept: Int64, removed: Int64) -> Int64:
    """Takes the intervals `removed` out of the intervals `kept`."""
    edges = np.concatenate([[-2 * MAX_NS], union([removed]).ravel(), [2 * MAX_NS]])
    return intersection([kept, edges.reshape(-1, 2)])


def _covered(intervals: Int64, times: int) -> Int64:
    """Gives where at least `times` of the intervals overlap: a sweep over their edges."""
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
    """Says which spans, int64 (n, 2), lie wholly in one of some sorted disjoint intervals."""
    at = np.searchsorted(intervals[:, 0], spans[:, 0], side="right")
    stops = np.r_[-2 * MAX_NS, intervals[:, 1]]
    return np.asarray(spans[:, 1] <= stops[at])


def stride_of(length: int, overlap: float) -> int:
    """Gives the step between windows in bins: ``max(1, round(L · (1 − o)))``."""
    return max(1, round(length * (1 - overlap)))


@dataclass(frozen=True)
class Windows:
    """Windows of `length` bins every `stride` bins, in segments of whole bins; no window crosses a segment's edge.

    A segment [a, b) holds ``(b − a − L) // S + 1`` windows, at ``a + w·S``; none where it is shorter than L.
    """

    segments: tuple[tuple[int, int], ...]
    length: int
    stride: int

    def counts(self) -> list[int]:
        """Gives the number of windows in each segment."""
        return [max(0, (b - a - self.length) // self.stride + 1) for a, b in self.segments]

    def __len__(self) -> int:
        return sum(self.counts())

    def spans(self) -> list[tuple[int, int]]:
        """Gives the bins [first, stop) that the windows of each segment cover, for segments that hold any."""
        return [
            (a, a + (n - 1) * self.stride + self.length)
            for (a, _), n in zip(self.segments, self.counts(), strict=True)
            if n
        ]

    def tail_bins(self) -> int:
        """Gives the number of bins of the segments that no window covers from the last window on."""
        return sum(b - a for a, b in self.segments) - sum(b - a for a, b in self.spans())

    def runs(self, start: int, stop: int, most: int) -> Iterable[tuple[int, int, int]]:
        """Cuts windows [start, stop) into runs inside one segment, of at most `most` windows each.

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
        """Gives the grid of window i."""
        return Grid(self.width, int(self.events[i]))

    def spans(self) -> Int64:
        """Gives each window's start and stop: int64 (n, 2), ns."""
        origin = Grid(self.width)
        edges = [origin.start_of(self.first), origin.start_of(self.first + self.length)]
        return np.asarray(self.events[:, None] + np.array(edges, dtype=np.int64))

    def within(self, intervals: Int64) -> Aligned:
        """Gives the windows that lie wholly in one of some sorted disjoint intervals (ns)."""
        kept = inside(self.spans(), intervals)
        return replace(self, rows=self.rows[kept], events=self.events[kept])
