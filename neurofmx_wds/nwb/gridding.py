"""From samples to bins: means, interpolation, the last sample and counts, for the bins of several windows at once.

Knows times and values in memory; knows nothing of files or series. A conversion calls it with one long window, a loader
with a batch of short ones: the arithmetic is in integer nanoseconds, so that both get the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .clock import Int64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Circle:
    """Angles: a full turn, and where the circle is cut.

    Attributes:
        turn: a full turn in the values' unit.
        lowest: values lie in [lowest, lowest + turn); one for each column where they differ.
    """

    turn: float
    lowest: float | tuple[float, ...]

    def wrap(self, angles: Float64) -> Float64:
        """Return the angles as values from `lowest` on."""
        lowest = np.asarray(self.lowest)
        turned = np.mod(angles - lowest, self.turn)
        return np.where(turned == self.turn, 0.0, turned) + lowest  # mod of a tiny negative number gives a turn

    def shorter_way(self, rise: Float64) -> Float64:
        """Return differences of two angles as the shorter way round, in [−turn/2, turn/2)."""
        return np.asarray(np.mod(rise + self.turn / 2, self.turn) - self.turn / 2)

    def sums_to_means(self, sine: Float64, cosine: Float64) -> Float64:
        """Return the mean angles of groups, of the sums of their sines and cosines."""
        return self.wrap(np.arctan2(sine, cosine) * (self.turn / (2 * np.pi)))


@dataclass(frozen=True)
class Centres:
    """The centres of the bins of some windows, and the samples that were gathered for each window.

    Attributes:
        starts: int64 (n_windows, n_bins), the first whole ns of each bin, after its window's start.
        lead: float64, of a shape that goes with `starts`: from there to the bin's centre, ns.
        times: int64 (n_samples,), ns after the start of the sample's window; ascending in each window.
        stops: int64 (n_windows,), where each window's samples end in `times`.

    Example:
        Samples every 10 ns, bins of 20 ns: the last sample at or before the centres, 10 and 30 ns.

        >>> centres = Centres(np.array([[0, 20]]), np.array(10.0), np.array([-5, 5, 15, 25, 35]), np.array([5]))
        >>> centres.left.tolist()
        [1, 3]
    """

    starts: Int64
    lead: Float64
    times: Int64
    stops: Int64

    @cached_property
    def firsts(self) -> Int64:
        """int64 (n_windows · n_bins,): where the samples of each bin's window begin in `times`."""
        return np.repeat(np.r_[0, self.stops[:-1]], self.starts.shape[1])

    @cached_property
    def ends(self) -> Int64:
        """int64 (n_windows · n_bins,): where the samples of each bin's window end in `times`."""
        return np.repeat(self.stops, self.starts.shape[1])

    @cached_property
    def left(self) -> Int64:
        """int64 (n_windows · n_bins,): the last sample at or before each centre; one before `firsts` if none is."""
        at = self.starts + np.floor(self.lead).astype(np.int64)
        span = int(at.max()) + 1  # what lies outside its window may be anywhere outside it
        window = np.arange(len(self.starts)) * (span + 2)
        inside = np.clip(self.times, -1, span)
        if len(window) > 1:
            inside = inside + np.repeat(window, np.diff(self.stops, prepend=0))
        return np.searchsorted(inside, (at + window[:, None]).ravel(), side="right") - 1

    def per_bin(self, values: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return values of the windows, or one for all, for each bin: (n_windows · n_bins,)."""
        each = np.broadcast_to(np.asarray(values), len(self.starts))
        return np.repeat(each, self.starts.shape[1])

    def age(self, sample: Int64) -> Float64:
        """Return the time (ns) from a sample to each centre: float64 (n_windows · n_bins,)."""
        whole = self.starts.ravel() - self.times[sample]
        return np.asarray(whole + np.broadcast_to(self.lead, self.starts.shape).ravel())


def linear(centres: Centres, values: Float64, longest_step: npt.ArrayLike, circle: Circle | None) -> Float64:
    """Interpolate at the centres of bins, never across a gap nor outside the samples.

    Args:
        centres: the bins, and when the samples are.
        values: (n_samples, n_columns).
        longest_step: ns, of each window or of all; a longer step between samples is a gap.
        circle: where the values are angles.

    Returns:
        (n_windows · n_bins, n_columns); NaN where there is no data.
    """
    found = _between(centres, values, longest_step) if circle is None else None
    if found is not None:
        return found
    found = np.full((centres.starts.size, values.shape[1]), np.nan)
    held = np.flatnonzero(centres.left >= centres.firsts)
    left = centres.left[held]
    age = centres.age(np.maximum(centres.left, 0))[held] if len(values) else np.empty(0)
    found[held[age == 0]] = values[left[age == 0]]  # a sample is there itself, whatever its neighbour is
    between = left + 1 < centres.ends[held]
    held, left, age = held[between], left[between], age[between]
    step = (centres.times[left + 1] - centres.times[left]).astype(np.float64)
    near = (step <= centres.per_bin(longest_step)[held]) & (age != 0)
    held, left = held[near], left[near]
    rise = values[left + 1] - values[left]
    if circle is not None:
        rise = circle.shorter_way(rise)
    found[held] = values[left] + rise * (age[near] / step[near])[:, None]
    return found if circle is None else circle.wrap(found)


def _between(centres: Centres, values: Float64, longest_step: npt.ArrayLike) -> Float64 | None:
    """Interpolate as `linear` does if each centre lies between two samples near each other; else return None."""
    left, right = centres.left, centres.left + 1
    if not len(values) or (left < centres.firsts).any() or (right >= centres.ends).any():
        return None
    step = (centres.times.take(right) - centres.times.take(left)).astype(np.float64)
    if (step > centres.per_bin(longest_step)).any():
        return None
    age = centres.age(left)
    found = values.take(left, axis=0)
    rise = values.take(right, axis=0)
    rise -= found
    rise *= (age / step)[:, None]
    there = np.flatnonzero(age == 0)
    kept = found[there]  # a sample is there itself, whatever its neighbour is
    found += rise
    found[there] = kept
    return found


def previous(
    centres: Centres,
    values: Float64,
    stale_after: npt.ArrayLike,
    complete: npt.NDArray[np.bool_],
    period: npt.ArrayLike,
) -> Float64:
    """Give each bin the last sample at or before its centre.

    Args:
        centres: the bins, and when the samples are.
        values: (n_samples, n_columns).
        stale_after: ns, of each window or of all; an older sample does not count.
        complete: bool (n_windows,): whether a window's last sample is the series' last, which holds for a period only.
        period: ns from sample to sample, of each window or of all.

    Returns:
        (n_windows · n_bins, n_columns); NaN where there is no data.
    """
    found = np.full((centres.starts.size, values.shape[1]), np.nan)
    held = np.flatnonzero(centres.left >= centres.firsts)
    left = centres.left[held]
    age = centres.age(np.maximum(centres.left, 0))[held] if len(values) else np.empty(0)
    last = (left == centres.ends[held] - 1) & centres.per_bin(complete)[held]
    fresh = (age <= centres.per_bin(stale_after)[held]) & ~(last & (age > centres.per_bin(period)[held]))
    found[held[fresh]] = values[left[fresh]]
    return found


def bin_mean(bins: Int64, values: Float64, n_bins: int, circle: Circle | None) -> Float64:
    """Return the mean of the samples in each bin.

    Args:
        bins: int64 (n_samples,), ascending: the bin of each sample.
        values: (n_samples, n_columns).
        n_bins: bins there are.
        circle: where the values are angles.

    Returns:
        (n_bins, n_columns); NaN where a bin has no sample.
    """
    means = np.full((n_bins, values.shape[1]), np.nan)
    counts, filled, firsts = _groups(bins, n_bins)
    if not len(filled):
        return means
    if circle is None:
        means[filled] = np.add.reduceat(values, firsts) / counts[filled, None]
    else:
        angles = values * (2 * np.pi / circle.turn)
        sine, cosine = (np.add.reduceat(part(angles), firsts) for part in (np.sin, np.cos))
        means[filled] = circle.sums_to_means(sine, cosine)
    return means


def label_counts(bins: Int64, values: Float64, n_bins: int) -> Float64:
    """Return how many samples of each label are in each bin: (n_bins, n_columns); arguments as of :func:`bin_mean`."""
    sums = np.zeros((n_bins, values.shape[1]))
    _, filled, firsts = _groups(bins, n_bins)
    if len(filled):
        sums[filled] = np.add.reduceat(values, firsts)
    return sums


def _groups(bins: Int64, n_bins: int) -> tuple[Int64, Int64, Int64]:
    """Return the samples in each bin, which bins have any, and the first sample of each of these."""
    counts = np.bincount(bins, minlength=n_bins)
    filled = np.flatnonzero(counts)
    return counts, filled, np.searchsorted(bins, filled)
