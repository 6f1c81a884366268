"""Tables of an NWB file: intervals, such as trials, on the clock, and cells as plain JSON.

Knows pynwb's columns and the clock; knows nothing of series or of what intervals are used for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hdmf.common import DynamicTable, DynamicTableRegion, VectorIndex
from pynwb.base import TimeSeriesReferenceVectorData

from .clock import Int64, to_ns

#: Names of columns that hold the times of a table's rows.
TIME_COLUMNS = ("timestamps", "timestamp", "time")
#: Lists in cells become metadata of samples up to this length.
MOST_IN_CELL = 64


@dataclass(frozen=True)
class Intervals:
    """A table of intervals, such as trials, on the clock.

    Attributes:
        name: the table's.
        rows, starts, stops: row in the table, start and stop (int64 ns) of each usable interval, by start.
        cells: column → the plain JSON values of its rows.
    """

    name: str
    rows: Int64
    starts: Int64
    stops: Int64
    cells: dict[str, list[Any]]

    def at(self, time: int) -> int | None:
        """Return the row of the interval with start ≤ time < stop (ns), of several the last to start; else None."""
        started = int(np.searchsorted(self.starts, time, side="right"))
        running = np.flatnonzero(self.stops[:started] > time)
        return int(self.rows[running[-1]]) if len(running) else None

    @property
    def word(self) -> str:
        """The table's name in the singular: ``trial``, ``epoch``; other names are kept."""
        return {"trials": "trial", "epochs": "epoch"}.get(self.name, self.name)

    def names(self, word: str) -> tuple[str, ...]:
        """Return the names of the metadata: `word` for a row's number, ``<word>_<column>`` for its cells."""
        return word, *(f"{word}_{column}" for column in self.cells)

    def metadata(self, row: int | None, word: str) -> dict[str, Any]:
        """Return a row's number and cells by their `names`; all None without a row."""
        cells = (None if row is None else cells[row] for cells in self.cells.values())
        return dict(zip(self.names(word), (row, *cells), strict=True))

    def times(self, column: str) -> npt.NDArray[np.float64] | None:
        """Return a column of times (s), NaN where a row has none; None if it is not a column of numbers."""
        try:
            times = np.array(self.cells[column], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            return None
        return times if times.ndim == 1 else None


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


def read_intervals(table: Any) -> tuple[Intervals, list[str]]:
    """Read a pynwb TimeIntervals table.

    Returns:
        The intervals, and notes on what was left out of them, one line each.
    """
    starts, stops = (np.asarray(table[name].data[:], dtype=np.float64) for name in ("start_time", "stop_time"))
    rows = np.flatnonzero(starts < stops)
    notes = []
    if len(rows) < len(starts):
        notes.append(f"{len(starts) - len(rows)} {table.name} have no usable start and stop")
    rows = rows[np.argsort(starts[rows], kind="stable")]
    cells = {name: _plain_cells(table[name]) for name in table.colnames}
    known = {name: values for name, values in cells.items() if values is not None}
    if len(known) < len(cells):
        left_out = ", ".join(sorted(cells.keys() - known))
        notes.append(f"{table.name}: no metadata of {left_out}: references or long lists")
    return Intervals(table.name, rows, to_ns(starts[rows]), to_ns(stops[rows]), known), notes


def _plain_cells(column: Any) -> list[Any] | None:
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
