"""Events and epochs: when something happened or a state held, with labels and values, whatever type holds them.

Knows annotations, events of behavior, tables, and types of extensions by their structure; knows nothing of bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hdmf.common import DynamicTable
from pynwb.misc import AnnotationSeries

from .alignable import Events
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
        return _of_lists(found, source) if "event_times" in source.colnames else _of_rows(found, source)
    seconds = _times(found)
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


def _times(found: Found) -> npt.NDArray[np.float64]:
    source = found.series
    if source.timestamps is not None:
        return _seconds(found, source.timestamps)
    times = float(source.starting_time or 0.0) + np.arange(len(source.data)) / float(source.rate or np.nan)
    return _seconds(found, times)


def _seconds(found: Found, times: Any) -> npt.NDArray[np.float64]:
    return np.asarray(found.on_clock(times)[:], np.float64)


def _of_rows(found: Found, table: DynamicTable) -> Events:
    """Return an event for each row of a table."""
    cells = {name: plain_cells(table[name]) for name in table.colnames if name != "timestamp"}
    known = {name: column for name, column in cells.items() if column is not None}
    return Events(found.path, table.name, _seconds(found, table["timestamp"].data), None, known)


def _of_lists(found: Found, table: DynamicTable) -> Events:
    """Return the events of a table of which each row has the times of one kind of event."""
    column = table["event_times"]
    ends = np.asarray(column.data[:], np.int64)
    labels = [str(plain(label)) for label in table["label"].data[:]]
    repeats = np.diff(ends, prepend=0)
    seconds = _seconds(found, column.target.data)
    order = np.argsort(seconds, kind="stable")
    each = np.repeat(np.arange(len(labels)), repeats)
    return Events(found.path, table.name, seconds[order], [labels[i] for i in each[order]])


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
        table, notes = read_intervals(found.series, found.path, found.own_clock)
        known = (table.cells[name] for name in LABEL_COLUMNS if name in table.cells)
        label = next((cells for cells in known if 1 < len(set(map(str, cells))) <= MOST_LABELS), None)
        return Epochs(found.path, short_name(found), table, label and [str(cell) for cell in label], tuple(notes))
    name, source = short_name(found), found.series
    n = min(len(source.data), len(source.timestamps))
    spans, bad = _spans(_seconds(found, source.timestamps)[:n], np.asarray(source.data[:n]))
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
