"""The tables of a recording whose rows are intervals or events: for metadata of samples, and to align windows to.

Knows which objects can be such tables; knows nothing of windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pynwb import NWBFile
from pynwb.behavior import BehavioralEvents

from ..errors import SourceError
from .access import why_unreadable
from .alignable import Alignable, Events, table_to_align
from .clock import Int64, intervals_of, no_intervals
from .events import read_epochs, read_events
from .finding import Found
from .intervals import Intervals
from .tables import read_intervals


class IntervalTables:
    """The tables of intervals and of events of one file.

    Args:
        nwb: the file, as pynwb reads it.
        objects: its objects that hold data.
        file: its path, for errors.
        warn: called with a line for what is left out.

    Attributes:
        left_out: path → reason of each table that cannot be read.
    """

    def __init__(self, nwb: NWBFile, objects: Sequence[Found], file: str, warn: Callable[..., None]) -> None:
        self._nwb, self._objects, self._file, self._warn = nwb, objects, file, warn
        self.left_out: dict[str, str] = {}

    @cached_property
    def metadata(self) -> dict[str, Intervals]:
        """The tables whose rows become metadata of samples, by name, after that of their module if another has it.

        They are those of trials, epochs and other intervals in the file, in acquisition and in processing.
        """
        nwb = self._nwb
        known = (nwb.trials, nwb.epochs, *(nwb.intervals or {}).values())
        own = {table.name: table for table in known if table is not None}
        tables: dict[str, Intervals] = {}
        for table in own.values():
            if table.name != "invalid_times" and {"start_time", "stop_time"} <= set(table.colnames):
                self._add(tables, table, f"intervals/{table.name}", (table.name,))
        for found in self._objects:
            if found.kind == "intervals" and found.in_recording:
                names = (found.series.name, f"{found.place}_{found.series.name}", found.path)
                self._add(tables, found.series, found.path, names)
        return tables

    def _add(self, tables: dict[str, Intervals], table: Any, path: str, names: Sequence[str]) -> None:
        """Read a table into `tables` under the first name that is free; with a warning, leave out a damaged one."""
        try:
            read = self._read(table, path)
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            columns = (each for column in table.columns for each in (column, getattr(column, "target", column)))
            problem = next(filter(None, (why_unreadable(each.data) for each in columns)), f"it cannot be read: {error}")
            self.left_out[path] = problem
            self._warn(f"{path} left out: {problem}")
        else:
            name = next(each for each in names if each not in tables)
            tables[name] = read if name == read.name else replace(read, name=name)

    @cached_property
    def invalid_times(self) -> Int64:
        """The intervals of the invalid_times table: int64 (n, 2), ns."""
        table = self._nwb.invalid_times
        if table is None:
            return no_intervals()
        intervals, bad = intervals_of(table["start_time"].data[:], table["stop_time"].data[:])
        if bad:
            self._warn(f"{bad} rows of invalid_times have no usable start and stop")
        return intervals

    def to_align(self, name: str) -> Intervals | None:
        """Return a table of intervals or events to align windows to; None if there is none of this name or path.

        Raises:
            SourceError: several have this name.
        """
        known = self.metadata
        for path, why in self.left_out.items():
            if name in (path, path.rsplit("/", 1)[-1]):
                raise SourceError(f"{path}: {why}", file=self._file, remedy="align to a table that can be read")
        return table_to_align(name, known, self.others, self._file)

    @cached_property
    def others(self) -> list[Alignable]:
        """All that windows can be aligned to, but the tables of the file's group of intervals."""
        kinds = ("intervals", "epochs", "events")
        every = [each for each in self._objects if not each.path.startswith("intervals/")]
        chosen = [each for each in every if each.kind in kinds or isinstance(each.holder, BehavioralEvents)]
        return [self._alignable(each) for each in chosen]

    def _alignable(self, found: Found) -> Alignable:
        return Alignable(
            found.path, found.series.name, lambda: self._rows(found), found.links, found.place,
            None if found.holder is None else found.holder.name, isinstance(found.holder, BehavioralEvents),
        )  # fmt: skip

    def _rows(self, found: Found) -> Events | Intervals:
        if found.kind == "intervals":
            return self._read(found.series, found.path)
        return read_epochs(found).table if found.kind == "epochs" else read_events(found)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tables of intervals, and the paths of all else that windows can be aligned to."""
        known = {path for table in self.metadata.values() for path in table.paths}
        return (*self.metadata, *(each.path for each in self.others if each.path not in known))

    def _read(self, table: Any, path: str) -> Intervals:
        clock = next((each.own_clock for each in self._objects if each.path == path), None)
        intervals, notes = read_intervals(table, path, clock)
        self._warn(*notes)
        return intervals
