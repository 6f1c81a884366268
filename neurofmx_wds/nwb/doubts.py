"""Whether the times of a recording's objects fit together: other clocks, and times that count from their own trial.

Knows when objects begin and end; reads no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .clock import NS_PER_S
from .intervals import Intervals

#: An object with less of its time than this share where the reference is has another clock, or was recorded elsewhere.
LEAST_SHARED = 0.02
#: Samples at a rate that take less than this share of the reference's time are doubtful, from so many samples on.
SHORTEST, FEWEST = 0.005, 100
#: A clock under which less of the object's time and the reference's is shared is no likely one.
LEAST_FIT = 0.1
#: Session times (s) beyond this are dates, counted from 1970.
DATES = 5e8
#: Sampling rates (Hz) of common acquisition systems.
RATES = (1250, 10_000, 20_000, 24_414.0625, 25_000, 30_000, 32_000, 32_552, 40_000, 48_828.125)


@dataclass(frozen=True)
class Extent:
    """When an object begins and ends.

    Attributes:
        path: the object.
        start: s; stop: s.
        n: its samples, events or rows.
        steady: whether its samples come at a rate, so that they should fill the recording.
    """

    path: str
    start: float
    stop: float
    n: int
    steady: bool = False

    @classmethod
    def of(cls, path: str, start: int, stop: int, n: int, steady: bool = False) -> Extent:
        """Return the extent of an object of which the times (ns) are known."""
        return cls(path, start / NS_PER_S, stop / NS_PER_S, n, steady)

    def share_in(self, other: Extent) -> float:
        """Return the share of its time that is in that of another object."""
        length = self.stop - self.start
        shared = min(self.stop, other.stop) - max(self.start, other.start)
        return max(0.0, shared) / length if length > 0 else float(other.start <= self.start <= other.stop)

    def moved(self, scale: float, start: float) -> Extent:
        """Return it on another clock."""
        return Extent(self.path, self.start * scale + start, self.stop * scale + start, self.n)

    def __str__(self) -> str:
        return f"{self.start:.9g} s to {self.stop:.9g} s"


def clock_doubts(reference: Extent, others: Iterable[Extent], zero: float | None) -> Iterator[str]:
    """Yield a line for each object that seems to have another clock than the reference.

    Args:
        reference: what decides where windows are.
        others: the other objects.
        zero: seconds from 1970 to the session's reference time, where that is known.
    """
    for each in others:
        told = f"{each.path}: its {each.n:,} samples are at {each}, those of {reference.path} at {reference}"
        if each.share_in(reference) < LEAST_SHARED:
            yield f"{told}: {_guess(reference, each, zero)}"
        elif (
            each.steady and each.n >= FEWEST and each.stop - each.start < SHORTEST * (reference.stop - reference.start)
        ):
            yield f"{told}: is their rate right? --clock {each.path} SCALE START corrects it"


def _guess(reference: Extent, each: Extent, zero: float | None) -> str:
    """Return what the clock of an object may be, and the option that corrects it."""
    if reference.start >= DATES > each.start and zero is not None:
        return f"are {reference.path} in seconds since 1970? --clock {reference.path} 1 -{zero:.0f} corrects that"
    units = [("ms", "1/1000"), ("microseconds", "1/1000000"), ("ns", "1/1000000000"), ("minutes", "60")]
    units += [(f"samples at {rate:g} Hz", f"1/{rate}" if rate == int(rate) else repr(1 / rate)) for rate in RATES]
    known = [(words, scale, 0.0) for words, scale in units]
    if zero is not None:
        known += [(f"{words} since 1970", scale, -zero) for words, scale in (("seconds", "1"), *units[:3])]
    best, told = LEAST_FIT, f"--clock {each.path} SCALE START corrects another clock"
    for words, scale, start in known:
        moved = each.moved(float(Fraction(scale)), start)
        fit = moved.share_in(reference) * reference.share_in(moved)
        if fit > best:
            best, told = fit, f"in {words}? --clock {each.path} {scale} {start:.0f} corrects that"
    return told


def events_outside(table: Intervals, event: str, seconds: npt.NDArray[np.float64]) -> str:
    """Return how many events are outside the interval of their own row, and what helps; "" if few are.

    Args:
        table: intervals, with a row for each event; those without an end are not looked at.
        event: the column, or sum of columns, of the events.
        seconds: float64 (rows,), the events.
    """
    times, rows = seconds[table.rows], table.rows
    starts, stops = table.starts / NS_PER_S, table.stops / NS_PER_S
    known = np.isfinite(times)
    outside = known & ((times < starts - 1e-6) | (times > stops + 1e-6))
    if not len(rows) or outside.sum() * 10 < known.sum():
        return ""
    told = f"{table.name}/{event}: {outside.sum():,} of {known.sum():,} times are outside the interval of their own row"
    relative = outside & (times >= 0) & (times <= stops - starts)
    if 2 * relative.sum() > outside.sum():
        return f"{told}, and within its length: if they count from its start, align to --event start_time+{event}"
    names = [name.strip() for name in event.split("+")]
    if len(names) > 1 and any(_fits(table, name) for name in names if name != "start_time"):
        name = next(name for name in names if name != "start_time" and _fits(table, name))
        return f"{told}: {name} counts from the session's start: align to --event {name}"
    return told


def _fits(table: Intervals, column: str) -> bool:
    times = table.times(column)
    if times is None:
        return False
    inside = (times[table.rows] >= table.starts / NS_PER_S) & (times[table.rows] <= table.stops / NS_PER_S)
    return bool(2 * inside.sum() > len(inside))
