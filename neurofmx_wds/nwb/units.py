"""The Units table: spike trains on the integer clock, and their counts in bins.

Knows the table's layout and the clock; knows nothing of windows or of other series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError
from .clock import MAX_NS, Grid, Int64, intersection, intervals_of, main_span, no_intervals, to_ns, union, usable
from .restarts import FEWEST, kept_of

#: Seconds in one unit of some times, and the second that is their 0.
Clock = tuple[Fraction, Fraction]
SECONDS: Clock = Fraction(1), Fraction(0)
#: Times that are known less exactly than this (s) can be in another bin than they were.
COARSE = 1e-4


@dataclass(frozen=True)
class SpikeTrains:
    """All spikes of a recording in time order.

    Example:
        >>> from fractions import Fraction
        >>> from .clock import no_intervals
        >>> trains = SpikeTrains(
        ...     times=np.array([1, 12, 13, 29]) * 1_000_000,
        ...     units=np.array([0, 1, 1, 0], "int32"),
        ...     ids=(7, 9),
        ...     invalid={},
        ...     unsorted_units=(),
        ...     obs_intervals=None,
        ...     bad_obs_intervals=0,
        ... )
        >>> trains.counts(Grid(Fraction(10_000_000)), 0, 3).tolist()  # three bins of 10 ms, two units
        [[1, 0], [0, 2], [1, 0]]
        >>> trains.ragged(10_000_000, 20_000_000)
        (array([2000000, 3000000]), array([1, 1], dtype=int32))

    Attributes:
        times: int64 (n_spikes,), ns, ascending.
        units: int32 (n_spikes,), the row of each spike's unit in the Units table.
        ids: the table's unit ids, one per row; units without spikes keep their row.
        invalid: spikes left out, by reason ("NaN", "negative", "beyond the clock").
        unsorted_units: ids of the units whose times had to be sorted.
        obs_intervals: int64 (n, 2), ns, the union of all units' observation intervals; None where the table has none.
        bad_obs_intervals: how many observation intervals were left out: NaN, or stop before start.
        unit_intervals: each unit's own observation intervals (as obs_intervals), where they differ; else None.
        duplicates: spikes at the same ns as another spike of their unit; they are counted like any other.
        notes: what the tables' columns are like that they should not be, one line each.
        support: where spikes can be, by which rule, and stray spikes (see `support_of`), of all units of the tables,
            where these are some of them; else None.
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
    notes: tuple[str, ...] = ()
    support: tuple[Int64, str, int] | None = None

    def __len__(self) -> int:
        return len(self.times)

    def take(self, rows: Sequence[int]) -> SpikeTrains:
        """Return some of the units, in this order; where spikes can be stays as it is with all."""
        number = np.full(len(self.ids), -1, np.int32)
        number[list(rows)] = np.arange(len(rows), dtype=np.int32)
        kept = number[self.units] >= 0
        own = None if self.unit_intervals is None else tuple(self.unit_intervals[row] for row in rows)
        if self.unit_intervals is not None and own is not None:
            everywhere = union(self.unit_intervals)
            own = own if any(not np.array_equal(each, everywhere) for each in own) else None
        return replace(
            self,
            times=self.times[kept],
            units=number[self.units[kept]],
            ids=tuple(self.ids[row] for row in rows),
            unit_intervals=own,
            support=support_of(self),
        )

    def within(self, start: int, stop: int) -> slice:
        """Return the slice of the spikes with start ≤ time < stop (ns)."""
        low, high = np.searchsorted(self.times, [start, stop])
        return slice(int(low), int(high))

    def counts(self, grid: Grid, first: int, stop: int) -> Int64:
        """Count spikes in bins [first, stop) of the grid.

        Returns:
            int64 (stop − first, n_units).
        """
        spikes = self.within(grid.start_of(first), grid.start_of(stop))
        n_units = len(self.ids)
        cells = (grid.bin_of(self.times[spikes]) - first) * n_units + self.units[spikes]
        return np.bincount(cells, minlength=(stop - first) * n_units).reshape(stop - first, n_units)

    def ragged(self, start: int, stop: int) -> tuple[Int64, npt.NDArray[np.int32]]:
        """Return times since `start` (int64, ns) and units (int32) of the spikes with start ≤ time < stop (ns)."""
        spikes = self.within(start, stop)
        return self.times[spikes] - start, self.units[spikes].copy()

    def observed(self, grid: Grid, first: int, stop: int) -> npt.NDArray[np.bool_]:
        """Return which of the bins [first, stop) lie wholly in each unit's own observation intervals.

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
        """The number of valid spikes of each unit."""
        return [int(n) for n in np.bincount(self.units, minlength=len(self.ids))]


@dataclass(frozen=True)
class _Table:
    """What is stored of the spikes of one table: every time (s) and its row, and each unit's observation intervals."""

    ids: tuple[int, ...]
    seconds: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int32]
    observed: tuple[Int64, ...]
    bad_intervals: int
    notes: tuple[str, ...]


def read_units(
    tables: Any,
    file: str,
    clocks: Sequence[Clock] = (),
    choose: Callable[[list[int]], Sequence[int]] | None = None,
) -> SpikeTrains:
    """Read the spike times of one or more pynwb Units tables, side by side.

    Times (s) become integer ns. NaN, negative and unrepresentable times are dropped and counted; units whose times
    are out of order are sorted (in a copy) and named.

    Args:
        tables: a Units table with a ``spike_times`` column, or a list of them.
        file: the file's path, for errors.
        clocks: of each table, the seconds in one unit of its times, and the second that is its 0; none: seconds.
        choose: returns the rows of the units that are wanted, given the number of valid spikes of each; by default all.

    Raises:
        SourceError: spike times or observation intervals are not as the index says, or have another shape.
    """
    given = tables if isinstance(tables, list) else [tables]
    read = [
        _read_table(table, file, clock) for table, clock in zip(given, clocks or [SECONDS] * len(given), strict=True)
    ]
    ids = tuple(i for each in read for i in each.ids)
    bad_intervals = sum(each.bad_intervals for each in read)
    notes = tuple(note for each in read for note in each.notes)
    observed_in = [(len(each.ids), each.observed) for each in read]
    seconds, units = _side_by_side(read)
    del read
    reasons = {
        "NaN": np.isnan(seconds),
        "negative": seconds < 0,
        "beyond the clock": (seconds > 0) & ~usable(seconds),
        "after the clock starts again, as in another recording: convert it as a file of its own": _restarted(
            seconds, units
        ),
    }
    valid = ~np.logical_or.reduce(list(reasons.values()))
    wanted = None if choose is None else choose(np.bincount(units[valid], minlength=len(ids)).tolist())
    is_wanted = _wanted(len(ids), wanted)
    invalid = {reason: int(is_wanted[units[hits]].sum()) for reason, hits in reasons.items() if hits.any()}
    if not valid.all():  # else no copy: there may be many
        seconds, units = seconds[valid], units[valid]
    backwards = (seconds[1:] < seconds[:-1]) & (units[1:] == units[:-1])
    times = to_ns(seconds)
    del seconds
    order = np.argsort(times, kind="stable")
    observed = _observed_by_all(observed_in, times)
    everywhere = union(observed)
    differ = any(not np.array_equal(intervals, everywhere) for intervals in observed)
    grouped = times[np.lexsort((times, units))] if backwards.any() else times  # units ascend in the table already
    same = (grouped[1:] == grouped[:-1]) & (units[1:] == units[:-1])
    trains = SpikeTrains(
        times=times[order],
        units=units[order],
        ids=ids,
        invalid={reason: n for reason, n in invalid.items() if n},
        unsorted_units=tuple(ids[row] for row in np.unique(units[1:][backwards]) if is_wanted[row]),
        obs_intervals=everywhere if len(everywhere) else None,
        bad_obs_intervals=bad_intervals,
        unit_intervals=observed if differ else None,
        duplicates=int(is_wanted[units[1:][same]].sum()),
        notes=notes,
    )
    return trains if wanted is None else trains.take(wanted)


def _wanted(n_units: int, rows: Sequence[int] | None) -> npt.NDArray[np.bool_]:
    if rows is None:
        return np.ones(n_units, dtype=bool)
    wanted = np.zeros(n_units, dtype=bool)
    wanted[list(rows)] = True
    return wanted


def _restarted(seconds: npt.NDArray[np.float64], units: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Return which spikes come after their clock starts again, which it does for several units at once.

    Single units whose times are in several ascending stretches were merged when they were sorted.
    """
    lost = np.zeros(len(seconds), bool)
    backwards = (seconds[1:] < seconds[:-1]) & (units[1:] == units[:-1])
    if not backwards.any():
        return lost
    stops = np.flatnonzero(np.r_[np.diff(units) > 0, True]) + 1
    trains = [slice(a, b) for a, b in zip(np.r_[0, stops[:-1]].tolist(), stops.tolist(), strict=True)]
    restarts = 0
    for train in trains:
        times = to_ns(np.nan_to_num(seconds[train], nan=0.0))
        known = np.flatnonzero(usable(seconds[train]))
        lost[train.start + known[~kept_of(times[known])]] = True
        restarts += bool(lost[train].any())
    full = sum(train.stop - train.start >= 2 * FEWEST for train in trains)
    return lost if restarts >= 2 and 2 * restarts > full else np.zeros_like(lost)


def _read_table(table: Any, file: str, clock: Clock) -> _Table:
    ids = tuple(int(i) for i in table.id[:])
    seconds, ends = _spike_times(table, len(ids), file)
    notes = _coarse(table, seconds, clock)
    seconds = _on_clock(seconds, clock)
    rows = np.repeat(np.arange(len(ids), dtype=np.int32), np.diff(ends, prepend=0))
    try:
        observed, bad = _observation(table, len(ids), clock)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        observed, bad, notes = (), 0, (*notes, f"{table.name}/obs_intervals left out: {error}")
    return _Table(ids, seconds, rows, observed, bad, notes)


def _on_clock(times: npt.NDArray[np.float64], clock: Clock) -> npt.NDArray[np.float64]:
    scale, start = clock
    scaled = times if scale == 1 else times * scale.numerator / scale.denominator
    return scaled if start == 0 else scaled + float(start)


def _coarse(table: Any, times: npt.NDArray[np.float64], clock: Clock) -> tuple[str, ...]:
    """Return how exactly times stored as float32 or float16 are known, in a line; none if that is enough for a bin."""
    dtype = np.dtype(getattr(table["spike_times"].target.data, "dtype", np.float64))
    if dtype.kind != "f" or dtype.itemsize >= 8 or not len(times):
        return ()
    step = np.spacing(np.abs(times).astype(dtype)).astype(np.float64) * float(clock[0])
    n, worst = int((step > COARSE).sum()), float(np.nanmax(step))
    told = (
        f"{table.name}/spike_times are stored as {dtype}: {n} of {len(times)} are known to ±{worst / 2:.2g} s at worst"
    )
    return (f"{told}; use bins far wider than that, or write them as float64",) if n else ()


def _side_by_side(read: Sequence[_Table]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Return the times and the rows of all tables, as if their rows were those of one."""
    if len(read) == 1:
        return read[0].seconds, read[0].rows
    starts = np.cumsum([0, *(len(each.ids) for each in read[:-1])], dtype=np.int32)
    rows = [each.rows + start for each, start in zip(read, starts, strict=True)]
    return np.concatenate([each.seconds for each in read]), np.concatenate(rows)


def _observed_by_all(tables: Sequence[tuple[int, tuple[Int64, ...]]], times: Int64) -> tuple[Int64, ...]:
    """Return each unit's observation intervals; where only some tables have any, the others' are all the times.

    Args:
        tables: for each, the number of its units, and their intervals if it has any.
        times: of all spikes, ns.
    """
    if not any(observed for _, observed in tables):
        return ()
    always = np.array([[times.min(), times.max() + 1]]) if len(times) else no_intervals()
    return tuple(own for n, observed in tables for own in observed or [always] * n)


def _observation(table: Any, n_units: int, clock: Clock) -> tuple[tuple[Int64, ...], int]:
    """Return each unit's observation intervals (none without such a column) and the number of unusable ones.

    Raises:
        ValueError: the intervals are not pairs of times, or the index does not fit them.
    """
    if "obs_intervals" not in table.colnames:
        return (), 0
    column = table["obs_intervals"]
    target = getattr(column, "target", column)
    values = np.asarray(target.data[:], dtype=np.float64)
    ends = np.arange(1, n_units + 1) if target is column else np.asarray(column.data[:], np.int64).ravel()
    pairs = _as_pairs(values, int(ends[-1]) if len(ends) else 0)
    if len(ends) != n_units or not _fits(ends, len(pairs)):
        raise ValueError(f"its index does not fit its shape {values.shape} and {n_units} units")
    pairs = _on_clock(pairs, clock)
    read = [intervals_of(*pairs[low:high].T) for low, high in zip(np.r_[0, ends[:-1]], ends, strict=True)]
    return tuple(intervals for intervals, _ in read), sum(bad for _, bad in read)


def _as_pairs(values: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """Return (start, stop) pairs, which MATLAB writes as (2, n)."""
    if values.ndim == 1 and len(values) == 2 * n:
        return values.reshape(-1, 2)
    if values.ndim == 2 and 2 in values.shape:
        turned = values.shape[1] != 2 or (values.shape[0] == 2 and (values[:, 0] > values[:, 1]).any())
        return values.T if turned else values
    raise ValueError(f"data of shape {values.shape} are not pairs of start and stop")


def _fits(ends: Int64, n_values: int) -> bool:
    """Return whether the ends of rows ascend, and the last is that of all values."""
    return not (np.diff(ends, prepend=0) < 0).any() and not (ends[-1:] != n_values).any()


def _spike_times(table: Any, n_units: int, file: str) -> tuple[npt.NDArray[np.float64], Int64]:
    """Read all spike times (float64) and where each unit's end; times stored as a matrix of one row or column are flat.

    Raises:
        SourceError: there is no index, it does not fit, or the times have another shape.
    """
    remedy = "write the table again, or convert without spikes (modalities)"
    column = table["spike_times"]
    if not hasattr(column, "target"):
        problem = f"{table.name}/spike_times has no index, which says of which unit each spike is"
        raise SourceError(problem, file=file, remedy=remedy)
    values = np.asarray(column.target.data[:], dtype=np.float64)
    ends = np.asarray(column.data[:], dtype=np.int64).ravel()
    if values.ndim > 1 and values.size != max(values.shape):
        raise SourceError(f"{table.name}/spike_times has the shape {values.shape}", file=file, remedy=remedy)
    values = values.ravel()
    if len(ends) != n_units or not _fits(ends, len(values)):
        problem = f"the index of {table.name}/spike_times does not fit its {len(values)} values and {n_units} units"
        raise SourceError(problem, file=file, remedy=remedy)
    return values, ends


def support_of(trains: SpikeTrains) -> tuple[Int64, str, int]:
    """Return where spikes can be: the union of the observation intervals, else from first to last spike of all units.

    Units that were not chosen count like the others: what is recorded does not change where.

    A stray time (see `main_span`) does not stretch the support; an endless observation interval ends at the last spike.

    Returns:
        int64 (n, 2) intervals in ns, the rule in words, and the number of stray spikes.
    """
    if trains.support is not None:
        return trains.support
    times = trains.times[main_span(trains.times)]
    spiking = np.array([[times[0], times[-1] + 1]], dtype=np.int64) if len(times) else no_intervals()
    observed = trains.obs_intervals
    if observed is None:
        return spiking, "first to last spike over all units" if len(times) else "no spikes", len(trains) - len(times)
    if np.abs(observed).max() >= MAX_NS:
        observed = intersection([observed, spiking])
    return observed, "units/obs_intervals, union over units", 0
