"""Events and epochs: when something happened or a state held, with labels and values, whatever type holds them.

Knows annotations, events of behavior, tables, and types of extensions by their structure; knows nothing of bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from hdmf.common import DynamicTable
from pynwb.misc import AnnotationSeries

from .clock import Int64, to_ns, union, usable
from .columns import short_name
from .finding import Found
from .intervals import Intervals
from .tables import plain, plain_cells, read_intervals

#: Labels of more different texts than this are prose, and are not told apart.
MOST_LABELS = 256
#: Integer values of events with more different values than this are amounts, not codes of kinds of events.
MOST_CODES = 16
#: Columns of interval tables that say which state holds; the first that there is counts.
LABEL_COLUMNS = ("label", "labels", "state", "behavior", "stage", "type", "condition", "name", "tags")
#: Where types of extensions keep the texts that their integer data stand for: an attribute of the group or of the data.
_TEXTS = ("labels", "data__labels")


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


def read_events(found: Found) -> Events:
    """Read the events of an object.

    Args:
        found: an AnnotationSeries, a series of a BehavioralEvents, a SpikeEventSeries (the events' times only), an
            EventsTable, a table with a row of ``event_times`` for each label, or an object with ``timestamps`` and
            perhaps ``data`` and ``labels``, such as LabeledEvents.
    """
    source = found.series
    name = source.name if found.kind == "events" else short_name(found)
    if isinstance(source, DynamicTable):
        return _of_lists(found.path, source) if "event_times" in source.colnames else _of_rows(found.path, source)
    seconds = _times(source)
    data = getattr(source, "data", None)
    if found.type == "SpikeEventSeries" or data is None or len(getattr(data, "shape", (len(data),))) != 1:
        return Events(found.path, name, seconds)
    n = min(len(seconds), len(data))
    if n == 0:  # without values there are still events
        return Events(found.path, name, seconds)
    seconds, cells = seconds[:n], [plain(cell) for cell in data[:n]]
    if isinstance(source, AnnotationSeries) or isinstance(cells[0], str):
        return Events(found.path, name, seconds, [str(cell) for cell in cells])
    texts = next((each for key in _TEXTS if (each := getattr(source, key, None)) is not None), ())
    texts = dict(enumerate(str(plain(text)) for text in texts))
    labels = [texts.get(cell) or str(cell) for cell in cells] if texts or _are_codes(np.asarray(data[:n])) else None
    return Events(found.path, name, seconds, labels, {"value": cells})


def _are_codes(data: npt.NDArray[Any]) -> bool:
    return data.dtype.kind in "biu" and 1 < len(np.unique(data)) <= MOST_CODES


def _times(source: Any) -> npt.NDArray[np.float64]:
    if source.timestamps is not None:
        return np.asarray(source.timestamps[:], np.float64)
    return float(source.starting_time or 0.0) + np.arange(len(source.data)) / float(source.rate or np.nan)


def _of_rows(path: str, table: DynamicTable) -> Events:
    """Return an event for each row of a table."""
    cells = {name: plain_cells(table[name]) for name in table.colnames if name != "timestamp"}
    known = {name: column for name, column in cells.items() if column is not None}
    return Events(path, table.name, np.asarray(table["timestamp"].data[:], np.float64), None, known)


def _of_lists(path: str, table: DynamicTable) -> Events:
    """Return the events of a table of which each row has the times of one kind of event."""
    column = table["event_times"]
    ends = np.asarray(column.data[:], np.int64)
    labels = [str(plain(label)) for label in table["label"].data[:]]
    repeats = np.diff(ends, prepend=0)
    seconds = np.asarray(column.target.data[:], np.float64)
    order = np.argsort(seconds, kind="stable")
    each = np.repeat(np.arange(len(labels)), repeats)
    return Events(path, table.name, seconds[order], [labels[i] for i in each[order]])


@dataclass(frozen=True)
class Epochs:
    """States of one object, each with the intervals in which it holds.

    Attributes:
        path: where they are.
        name: what their columns are called.
        table: every interval as it is in the file, with its label.
        labels: the state of each interval of the table, by its rows; None if all are of one state.
        notes: what was left out, one line each.
    """

    path: str
    name: str
    table: Intervals
    labels: list[str] | None = None
    notes: tuple[str, ...] = ()

    def states(self) -> dict[str, Int64]:
        """Return the intervals of each state, by label ("" if all are of one state): int64 (n, 2), ns, disjoint."""
        spans = np.stack([self.table.starts, self.table.stops], axis=1)
        if self.labels is None:
            return {"": union([spans])}
        each = np.array([self.labels[row] for row in self.table.rows])
        return {label: union([spans[each == label]]) for label in sorted(set(self.labels))}


def read_epochs(found: Found) -> Epochs:
    """Read the states of an IntervalSeries, or of a table of intervals with one of the `LABEL_COLUMNS`."""
    if isinstance(found.series, DynamicTable):
        table, notes = read_intervals(found.series, found.path)
        known = (table.cells[name] for name in LABEL_COLUMNS if name in table.cells)
        label = next((cells for cells in known if 1 < len(set(map(str, cells))) <= MOST_LABELS), None)
        return Epochs(found.path, short_name(found), table, label and [str(cell) for cell in label], tuple(notes))
    name, source = short_name(found), found.series
    n = min(len(source.data), len(source.timestamps))
    spans, bad = _spans(np.asarray(source.timestamps[:n], np.float64), np.asarray(source.data[:n]))
    spans.sort()
    starts, stops, codes = (list(column) for column in zip(*spans, strict=True)) if spans else ([], [], [])
    labels = [str(code) for code in codes]
    cells = {"start_time": starts, "stop_time": stops, "label": labels}
    table = Intervals(source.name, np.arange(len(spans)), to_ns(starts), to_ns(stops), cells, paths=(found.path,))
    notes = [f"{bad} starts or stops without their counterpart left out"] if bad else []
    return Epochs(found.path, name, table, labels if len(set(labels)) > 1 else None, tuple(notes))


def _spans(seconds: npt.NDArray[np.float64], data: npt.NDArray[Any]) -> tuple[list[tuple[float, float, int]], int]:
    """Pair the starts (positive) and stops (negative, or 0 where none is) of an IntervalSeries by their code.

    Returns:
        (start, stop, code) of each interval, and how many starts and stops have no counterpart.
    """
    timed = usable(seconds)
    order = np.argsort(seconds[timed], kind="stable")
    seconds, codes = seconds[timed][order], data[timed][order].astype(int)
    open_since: dict[int, float] = {}
    spans, bad = [], int((~timed).sum())
    for time, code in zip(seconds.tolist(), codes.tolist(), strict=True):
        if code > 0:
            bad += code in open_since
            open_since[code] = time
            continue
        ended = [-code] if code else list(open_since)
        bad += not any(each in open_since for each in ended)
        spans += [(open_since.pop(each), time, each) for each in ended if each in open_since]
    return [span for span in spans if span[0] < span[1]], bad + len(open_since)
