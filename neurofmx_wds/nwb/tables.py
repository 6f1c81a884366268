"""Tables of an NWB file: intervals, such as trials, on the clock, and cells as plain JSON.

Knows pynwb's columns and the clock; knows nothing of series or of what intervals are used for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hdmf.common import DynamicTable, DynamicTableRegion, VectorIndex
from pynwb.base import TimeSeriesReferenceVectorData

from .clock import to_ns
from .intervals import Intervals

#: Names of columns that hold the times of a table's rows.
TIME_COLUMNS = ("timestamps", "timestamp", "time")
#: Names of columns of intervals that hold times.
_TIME = re.compile("(.*_)?time(stamp)?")
#: Lists in cells become metadata of samples up to this length.
MOST_IN_CELL = 64


@dataclass(frozen=True)
class TimedColumn:
    """A column of a table whose rows have times, with the attributes of a pynwb TimeSeries.

    Attributes:
        name: the column's name.
        data: sliceable, one value for each row.
        timestamps: sliceable times (s), one for each row.
    """

    name: str
    data: Any
    timestamps: Any
    unit: str = ""
    neurodata_type: str = "VectorData"
    conversion: float | None = None
    offset: float | None = None
    starting_time: float | None = None
    rate: float | None = None


def timed_columns(table: DynamicTable) -> Iterator[TimedColumn]:
    """Yield the columns of a table that has timestamps (s), without the ragged ones."""
    time = next((name for name in TIME_COLUMNS if name in table.colnames), None)
    flat = [name for name in table.colnames if not isinstance(table[name], (VectorIndex, DynamicTableRegion))]
    if time in flat and np.asarray(table[time].data[:0]).dtype.kind in "iuf":
        yield from (TimedColumn(name, table[name].data, table[time].data) for name in flat if name != time)


def read_intervals(table: Any, path: str, on_clock: Callable[[Any], Any] | None = None) -> tuple[Intervals, list[str]]:
    """Read a pynwb TimeIntervals table.

    Args:
        table: the table.
        path: where it is in the file.
        on_clock: returns times in seconds of the session, of those that are stored, where these are not.

    Returns:
        The intervals, and notes on what was left out of them, one line each.
    """
    starts, stops = (_seconds(table[name].data, on_clock) for name in ("start_time", "stop_time"))
    rows = np.flatnonzero(starts < stops)
    notes = []
    if len(rows) < len(starts):
        notes.append(f"{len(starts) - len(rows)} {table.name} have no usable start and stop")
    rows = rows[np.argsort(starts[rows], kind="stable")]
    cells = {name: plain_cells(table[name]) for name in table.colnames}
    known = {name: values for name, values in cells.items() if values is not None}
    for name, seconds in (("start_time", starts), ("stop_time", stops)):
        if len(getattr(table[name].data, "shape", ())) > 1:
            known[name] = [_without_nan(each) for each in seconds.tolist()]
    if on_clock is not None:
        times = [name for name in known if _TIME.fullmatch(name) and getattr(table[name], "target", None) is None]
        known |= {name: [*map(_without_nan, _seconds(table[name].data, on_clock).tolist())] for name in times}
    if len(known) < len(cells):
        left_out = ", ".join(sorted(cells.keys() - known))
        notes.append(f"{table.name}: no metadata of {left_out}: references or long lists")
    return Intervals(table.name, rows, to_ns(starts[rows]), to_ns(stops[rows]), known, paths=(path,)), notes


def _seconds(times: Any, on_clock: Callable[[Any], Any] | None) -> npt.NDArray[np.float64]:
    seconds = np.asarray((times if on_clock is None else on_clock(times))[:], dtype=np.float64)
    if seconds.size != len(seconds):
        raise ValueError(f"a column of times has the shape {seconds.shape}")
    return seconds.ravel()


def plain_cells(column: Any) -> list[Any] | None:
    """Return a column's cells as plain JSON, NaN as None; None if they are references or long lists."""
    values = getattr(column, "target", column)
    if isinstance(values, (VectorIndex, DynamicTableRegion, TimeSeriesReferenceVectorData)):
        return None
    cells = [_without_nan(plain(cell)) for cell in cells_of(column)]
    simple = all(isinstance(c, (str, bool, int, float, type(None))) or _is_short_list(c) for c in cells)
    return cells if simple else None


def _is_short_list(cell: Any) -> bool:
    return isinstance(cell, list) and len(cell) <= MOST_IN_CELL


def _without_nan(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_without_nan(each) for each in cell]
    return None if isinstance(cell, float) and not np.isfinite(cell) else cell


def cells_of(column: Any) -> Iterator[Any]:
    """Yield a table column's cells as stored; those of a region are the row numbers that it points to."""
    if not hasattr(column, "target"):
        yield from column.data[:]
        return
    values, stop = column.target.data[:], 0
    for end in column.data[:]:
        start, stop = stop, int(end)
        yield values[start:stop]


def plain(value: Any) -> Any:
    """Return a cell as plain JSON."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
