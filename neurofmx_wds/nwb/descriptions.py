"""What the tables of a recording say of its units, electrodes and ROIs: scalar columns, as plain JSON of bounded size.

Knows pynwb's tables; knows nothing of spikes, series or shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from hdmf.common import DynamicTable, DynamicTableRegion, VectorIndex
from pynwb.base import TimeSeriesReferenceVectorData

from .access import why_unreadable
from .tables import plain

#: A manifest holds at most so many columns of a table, cells of a column, and characters of a cell.
MOST_COLUMNS, MOST_ROWS, MOST_CHARACTERS = 64, 100_000, 200
_NO_SCALARS = (VectorIndex, DynamicTableRegion, TimeSeriesReferenceVectorData)

Columns = dict[str, list[Any]]


def scalar_columns(table: DynamicTable) -> tuple[Columns, list[str]]:
    """Return the columns of a table that hold one number, truth or text a row, and notes on what is left out.

    Texts are cut after MOST_CHARACTERS, what is not finite becomes None, and of references only the name is kept.

    Returns:
        column → one JSON value for each row, in the table's order of columns; and the notes, one line each.
    """
    names = [name for name in table.colnames if _may_be_scalar(table[name])]
    if len(table) > MOST_ROWS:
        return {}, [f"{table.name}: its columns are left out: {len(table)} rows are too many for a manifest"]
    left_out = names[MOST_COLUMNS:]
    notes = [f"{table.name}: columns left out, more than {MOST_COLUMNS}: {', '.join(left_out)}"] if left_out else []
    columns: Columns = {}
    for name in names[:MOST_COLUMNS]:
        try:
            columns[name] = _cells(table[name])
        except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
            why = why_unreadable(table[name].data) or error
            notes.append(f"{table.name}/{name} left out: {why}")
    return {name: cells for name, cells in columns.items() if len(cells) == len(table)}, notes


def _may_be_scalar(column: Any) -> bool:
    """Return whether a column may hold scalars, without reading it."""
    if isinstance(column, _NO_SCALARS):
        return False
    return len(getattr(column.data, "shape", None) or (0,)) == 1


def _cells(column: Any) -> list[Any]:
    """Return a column's cells as plain JSON; [] if they are no scalars."""
    words = getattr(column, "elements", None)  # of an enumeration
    names = None if words is None else [plain(word) for word in words.data[:]]
    cells = []
    for each in column.data[:]:
        cell = plain(each)
        cell = getattr(cell, "name", cell)
        if isinstance(cell, float) and not np.isfinite(cell):
            cell = None
        if not isinstance(cell, (str, bool, int, float, type(None))):
            return []
        if isinstance(cell, str) and len(cell) > MOST_CHARACTERS:
            cell = cell[: MOST_CHARACTERS - 1] + "…"
        cells.append(cell if names is None or not isinstance(cell, int) else names[cell])
    return cells


def rows_of_region(columns: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> Columns:
    """Return columns of some rows of a table; None for rows that it does not have."""
    return {name: [cells[row] if 0 <= row < len(cells) else None for row in rows] for name, cells in columns.items()}


def joined_rows(columns: Mapping[str, Sequence[Any]], groups: Iterable[Sequence[int]]) -> Columns:
    """Return one value for each group of rows, such as the electrodes of a unit.

    Where the rows differ, texts are joined by commas, and all else is None.

    Example:
        >>> table = {"location": ["CA1", "CA1", "CA3"], "depth": [10.0, 20.0, 30.0]}
        >>> joined_rows(table, [[0], [0, 1], [1, 2], []])
        {'location': ['CA1', 'CA1', 'CA1, CA3', None], 'depth': [10.0, None, None, None]}
    """
    members = [list(group) for group in groups]
    return {name: [_joined([cells[r] for r in rows if 0 <= r < len(cells)]) for rows in members]
            for name, cells in columns.items()}  # fmt: skip


def _joined(values: Sequence[Any]) -> Any:
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    if len(distinct) == 1:
        return distinct[0]
    is_text = bool(distinct) and all(isinstance(value, str) for value in distinct)
    return ", ".join(distinct)[:MOST_CHARACTERS] if is_text else None
