"""Clocks that start again: times of two recordings, one after the other, as if they were of one.

Sorting such times would put samples of both into one bin. Times that are merely out of order, as of single packets or
units that were merged, are not a restart. Pure arithmetic on integers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .clock import Int64

#: Fewer samples than this, in order, are no recording of their own.
FEWEST = 10
#: A clock that goes back by less than this share of the time so far is corrected, not started again.
LEAST_STEP_BACK = 0.1


def kept_of(times: Int64) -> npt.NDArray[np.bool_]:
    """Return which times to keep of a clock that starts again, or that goes back for a moment.

    Args:
        times: int64 (n,), ns, in the order in which they are stored.

    Returns:
        bool (n,): all True if sorting brings the times into order. False from where the clock starts again; where it
        only goes back a little, False until it is again where it was.

    Example:
        >>> first, second = np.arange(100), np.arange(60)
        >>> int(kept_of(np.r_[first, second]).sum()), int(kept_of(np.r_[second + 100, first]).sum())
        (100, 160)
    """
    kept = np.ones(len(times), bool)
    rows = _without_single_ones(times)
    while (found := _overlap(times[rows])) is not None:
        first, back, since = found
        if back < LEAST_STEP_BACK * since:
            reached = times[rows][:first].max()
            again = first + int(np.argmax(np.r_[times[rows][first:] > reached, True]))
            kept[rows[first:again]] = False
            rows = np.r_[rows[:first], rows[again:]]
        else:
            kept[rows[first] :] = False
            break
    return kept


def _without_single_ones(times: Int64) -> Int64:
    """Return the rows without single times that do not fit between their neighbours, which do."""
    if len(times) < 3:
        return np.arange(len(times))
    before, here, after = times[:-2], times[1:-1], times[2:]
    single = (before <= after) & ((here < before) | (here > after))
    return np.flatnonzero(np.r_[True, ~single, True])


def _overlap(times: Int64) -> tuple[int, int, int] | None:
    """Find the first stretch of ascending times that lies among the times of one before it.

    Returns:
        The number of its first time, how far the clock goes back there, and the time from the first time on to there,
        both in ns; None if there is no such stretch.
    """
    firsts = np.r_[0, np.flatnonzero(np.diff(times) < 0) + 1]
    stops = np.r_[firsts[1:], len(times)]
    if len(firsts) == 1 or len(firsts) > len(times) // FEWEST:
        return None
    long = stops - firsts >= FEWEST
    firsts, stops = firsts[long], stops[long]
    found: list[int] = []
    order = np.argsort(times[firsts], kind="stable")
    widest = -1  # of the stretches that begin earlier, the one that ends last
    for k in order.tolist():
        if widest >= 0 and _share_time(times[slice(firsts[widest], stops[widest])], times[slice(firsts[k], stops[k])]):
            found.append(max(widest, k))
        if widest < 0 or times[stops[k] - 1] > times[stops[widest] - 1]:
            widest = k
    if not found:
        return None
    first = int(firsts[min(found)])
    reached = int(times[:first].max())
    return first, reached - int(times[first]), reached - int(times[:first].min())


def _share_time(a: Int64, b: Int64) -> bool:
    """Return whether the times of two ascending stretches alternate, again and again."""
    places = np.searchsorted(a, b)
    return len(np.unique(places[(places > 0) & (places < len(a))])) >= FEWEST
