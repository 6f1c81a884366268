"""What the values of a series are: angles on a circle, codes of states, or numbers too large for float32.

A unit alone does not tell, so the values are looked at where it matters. Knows one series at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pynwb.behavior import CompassDirection, SpatialSeries

from .finding import Found, has_word
from .series import Series

#: A full turn in radians and in degrees.
RADIANS, DEGREES = 2 * np.pi, 360.0
#: Integers of more different values than this are measured or counted, not codes of states.
MOST_STATES = 16
#: float32 holds every integer up to this one.
LARGEST_INTEGER = 2**24

_ANGLE_UNIT = re.compile(r"(?P<deg>deg|degrees?|°)|(?P<rad>rads?|radians?)", re.IGNORECASE)
_NO_UNIT = re.compile(r"|n\.?/?a\.?|none|unknown|unitless|dimensionless|a\.?u\.?|arbitrary( units?)?|-", re.IGNORECASE)
_ANGLE_WORDS = re.compile("directions?|headings?|angles?|azimuths?|yaw|orientations?|phases?|theta|hd")
_CLOSE = 1 + 1e-6


@dataclass(frozen=True)
class Seen:
    """What all values of a series have in common.

    Attributes:
        low: float64 (columns,), the lowest value of each column; NaN if it has none. high: the highest.
        step: float64 (columns,), the largest step from one sample to the next.
        n_different: number of different values in all columns, at most `MOST_STATES` + 1.
    """

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    step: npt.NDArray[np.float64]
    n_different: int


def judged(series: Series, found: Found, warn: Callable[..., None]) -> Series:
    """Return a series as what its values are: angles on their circle, or states that hold until the next.

    Args:
        series: the series, of kind "continuous", or "states" if its values are plain integers.
        found: the object that it is made of.
        warn: called with a line if its unit does not fit its values, or they do not fit float32.
    """
    turn, named = _turn_said(found)
    coded = series.kind == "states" and series.data.dtype.kind in "iu"
    if not coded and turn is None and not named:
        return series
    seen = look_at(series)
    if coded and (isinstance(found.series, SpatialSeries) or seen.n_different > MOST_STATES):
        series = replace(series, kind="continuous")
        warn(*filter(None, [_rounding(series, seen)]))
    return series if series.kind == "states" else _on_circle(series, found, seen, turn, named, warn)


def _rounding(series: Series, seen: Seen) -> str:
    """Return how far integers are rounded that float32 does not hold; "" if it does."""
    low, high = np.nanmin(seen.low), np.nanmax(seen.high)
    if max(-low, high) <= LARGEST_INTEGER:
        return ""
    by = float(np.spacing(np.float32(max(-low, high)))) / 2
    remedy = (
        f" (with --scale {series.path} 1 {-low:.0f} they count from the lowest)"
        if high - low <= LARGEST_INTEGER
        else ""
    )
    return f"{series.path}: its integers, {low:.0f} to {high:.0f}, are rounded by up to {by:g} in float32{remedy}"


def look_at(series: Series) -> Seen:
    """Read all values of a series, block by block."""
    n = len(series.columns)
    low, high, step = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
    last, different = np.full((1, n), np.nan), np.empty(0)
    for values in series.blocks():
        low, high = np.fmin(low, np.fmin.reduce(values)), np.fmax(high, np.fmax.reduce(values))
        step = np.fmax(step, np.fmax.reduce(np.abs(np.diff(values, axis=0, prepend=last))))
        last = values[-1:]
        if len(different) <= MOST_STATES:
            others = values[~np.isnan(values) & ~np.isin(values, different)]
            different = np.r_[different, np.unique(others)][: MOST_STATES + 1]
    return Seen(low, high, step, len(different))


def _turn_said(found: Found) -> tuple[float | None, bool]:
    """Return a full turn if the unit is one of angles, and whether the type or name says that values are directions."""
    unit = str(found.series.unit or "").strip()
    matched = _ANGLE_UNIT.fullmatch(unit)
    turn = None if matched is None else DEGREES if matched["deg"] else RADIANS
    named = isinstance(found.holder, CompassDirection) or has_word(found.series.name, _ANGLE_WORDS)
    return turn, named and (turn is not None or _NO_UNIT.fullmatch(unit) is not None)


def _on_circle(
    series: Series, found: Found, seen: Seen, turn: float | None, named: bool, warn: Callable[..., None]
) -> Series:
    """Return angles on their circle, which each column may cut elsewhere.

    Directions are on it if they stay within a turn; other angles only if they also jump by more than half a turn, as
    at its cut: angles over more than a turn are unwrapped, and those that never jump have a mean as they are.
    """
    if np.isnan(seen.low).all():
        return series
    known, jumping = turn, _turn_seen(seen)
    fits = turn is not None and np.nanmax(seen.high - seen.low) <= turn * _CLOSE
    if not fits or (named and jumping == RADIANS):
        turn = jumping
    if turn is None or not (named or np.nanmax(seen.step) > turn / 2):
        return series
    if turn != known:
        unit = "degrees" if turn == DEGREES else "radians"
        told = f"{np.nanmin(seen.low):.6g} to {np.nanmax(seen.high):.6g}, its unit is {found.series.unit!r}"
        warn(f"{series.path}: its values are averaged as angles in {unit}: they are {told}")
    lowest = tuple(0.0 if not low < 0 else float(min(low, -turn / 2)) for low in seen.low)
    return replace(series, turn=turn, lowest=lowest if len(set(lowest)) > 1 else lowest[0])


def _turn_seen(seen: Seen) -> float | None:
    """Return the turn that values and their jumps look like; None if they look like no angles."""
    spread, largest = np.nanmax(seen.high - seen.low), np.nanmax(np.abs([seen.low, seen.high]))
    fitting = (turn for turn in (RADIANS, DEGREES) if spread <= turn * _CLOSE and largest <= turn * _CLOSE)
    return next((turn for turn in fitting if np.nanmax(seen.step) > turn / 2), None)


def scaling_doubt(path: str, scale: Any, offset: float) -> str:
    """Return what is wrong with a conversion or an offset that makes all values 0 or NaN; "" if nothing is."""
    each = np.atleast_1d(np.asarray(scale, np.float64))
    zero, odd = int((each == 0).sum()), int((~np.isfinite(each)).sum())
    told = [f"a conversion of 0 makes {zero} of its {len(each)} columns 0"] if zero and len(each) > 1 else []
    told += ["its conversion is 0, which makes all its values 0"] if zero and len(each) == 1 else []
    told += [f"its conversion is not a number in {odd} of {len(each)} columns" if len(each) > 1 else
             f"its conversion is {each[0]}, which makes all its values NaN"] if odd else []  # fmt: skip
    told += [] if np.isfinite(offset) else [f"its offset is {offset}, which makes all its values NaN"]
    return f"{path}: {'; '.join(told)} (with --scale {path} 1 0 they are taken as stored)" if told else ""
