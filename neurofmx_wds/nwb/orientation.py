"""Which axis of a series' data is time, as files written by MATLAB often have it last.

Knows what a series says of its own shape; reads no data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pynwb.behavior import SpatialSeries
from pynwb.ecephys import ElectricalSeries
from pynwb.misc import DecompositionSeries
from pynwb.ophys import RoiResponseSeries

from .finding import Found
from .views import Flattened, Transposed

#: Positions have at most three columns.
_MOST_AXES = 3
#: More columns than this, and than rows, are believed only of a series that says how many it has; fewer, but more than
#: the second number, only if they are not far more than rows.
MOST_COLUMNS, MANY_COLUMNS, FAR_MORE = 1000, 64, 4


def time_first(found: Found, warn: Callable[..., None], transposed: bool = False) -> tuple[Any, str]:
    """Return the data of a series as (time, columns), or what is wrong with them.

    The number of timestamps, of electrodes, ROIs or labels, or the three axes of a position tell which axis is time.

    Args:
        found: the series.
        warn: called with a line if the data are transposed.
        transposed: whether it was said that time is on the second axis.

    Returns:
        A sliceable dataset of one or two dimensions, and "", or None and a reason.
    """
    data: Any = found.series.data
    shape = tuple(getattr(data, "shape", ()))
    kind = getattr(getattr(data, "dtype", None), "kind", "O")
    if not shape or 0 in shape or kind not in "biuf":
        return None, f"data of shape {shape} and type {getattr(data, 'dtype', 'object')} are no columns of numbers"
    if transposed:
        return (
            (Transposed(data), "") if len(shape) == 2 else (None, f"data of shape {shape} have no second of two axes")
        )
    times = found.series.timestamps
    n_times = None if times is None else len(times)
    if len(shape) > 2:
        if n_times not in (None, shape[0]) and n_times in shape:
            return None, f"of its {shape} values, not the first axis but another one has its {n_times} timestamps"
        if isinstance(found.series, DecompositionSeries):
            return Flattened(data), ""
        return None, f"data of shape {shape} have more than two dimensions: no columns of numbers"
    if len(shape) == 1 or shape[0] == shape[1]:
        return data, ""
    why = _why_transposed(found, shape, n_times)
    if why:
        warn(f"{found.path}: its data of shape {shape} are transposed: {why}")
        return Transposed(data), ""
    if n_times != shape[0] and _columns_said(found) != shape[1] and _is_too_wide(*shape):
        return (
            None,
            f"data of shape {shape} would be {shape[1]} columns of {shape[0]} samples (see --transposed {found.path})",
        )
    return data, ""


def _is_too_wide(rows: int, columns: int) -> bool:
    return columns > max(MOST_COLUMNS, rows) or columns > max(MANY_COLUMNS, FAR_MORE * rows)


def _why_transposed(found: Found, shape: tuple[int, int], n_times: int | None) -> str:
    """Return what tells that time is on the second axis, or ""."""
    rows, columns = shape
    said = _columns_said(found)
    if said is not None and rows == said != columns and n_times != rows:
        return f"{said} {_columns_are(found)} are on the first axis"
    if n_times is not None and n_times != rows:
        return f"its {n_times} timestamps are on the second axis" if n_times == columns else ""
    if n_times is None and isinstance(found.series, SpatialSeries) and rows <= _MOST_AXES < columns:
        return f"a position has {_MOST_AXES} columns at most"
    return "one row is not a series" if rows == 1 else ""


def _columns_said(found: Found) -> int | None:
    """Return how many columns a series says that it has; None if it does not."""
    series: Any = found.series
    if isinstance(series, ElectricalSeries):
        return None if series.electrodes is None else len(series.electrodes.data)
    if isinstance(series, RoiResponseSeries):
        return None if series.rois is None else len(series.rois.data)
    names = getattr(series, "vocabulary", None)
    return None if names is None else len(names)


def _columns_are(found: Found) -> str:
    kinds = ((ElectricalSeries, "electrodes"), (RoiResponseSeries, "ROIs"))
    return next((name for kind, name in kinds if isinstance(found.series, kind)), "labels")
