"""The Units table: spike trains on the integer clock, and their counts in bins.

Knows the table's layout and the clock; nothing of windows' purpose or of other series.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError
from .clock import MAX_NS, NS_PER_S, Grid, Int64, intersection, intervals_of, no_intervals, to_ns, union, usable

DAY_NS = 86_400 * NS_PER_S


@dataclass(frozen=True)
class SpikeTrains:
    """All spikes of a recording in time order.

    Attributes:
        times: int64 (n_spikes,), ns, ascending.
        units: int32 (n_spikes,), the row of each spike's unit in the Units table.
        ids: the table's unit ids, one per row; units without spikes keep their row.
        invalid: spikes left out, by reason ("NaN", "negative", "beyond the clock").
        unsorted_units: ids of the units whose times had to be sorted.
        obs_intervals: int64 (n, 2), ns, the union of all units' observation intervals; None where the table has none.
        bad_obs_intervals: how many observation intervals were left out: NaN, or stop before start.
        unit_intervals: each unit's own observation intervals (as obs_intervals), where they differ; else None.
        duplicates: how many spikes are at the very ns of another of their unit; they are counted like any other.
    """

    times: Int64
    units: npt.NDArray[np.int32]
    ids: tuple[int, ...]
    invalid: dict[str, int]
    unsorted_units: tuple[int, ...]
    obs_intervals: Int64 | None
    bad_obs_intervals: int
    unit_intervals: tuple[Int64, ...] | None = None
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.times)

    def within(self, start: int, stop: int) -> slice:
        """Gives the slice of the spikes with start ≤ time < stop (ns)."""
        low, high = np.searchsorted(self.times, [start, stop])
        return slice(int(low), int(high))

    def counts(self, grid: Grid, first: int, stop: int) -> Int64:
        """Counts spikes in bins [first, stop) of the grid.

        Returns:
            int64 (stop − first, n_units).
        """
        spikes = self.within(grid.start_of(first), grid.start_of(stop))
        n_units = len(self.ids)
        cells = (grid.bin_of(self.times[spikes]) - first) * n_units + self.units[spikes]
        return np.bincount(cells, minlength=(stop - first) * n_units).reshape(stop - first, n_units)

    def ragged(self, start: int, stop: int) -> tuple[Int64, npt.NDArray[np.int32]]:
        """Gives the spikes with start ≤ time < stop (ns): times since `start` (int64 ns) and unit rows (int32)."""
        spikes = self.within(start, stop)
        return self.times[spikes] - start, self.units[spikes].copy()

    def observed(self, grid: Grid, first: int, stop: int) -> npt.NDArray[np.bool_]:
        """Says which of the bins [first, stop) lie wholly in a unit's own observation intervals.

        Returns:
            bool (stop − first, n_units); all True where units do not differ.
        """
        if self.unit_intervals is None:
            return np.ones((stop - first, len(self.ids)), dtype=bool)
        whole = np.zeros((stop - first, len(self.ids)), dtype=bool)
        start_ns, stop_ns = grid.start_of(first), grid.start_of(stop)
        for unit, intervals in enumerate(self.unit_intervals):
            near = intervals[(intervals[:, 1] > start_ns) & (intervals[:, 0] < stop_ns)]
            for a, b in grid.whole_bins(near):
                whole[max(a - first, 0) : max(b - first, 0), unit] = True
        return whole

    @cached_property
    def per_unit(self) -> list[int]:
        """Number of valid spikes of each unit."""
        return [int(n) for n in np.bincount(self.units, minlength=len(self.ids))]


def read_units(table: Any, file: str, time_scale: Fraction = Fraction(1)) -> SpikeTrains:
    """Reads the spike times of a pynwb Units table.

    Times (s) become integer ns. NaN, negative and unrepresentable ones are dropped and counted; unsorted units are
    sorted (a copy) and named.

    Args:
        table: ``NWBFile.units``, with a ``spike_times`` column.
        file: the file's path, for errors.
        time_scale: seconds in one unit of the table's times.

    Raises:
        SourceError: the ragged column's index does not fit its data.
    """
    ids = tuple(int(i) for i in table.id[:])
    seconds, ends = _ragged(table, "spike_times", len(ids), file)
    if time_scale != 1:
        seconds = seconds * time_scale.numerator / time_scale.denominator
    units = np.repeat(np.arange(len(ids), dtype=np.int32), np.diff(ends, prepend=0))
    reasons = {
        "NaN": np.isnan(seconds),
        "negative": seconds < 0,
        "beyond the clock": (seconds > 0) & ~usable(seconds),
    }
    valid = ~np.logical_or.reduce(list(reasons.values()))
    if not valid.all():  # else no copy: there may be many
        seconds, units = seconds[valid], units[valid]
    backwards = (seconds[1:] < seconds[:-1]) & (units[1:] == units[:-1])
    times = to_ns(seconds)
    del seconds
    order = np.argsort(times, kind="stable")
    observed, bad = _observation(table, len(ids), file, time_scale)
    everywhere = union(observed)
    differ = any(not np.array_equal(intervals, everywhere) for intervals in observed)
    grouped = times[np.lexsort((times, units))] if backwards.any() else times  # units ascend in the table already
    same = (grouped[1:] == grouped[:-1]) & (units[1:] == units[:-1])
    return SpikeTrains(
        times=times[order],
        units=units[order],
        ids=ids,
        invalid={reason: int(hits.sum()) for reason, hits in reasons.items() if hits.any()},
        unsorted_units=tuple(ids[row] for row in np.unique(units[1:][backwards])),
        obs_intervals=everywhere if len(everywhere) else None,
        bad_obs_intervals=bad,
        unit_intervals=observed if differ else None,
        duplicates=int(same.sum()),
    )


def _observation(table: Any, n_units: int, file: str, time_scale: Fraction) -> tuple[tuple[Int64, ...], int]:
    """Reads each unit's observation intervals, none where there is no such column, and counts the unusable ones."""
    if "obs_intervals" not in table.colnames:
        return (), 0
    values, ends = _ragged(table, "obs_intervals", n_units, file)
    pairs = values.reshape(-1, 2) * time_scale.numerator / time_scale.denominator
    read = [intervals_of(*pairs[low:high].T) for low, high in zip(np.r_[0, ends[:-1]], ends, strict=True)]
    return tuple(intervals for intervals, _ in read), sum(bad for _, bad in read)


def _ragged(table: Any, column: str, n_rows: int, file: str) -> tuple[npt.NDArray[np.float64], Int64]:
    """Reads a ragged column whole: its values (float64) and each row's end in them."""
    index = table[column]
    ends = np.asarray(index.data[:], dtype=np.int64)
    values = np.asarray(index.target.data[:], dtype=np.float64)
    if len(ends) != n_rows or (np.diff(ends, prepend=0) < 0).any() or (ends[-1:] != len(values)).any():
        raise SourceError(
            f"the index of units/{column} does not fit its {len(values)} values and {n_rows} units",
            file=file,
            remedy="the file is damaged; write it again or convert without spikes (modalities)",
        )
    return values, ends


def support_of(trains: SpikeTrains) -> tuple[Int64, str, int]:
    """Gives where spikes can be: the union of the units' observation intervals, else first to last spike of all units.

    A stray time (see `bulk`) does not stretch the support; an endless observation interval ends at the last spike.

    Returns:
        int64 (n, 2) intervals in ns, the rule in words, and the number of stray spikes.
    """
    times = trains.times[bulk(trains.times)]
    spiking = np.array([[times[0], times[-1] + 1]], dtype=np.int64) if len(times) else no_intervals()
    observed = trains.obs_intervals
    if observed is None:
        return spiking, "first to last spike over all units" if len(times) else "no spikes", len(trains) - len(times)
    if np.abs(observed).max() >= MAX_NS:
        observed = intersection([observed, spiking])
    return observed, "units/obs_intervals, union over units", 0


def bulk(times: Int64) -> slice:
    """Gives the slice of sorted times (ns) that belong together; what it leaves out is stray.

    A time is stray only when it is more than 20 spans of the middle 80 % of the times away from that middle, and also
    more than a day: a wrong unit or a corrupt value, not a long recording. Without this, one such time sizes the grid.
    Of fewer than ten different times the middle, all but the first and the last, tells little, and it must be a year:
    no session lasts that long. Of two nobody knows which is wrong.
    """
    distinct = times[np.diff(times, prepend=times[:1] - 1) > 0]  # else a third of sentinels would be no strays
    if len(distinct) < 3:
        return slice(0, len(times))
    outer = max(1, len(distinct) // 10)
    low, high = int(distinct[outer]), int(distinct[-1 - outer])
    margin = max(DAY_NS if len(distinct) >= 10 else 365 * DAY_NS, 20 * (high - low))
    first, stop = np.searchsorted(times, [low - margin, high + margin + 1])
    return slice(int(first), int(stop))
