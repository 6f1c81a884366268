"""From pynwb's objects to series: timelines, scaling, columns, and what is left out because it cannot be used.

Knows one object at a time; knows nothing of modalities or windows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import h5py
import numpy as np
from hdmf.common import DynamicTable
from pynwb.behavior import BehavioralEvents

from .access import why_failed, why_unreadable
from .alignable import Events
from .choosing import Choice, rows_fulfilling
from .columns import about_columns, columns_of, region_of
from .descriptions import rows_of_region
from .events import MOST_LABELS, Epochs, read_epochs, read_events
from .finding import Found
from .options import RecordingOptions
from .orientation import time_first
from .series import Series
from .timeline import Timeline, timeline_at_rate, timeline_of_timestamps
from .values import judged, scaling_doubt
from .views import Confident, SomeColumns

#: The datasets of a series that are read.
_PARTS = ("data", "timestamps", "confidence")


class SeriesMaker:
    """Makes series of the pynwb objects of one file.

    Args:
        file: the file's path, for errors.
        hdf5: the open h5py File or Zarr group, where links are looked up.
        warn: called with a line for each series that is left out or doubtful.
        options: how the recording is read.
        unread: path → reason of each dataset that is not read, since it leads out of the recording's directory.

    Attributes:
        left_out: path → reason of each object that cannot be used.
    """

    def __init__(
        self,
        file: str,
        hdf5: Any,
        warn: Callable[..., None],
        options: RecordingOptions,
        unread: Mapping[str, str],
    ) -> None:
        self._file, self._hdf5, self._warn, self._options, self._unread = file, hdf5, warn, options, unread
        self._timelines: dict[tuple[int, int], Timeline] = {}
        self.left_out: dict[str, str] = {}

    def make(self, found: Found) -> list[tuple[str, Series]]:
        """Make the series of an object: (name for its field, series); none, with a warning, if it cannot be used.

        Events become counts, with a column for each label, and on request the values that belong to them; epochs become
        a column of 0 and 1 for each state.
        """
        parts = (self._unread.get(f"{found.path}/{name}", "") for name in _PARTS)
        problem = next(filter(None, [*parts, *map(why_unreadable, _datasets_of(found.series))]), "")
        if problem:
            self._leave_out(found.path, problem)
            return []
        try:
            made = self._made_of(found)
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            self._leave_out(found.path, why_failed(error))
            return []
        chosen = [(name, self._with_chosen_columns(found, each)) for name, each in made]
        return [(name, each) for name, each in chosen if each is not None]

    def _made_of(self, found: Found) -> list[tuple[str, Series]]:
        name = found.series.name
        made: list[tuple[str, Series | None]] = []
        if found.kind == "events" or isinstance(found.holder, BehavioralEvents):
            events = read_events(found)
            made = [(name, self._counts(events))]
            if self._options.event_values:
                made.append((f"{name}_value", self._values(events)))
        elif found.kind in ("epochs", "intervals"):
            made = [(name, self._epochs(read_epochs(found)))]
        elif found.kind == "series":
            made = [(name, self.series(found))]
        return [(name, each) for name, each in made if each is not None]

    def series(self, found: Found) -> Series | None:
        """Make the series of a pynwb TimeSeries; None, with a warning, if its data cannot be used."""
        data, problem = time_first(found, self._warn, found.path in self._options.transposed)
        problem = self._missing_target(found) or problem
        if problem:
            self._leave_out(found.path, problem)
            return None
        timeline = self.timeline(found, len(data))
        if timeline is None:
            return None
        n_columns = data.shape[1] if len(data.shape) == 2 else 1
        given = self._options.scales.get(found.path)
        scale, offset = _scaling(found.series) if given is None else (float(given[0]), float(given[1]))
        if np.size(scale) not in (1, n_columns):
            problem = f"{np.size(scale)} channel_conversion values for data of shape {data.shape}"
            self._leave_out(found.path, problem)
            return None
        kind = self._kind(found, data.dtype, bool(np.all(scale == 1)) and offset == 0)
        confidence = getattr(found.series, "confidence", None)
        if self._options.min_confidence > 0 and confidence is not None:
            data = Confident(data, confidence, self._options.min_confidence)
        self._warn(*filter(None, [scaling_doubt(found.path, scale, offset)]))
        series = Series(
            path=found.path,
            file=self._file,
            columns=columns_of(found, n_columns, self._warn),
            unit=found.series.unit or "",
            kind=kind,
            data=data,
            timeline=timeline,
            scale=scale,
            offset=offset,
            about=about_columns(found.series, n_columns, self._warn),
        )
        raw = found.is_voltage or found.is_ophys or found.kind == "sweep"
        return series if raw else judged(series, found, self._warn)

    def _with_chosen_columns(self, found: Found, made: Series) -> Series | None:
        """Return a series with the columns whose electrodes or ROIs are wanted; None, with a warning, if none is.

        Raises:
            SourceError: their table lacks a column, or values cannot be compared.
        """
        what, _ = region_of(found.series)
        wanted = getattr(self._options, what) if what else None
        if wanted is None:
            return made
        if not made.about:
            self._leave_out(found.path, f"its table has no row for each column, so {what}={wanted!r} chooses none")
            return None
        rows = rows_fulfilling(Choice(wanted), made.about, what, self._file)
        if len(rows) == len(made.columns):
            return made
        told = f"{len(made.columns) - len(rows)} of its {len(made.columns)} {what} do not fulfil {wanted}"
        if not rows:
            self._leave_out(found.path, told)
            return None
        self._warn(f"{found.path}: {told}: left out")
        return replace(
            made,
            columns=tuple(made.columns[row] for row in rows),
            data=SomeColumns(made.data, rows),
            scale=np.asarray(made.scale)[rows] if np.size(made.scale) > 1 else made.scale,
            about=rows_of_region(made.about, rows),
        )

    def _kind(self, found: Found, dtype: np.dtype[Any], unscaled: bool) -> Literal["voltage", "states", "continuous"]:
        plain_integers = dtype.kind in "iu" and unscaled
        if found.is_voltage or found.is_ophys or not (plain_integers or dtype.kind == "b"):
            if plain_integers:
                unit = found.series.unit
                self._warn(f"{found.path}: integers with conversion 1.0 are taken as {unit}, and may be raw counts")
            return "voltage" if found.is_voltage else "continuous"
        return "states"

    def timeline(self, found: Found, n_rows: int) -> Timeline | None:
        """Make the timeline of n_rows samples; None, with a warning, if no time can be used."""
        try:
            timeline = self._timeline(found, n_rows)
        except (ValueError, TypeError, OSError) as error:
            self._leave_out(found.path, str(error))
            return None
        return self._usable(found.path, timeline)

    def _usable(self, path: str, timeline: Timeline) -> Timeline | None:
        if timeline.n == 0:
            remedy = f"--clock {path} SCALE START if they are not seconds of the session"
            self._leave_out(path, f"it has no usable timestamp ({remedy})")
            return None
        self._warn(*(f"{path}: {count} {what}" for what, count in timeline.notes.items()))
        return timeline

    def _leave_out(self, path: str, problem: str) -> None:
        self.left_out[path] = problem
        self._warn(f"{path} left out: {problem}")

    def _timeline(self, found: Found, n_rows: int) -> Timeline:
        source = found.series
        if source.timestamps is None:
            return _at_rate(found, n_rows)
        n_times = len(source.timestamps)
        coarse = _float32_step(source.timestamps)
        if coarse > 1e-4:
            self._warn(f"{found.path}: timestamps stored as float32 are only known to {coarse:.2g} s")
        if n_times != n_rows:
            self._warn(f"{found.path}: {n_rows} rows of data but {n_times} timestamps; the rest is left out")
        clock = id(source.timestamps), min(n_rows, n_times)
        if clock not in self._timelines:  # the columns of a table share one
            self._timelines[clock] = timeline_of_timestamps(found.on_clock(source.timestamps), clock[1])
        return self._timelines[clock]

    def _missing_target(self, found: Found) -> str | None:
        """Return where the data or timestamps should be, if they are links to nothing."""
        with contextlib.suppress(KeyError):
            group = self._hdf5[found.path]
            for name in ("data", "timestamps") if isinstance(group, h5py.Group) else ():
                link = group.get(name, getlink=True)
                if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)) and group.get(name) is None:
                    where = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else link.path
                    return f"its {name} are a link to {where}, which does not exist"
        return None

    def _counts(self, events: Events) -> Series | None:
        known, labels = sorted(set(events.labels or [""])), events.labels
        if len(known) > MOST_LABELS:
            self._warn(f"{events.path}: {len(known)} different labels are counted in one column")
            known, labels = [""], None
        timeline = self._usable(events.path, timeline_of_timestamps(events.seconds, len(events.seconds)))
        if timeline is None:
            return None
        columns = tuple(f"{events.name}/{label}" if label else events.name for label in known)
        is_label = np.array(labels or [""] * len(events.seconds))[:, None] == np.array(known)
        return Series(events.path, self._file, columns, "count", "labels", is_label, timeline)

    def _values(self, events: Events) -> Series | None:
        timeline, values = timeline_of_timestamps(events.seconds, len(events.seconds)), events.values
        if timeline.n == 0 or not values:
            return None
        columns = tuple(f"{events.name}_{name}" for name in values)
        return Series(events.path, self._file, columns, "", "values", np.stack(list(values.values()), axis=1), timeline)

    def _epochs(self, epochs: Epochs) -> Series | None:
        self._warn(*(f"{epochs.path}: {note}" for note in epochs.notes))
        states = {label: intervals for label, intervals in epochs.states().items() if len(intervals)}
        if not states:
            self._leave_out(epochs.path, "it has no usable interval")
            return None
        columns = tuple(f"{epochs.name}/{label}" if label else epochs.name for label in states)
        edges = np.unique(np.concatenate([intervals.ravel() for intervals in states.values()]))
        holds = [np.searchsorted(intervals.ravel(), edges, side="right") % 2 for intervals in states.values()]
        timeline = Timeline(len(edges), float(np.median(np.diff(edges))), None, (), edges, None)
        data = np.stack(holds, axis=1).astype(np.float64)
        return Series(epochs.path, self._file, columns, "", "epochs", data, timeline)


def _datasets_of(source: Any) -> list[Any]:
    """Return the datasets that are read of an object: those of a table's columns, or of a series' own."""
    if isinstance(source, DynamicTable):
        return [each.data for column in source.columns for each in (column, getattr(column, "target", column))]
    return [getattr(source, name, None) for name in _PARTS]


def _at_rate(found: Found, n_rows: int) -> Timeline:
    """Return the timeline of samples at a rate; without a usable one, times are numbers of samples."""
    (per_unit, start), source = found.clock, found.series
    rate, first = float(source.rate or np.nan), float(source.starting_time or 0.0)
    if not (np.isfinite(rate) and rate > 0):
        if per_unit == 1:
            remedy = f"--clock {found.path} 1/HZ START gives it one"
            raise ValueError(f"a sampling rate of {source.rate} Hz ({remedy})")
        rate = 1.0
    return timeline_at_rate(n_rows, first * float(per_unit) + float(start), float(Fraction(rate) / per_unit))


def _scaling(source: Any) -> tuple[Any, float]:
    """Return a series' conversion, with that of its channels if it has any, and its offset."""
    scale: Any = 1.0 if source.conversion is None else source.conversion
    if getattr(source, "channel_conversion", None) is not None:
        scale = scale * np.asarray(source.channel_conversion[:], dtype=np.float64)
    return scale, float(source.offset or 0.0)


def _float32_step(times: Any) -> float:
    """Return the distance (s) of neighbouring float32 numbers at the last of some times; 0 for wider types."""
    if getattr(times, "dtype", None) != np.float32 or len(times) == 0:
        return 0.0
    return float(np.spacing(np.abs(np.float32(times[len(times) - 1]))))
