"""The tables of units of a recording: their spike trains, side by side, and what the tables say of each unit.

Knows which tables there are; knows nothing of bins or windows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import SourceError
from .access import why_unreadable
from .choosing import Choice, rows_fulfilling
from .clock import NS_PER_S, no_intervals
from .descriptions import joined_rows, scalar_columns
from .finding import Found
from .options import RecordingOptions
from .tables import cells_of, plain
from .units import SpikeTrains, read_units

#: Spike times are doubtful if the units that fire have a lower mean rate (spikes/s), or if the last spike is later than
#: this many times the end of all else.
LOWEST_RATE, LATEST_SPIKE = 0.05, 20
#: Columns that every table of units gets; a file's own of these names get another.
RESERVED = frozenset({"id", "key", "n_spikes", "table", "session_id", "source", "column"})
#: Of ids that several units have, this many are named.
MOST_IDS = 10


@dataclass(frozen=True)
class Units:
    """The units of a recording.

    Attributes:
        paths: the tables that they are from.
        trains: their spikes.
        columns: what the tables say of each unit, as JSON values: column → one value for each unit.
    """

    paths: tuple[str, ...]
    trains: SpikeTrains
    columns: dict[str, list[Any]]


NO_UNITS = Units((), SpikeTrains(no_intervals()[:, 0], np.empty(0, np.int32), (), {}, (), None, 0), {})


class UnitTables:
    """The tables of units of one file.

    Args:
        objects: the file's objects that hold data.
        file: its path, for errors.
        options: how the recording is read.
        warn: called with a line for what is doubtful.
        ends: returns when all else in the recording ends (ns), to tell whether times are in seconds.
        session: what the keys of its units begin with.
    """

    def __init__(
        self,
        objects: Sequence[Found],
        file: str,
        options: RecordingOptions,
        warn: Callable[..., None],
        ends: Callable[[], Iterable[int]],
        session: str,
    ) -> None:
        self._session = session
        self._ends = ends
        self._all = [found for found in objects if found.kind == "units"]
        self._file, self._options, self._warn = file, options, warn
        self._read: dict[tuple[str, ...], Units] = {}
        self.left_out: dict[str, str] = {}

    def _check(self, tables: Sequence[Found]) -> None:
        for each in tables:
            column = each.series["spike_times"]
            for data in (column.data, getattr(column, "target", column).data):
                if problem := why_unreadable(data):
                    raise SourceError(f"{each.path}/spike_times: {problem}", file=self._file)

    def at(self, paths: Iterable[str] = ()) -> list[Found]:
        """Return the tables at or below some paths; of none, the file's own, else those in processing modules."""
        below = [f"{path.strip('/')}/" for path in paths]
        if below:
            return [each for each in self._all if f"{each.path}/".startswith(tuple(below))]
        own = [each for each in self._all if each.path == "units"]
        return own or [each for each in self._all if each.in_recording]

    def why_not(self) -> str:
        """Return why there are no units to read; "" if there are."""
        if self.usable():
            return ""
        return "; ".join(f"{path}: {why}" for path, why in self.left_out.items()) or "it has no units"

    def usable(self) -> bool:
        """Return whether there are units in the usual places; what cannot be read is left out with a warning."""
        if not self.at():
            return False
        try:
            self.read()
        except SourceError as error:
            if self._options.units is not None:  # what was asked for by name is not left out
                raise
            self.left_out |= {each.path: error.problem for each in self.at()}
            self._warn(f"{', '.join(each.path for each in self.at())} left out: {error.problem}")
            return False
        return True

    def read(self, paths: Iterable[str] = ()) -> Units:
        """Read the units of the tables at some paths (see `at`).

        Args:
            paths: where.

        Raises:
            SourceError: a table is damaged.
        """
        tables = self.at(paths)
        key = tuple(each.path for each in tables)
        if key not in self._read:
            self._check(tables)
            try:
                columns, notes = _columns(tables, self._session)
                trains, columns = self._chosen(tables, columns)
            except OSError as error:
                problem = f"{', '.join(key)} cannot be read: {error}"
                raise SourceError(problem, file=self._file, remedy="the file is damaged; copy it again") from error
            self._warn(*notes, *trains.notes, *filter(None, [_repeated(trains.ids)]))
            doubt = _why_not_seconds(trains, self._ends())
            if doubt:
                self._warn(f"units: {doubt}: in ms or samples? set time_scale (1/1000; 1/30000 for samples at 30 kHz)")
            self._read[key] = Units(key, trains, columns)
        return self._read[key]

    def _chosen(
        self, tables: Sequence[Found], columns: dict[str, list[Any]]
    ) -> tuple[SpikeTrains, dict[str, list[Any]]]:
        """Read the spikes of the units that are wanted; return them with what is said of these units."""
        series, wanted = [each.series for each in tables], self._options.units
        clocks = [
            each.clock if each.path in self._options.clocks else (self._options.time_scale, Fraction(0))
            for each in tables
        ]
        if wanted is None:
            trains = read_units(series, self._file, clocks)
            return trains, {"id": columns.pop("id"), "n_spikes": trains.per_unit, **columns}
        counted = {"id": columns.pop("id"), "n_spikes": [0], **columns}

        def choose(n_spikes: list[int]) -> list[int]:
            counted["n_spikes"] = n_spikes
            rows = rows_fulfilling(Choice(wanted), counted, "units", self._file)
            if not rows:
                problem = f"none of its {len(n_spikes)} units fulfils {wanted}"
                raise SourceError(problem, file=self._file, remedy="change the expression units")
            return rows

        trains = read_units(series, self._file, clocks, choose)
        rows = choose(counted["n_spikes"])
        left, spikes = len(counted["id"]) - len(rows), sum(counted["n_spikes"]) - len(trains)
        if left:
            self._warn(f"units: {left} of {left + len(rows)}, with {spikes} spikes, do not fulfil {wanted}: left out")
        return trains, {name: [cells[row] for row in rows] for name, cells in counted.items()}


def _why_not_seconds(trains: SpikeTrains, ends: Iterable[int]) -> str | None:
    """Return why spike times may not be in seconds, or None; a heuristic that needs a hundred spikes."""
    if len(trains) < 100:
        return None
    times, end = trains.times, max(ends, default=0)
    if trains.obs_intervals is not None:
        end = max(end, int(trains.obs_intervals.max()))
    if not (times % NS_PER_S).any():
        return "all spike times are whole seconds"
    if times[-1] > LATEST_SPIKE * end > 0:
        return f"the last spike is at {times[-1] / NS_PER_S:.6g} s, all else ends at {end / NS_PER_S:.6g} s"
    span = (times[-1] - times[0]) / NS_PER_S
    rate = len(trains) / span / np.count_nonzero(trains.per_unit) if span else np.inf
    return f"the units that fire do so at {rate:.2g} spikes/s" if rate < LOWEST_RATE else None


def _columns(tables: Sequence[Found], session: str) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the tables' scalar columns, electrodes and what is said of these; and notes on what is left out."""
    read = [_columns_of(each.series) for each in tables]
    ids = [int(i) for each in tables for i in each.series.id[:]]
    columns: dict[str, list[Any]] = {"id": ids, "key": _keys(session, ids)}
    if len(tables) > 1:
        columns["table"] = [each.path for each in tables for _ in range(len(each.series))]
    for name in dict.fromkeys(name for own, _ in read for name in own if name not in columns):
        pairs = zip(tables, read, strict=True)
        columns[name] = [
            value for each, (own, _) in pairs for value in own.get(name) or [None] * len(each.series)
        ]  # fmt: skip
    return columns, [note for _, notes in read for note in notes]


def _columns_of(table: Any) -> tuple[dict[str, list[Any]], list[str]]:
    columns: dict[str, list[Any]] = {}
    if "electrode_group" in table.colnames:
        groups = table["electrode_group"][:]
        columns["electrode_group"] = [group.name for group in groups]
        columns["location"] = [plain(getattr(group, "location", None)) for group in groups]  # None if left out
    scalars, notes = scalar_columns(table)
    if "electrodes" in table.colnames:
        columns["electrodes"] = [plain(value) for value in cells_of(table["electrodes"])]
        electrodes, more = scalar_columns(getattr(table["electrodes"], "target", table["electrodes"]).table)
        said = joined_rows(electrodes, map(_as_list, columns["electrodes"]))
        columns |= {name if name == "location" else f"electrode_{name}": said[name] for name in said}
        notes += more
    own = {f"{name}_in_table" if name in RESERVED else name: cells for name, cells in scalars.items()}
    return {**columns, **{name: cells for name, cells in own.items() if name != "electrode_group"}}, notes


def _as_list(rows: Any) -> list[int]:
    return rows if isinstance(rows, list) else [rows]


def _keys(session: str, ids: Sequence[int]) -> list[str]:
    """Return a key of its own for each unit: session and id, and a number from 2 on where several have one id."""
    seen: Counter[int] = Counter()
    keys = []
    for i in ids:
        seen[i] += 1
        keys.append(f"{session}/{i}" if seen[i] == 1 else f"{session}/{i}~{seen[i]}")
    return keys


def _repeated(ids: Sequence[int]) -> str:
    """Return a note on the ids that several units have; "" if there are none."""
    again = [i for i, n in Counter(ids).items() if n > 1]
    shown = ", ".join(map(str, again[:MOST_IDS])) + (", …" if len(again) > MOST_IDS else "")
    return f"units: ids that several units have: {shown}; their keys differ" if again else ""
