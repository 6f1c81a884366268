"""Tables of intervals or events, such as trials, on the clock: for metadata of windows, and to align windows to.

Knows times and plain values; knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .clock import Int64


@dataclass(frozen=True)
class Intervals:
    """A table of intervals, such as trials, or of events, on the clock.

    Attributes:
        name: the table's name.
        rows: int64 (n,), the row in the table of each usable interval, by start; none of events.
        starts: int64 (n,), ns.
        stops: int64 (n,), ns.
        cells: column → the plain JSON values of its rows.
        event: the column of times (s) to align to by default.
        paths: the objects in the file that it is made of.
    """

    name: str
    rows: Int64
    starts: Int64
    stops: Int64
    cells: dict[str, list[Any]]
    event: str = "start_time"
    paths: tuple[str, ...] = ()

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
        """Return a column of times (s), or a sum such as "start_time+cue_time", NaN where a row has none.

        Returns:
            float64 (rows,); None if there is no such column of numbers.
        """
        names = [column] if column in self.cells else [name.strip() for name in column.split("+")]
        try:
            times = [np.array(self.cells[name], dtype=np.float64) for name in names]
        except (KeyError, TypeError, ValueError):
            return None
        return sum(times[1:], times[0]) if all(each.ndim == 1 for each in times) else None
