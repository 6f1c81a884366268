"""What windows can be aligned to beside the tables of metadata: found by name or path, whatever the rows are read from.

Knows events and intervals as plain values; knows nothing of pynwb or of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError
from .intervals import Intervals


@dataclass(frozen=True)
class Events:
    """Events of one object.

    Attributes:
        path: where they are.
        name: what their columns are called.
        seconds: float64 (n,), their times.
        labels: the kind of each event; None if all are of one kind.
        cells: column → plain JSON value of each event.
    """

    path: str
    name: str
    seconds: npt.NDArray[np.float64]
    labels: list[str] | None = None
    cells: Mapping[str, list[Any]] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, npt.NDArray[np.float64]]:
        """The columns of numbers, NaN where an event has none."""
        numbers = {
            name: np.array([np.nan if cell is None else cell for cell in cells], np.float64)
            for name, cells in self.cells.items()
            if cells and all(cell is None or type(cell) in (int, float, bool) for cell in cells)
        }
        return {name: column for name, column in numbers.items() if not np.isnan(column).all()}


def events_table(every: Sequence[Events]) -> Intervals:
    """Return events as one table to align windows to, in the order of time; its rows are points, not intervals.

    Args:
        every: events of one object or container; those of several are told apart by a column ``label``.
    """
    rows = [
        {"timestamp": time if np.isfinite(time) else None, **_label_of(each, i, len(every) > 1), **_cells_of(each, i)}
        for each in every
        for i, time in enumerate(each.seconds.tolist())
    ]
    if len(every) > 1:
        rows.sort(key=lambda row: (row["timestamp"] is None, row["timestamp"]))
    columns = dict.fromkeys(column for row in rows for column in row) or {"timestamp": None}
    none, path = np.empty(0, np.int64), every[0].path
    cells = {column: [row.get(column) for row in rows] for column in columns}
    name = path.split("/")[-2 if len(every) > 1 else -1]
    return Intervals(name, none, none, none, cells, "timestamp", tuple(each.path for each in every))


def _label_of(events: Events, row: int, several: bool) -> dict[str, str]:
    if several:
        return {"label": events.name.rsplit("/", 1)[-1]}
    return {} if events.labels is None else {"label": events.labels[row]}


def _cells_of(events: Events, row: int) -> dict[str, Any]:
    return {column: cells[row] for column, cells in events.cells.items()}


@dataclass(frozen=True)
class Alignable:
    """Something that windows can be aligned to.

    Attributes:
        path: where it is in the recording.
        name: what it is called there.
        read: reads its rows.
        links: the other paths that lead to it.
        place: the name of its processing module or group.
        holder: the name of the container that it lies in; None if it lies in a module or a group itself.
        together: whether the events of that container make one table.
    """

    path: str
    name: str
    read: Callable[[], Events | Intervals]
    links: tuple[str, ...] = ()
    place: str = ""
    holder: str | None = None
    together: bool = False

    @property
    def holder_path(self) -> str:
        """The path of what it lies in."""
        return self.path.rsplit("/", 1)[0]


def table_to_align(
    name: str, metadata: Mapping[str, Intervals], others: Sequence[Alignable], file: str
) -> Intervals | None:
    """Return a table of intervals or events to align windows to; None if there is none of this name or path.

    Args:
        name: the name, or the path, of a table of intervals or events, of a series of events or of intervals, or of a
            container of events of behavior, whose series are then told apart by their labels.
        metadata: the tables whose rows become metadata, by name.
        others: what else there is.
        file: the recording, for errors.

    Raises:
        SourceError: several have this name.
    """
    known = [table for table in metadata.values() if name in (table.name, *table.paths)]
    if known:
        return known[0]
    chosen = [each for each in others if name in (each.path, each.name, *each.links)]
    if not chosen:
        chosen = [each for each in others if each.holder is not None and name in (each.holder, each.holder_path)]
    if not chosen:
        return None
    together = len({each.holder_path for each in chosen}) == 1 and chosen[0].together
    if len(chosen) > 1 and not together:
        several = f"{name} stands for several: {', '.join(each.path for each in chosen)}"
        raise SourceError(several, file=file, remedy="align to one of these paths")
    rows = [each.read() for each in chosen]
    table = rows[0] if isinstance(rows[0], Intervals) else events_table([r for r in rows if isinstance(r, Events)])
    return table if table.name not in metadata else replace(table, name=f"{chosen[0].place}_{table.name}")
