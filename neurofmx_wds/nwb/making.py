"""From pynwb's time series to ours: timelines, scaling, columns, and what is left out because it cannot be used.

Knows one series at a time; knows nothing of modalities or windows.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import h5py
import numpy as np
from pynwb.behavior import BehavioralEvents, CompassDirection, SpatialSeries
from pynwb.ophys import RoiResponseSeries

from .finding import Found
from .naming import columns_of
from .series import Series, Transposed
from .tables import plain
from .timeline import Timeline, timeline_at_rate, timeline_of_timestamps

#: Units of angle, and a full turn in each.
TURNS = {"radian": 2 * np.pi, "rad": 2 * np.pi, "degree": 360.0, "deg": 360.0, "°": 360.0}
#: Annotations with more different labels than this are prose, and are counted in one column.
MOST_LABELS = 256


class SeriesMaker:
    """Makes series of the pynwb objects of one file.

    Args:
        file: the file's path, for errors.
        hdf5: the open h5py File or Zarr group, where links are looked up.
        warn: called with a line for each series that is left out or doubtful.
    """

    def __init__(self, file: str, hdf5: Any, warn: Callable[..., None]) -> None:
        self._file, self._hdf5, self._warn = file, hdf5, warn
        self._timelines: dict[tuple[int, int], Timeline] = {}

    def series(self, found: Found) -> Series | None:
        """Make the series of a pynwb TimeSeries; None, with a warning, if its data cannot be used."""
        source, data = found.series, self._time_first(found)
        shape: tuple[int, ...] = getattr(data, "shape", ())
        dtype = getattr(data, "dtype", np.dtype(object))
        problem = self._missing_target(found) or _no_columns(shape, dtype)
        if problem:
            self._warn(f"{found.path} left out: {problem}")
            return None
        timeline = self.timeline(found, shape[0])
        if timeline is None:
            return None
        scale: Any = 1.0 if source.conversion is None else source.conversion
        if getattr(source, "channel_conversion", None) is not None:
            scale = scale * np.asarray(source.channel_conversion[:], dtype=np.float64)
        if np.size(scale) not in (1, shape[-1] if len(shape) == 2 else 1):
            self._warn(f"{found.path} left out: {np.size(scale)} channel_conversion values for data of shape {shape}")
            return None
        offset = float(source.offset or 0.0)
        plain_integers = dtype.kind in "iu" and bool(np.all(scale == 1)) and offset == 0
        kind = _kind(found, dtype.kind == "b" or plain_integers)
        if plain_integers and kind in ("voltage", "continuous"):
            self._warn(f"{found.path}: integers with conversion 1.0 are taken as {source.unit}, and may be raw counts")
        return Series(
            path=found.path,
            file=self._file,
            columns=columns_of(found, shape),
            unit=source.unit or "",
            kind=kind,
            data=data,
            timeline=timeline,
            scale=scale,
            offset=offset,
            turn=_turn(found, shape),
        )

    def timeline(self, found: Found, n_rows: int) -> Timeline | None:
        """Make the timeline of n_rows samples; None, with a warning, if no time can be used."""
        try:
            timeline = self._timeline(found, n_rows)
        except (ValueError, TypeError, OSError) as error:
            self._warn(f"{found.path} left out: {error}")
            return None
        if timeline.n == 0:
            self._warn(f"{found.path} left out: it has no usable timestamp")
            return None
        self._warn(*(f"{found.path}: {count} {what}" for what, count in timeline.notes.items()))
        return timeline

    def labels(self, path: str, seconds: Any, labels: Any) -> Series | None:
        """Make a series of events with a column for each label.

        Args:
            path: where the events are.
            seconds: sliceable times (s).
            labels: one label for each; more than `MOST_LABELS` different ones are counted in one column.

        Returns:
            The series; None, with a warning, without a usable timestamp.
        """
        name = path.rsplit("/", 1)[-1]
        n = min(len(seconds), len(labels))
        texts = [str(plain(label)) for label in labels[:n]]
        known = sorted(set(texts))
        if len(known) > MOST_LABELS:
            self._warn(f"{path}: {len(known)} different labels are counted in one column")
            texts, known = [name] * n, [name]
        timeline = timeline_of_timestamps(seconds, n)
        if timeline.n == 0:
            self._warn(f"{path} left out: it has no usable timestamp")
            return None
        self._warn(*(f"{path}: {count} {what}" for what, count in timeline.notes.items()))
        columns = tuple(name if label == name else f"{name}/{label}" for label in known)
        is_label = np.array(texts)[:, None] == np.array(known)
        return Series(path, self._file, columns, "count", "labels", is_label, timeline)

    def _time_first(self, found: Found) -> Any:
        """Return a series' data with time on the first axis; the number of ROIs tells which axis is time."""
        data: Any = found.series.data
        n_rois = len(found.series.rois.data) if isinstance(found.series, RoiResponseSeries) else None
        match getattr(data, "shape", ()):
            case (rows, columns) if rows == n_rois != columns:
                self._warn(f"{found.path}: its data are ROI by time and are transposed")
                return Transposed(data)
        return data

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

    def _timeline(self, found: Found, n_rows: int) -> Timeline:
        source = found.series
        if source.timestamps is None:
            return timeline_at_rate(n_rows, float(source.starting_time or 0.0), float(source.rate or np.nan))
        n_times = len(source.timestamps)
        coarse = _float32_step(source.timestamps)
        if coarse > 1e-4:
            self._warn(f"{found.path}: timestamps stored as float32 are only known to {coarse:.2g} s")
        if n_times != n_rows:
            self._warn(f"{found.path}: {n_rows} rows of data but {n_times} timestamps; the rest is left out")
        clock = id(source.timestamps), min(n_rows, n_times)
        if clock not in self._timelines:  # the columns of a table share one
            self._timelines[clock] = timeline_of_timestamps(source.timestamps, clock[1])
        return self._timelines[clock]


def _kind(found: Found, coded: bool) -> Literal["voltage", "events", "states", "continuous"]:
    if found.is_voltage:
        return "voltage"
    if isinstance(found.holder, BehavioralEvents):
        return "events"
    return "states" if coded and not found.is_ophys else "continuous"


def _no_columns(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    if not 1 <= len(shape) <= 2 or 0 in shape or dtype.kind not in "biuf":
        return f"data of shape {tuple(shape)} and type {dtype} are no columns of numbers"
    return None


def _float32_step(times: Any) -> float:
    """Return the distance (s) of neighbouring float32 numbers at the last of some times; 0 for wider types."""
    if getattr(times, "dtype", None) != np.float32 or len(times) == 0:
        return 0.0
    return float(np.spacing(np.abs(np.float32(times[len(times) - 1]))))


def _turn(found: Found, shape: tuple[int, ...]) -> float | None:
    """Return a full turn in the series' unit, if its values are directions."""
    named = re.search("direction|heading", found.series.name, re.IGNORECASE) and isinstance(found.series, SpatialSeries)
    if not (isinstance(found.holder, CompassDirection) or named) or (len(shape) == 2 and shape[1] > 1):
        return None
    unit = (found.series.unit or "").strip().lower()
    return TURNS.get(unit, TURNS.get(unit.removesuffix("s")))


def on_its_circle(series: Series) -> Series:
    """Find where a series of angles cuts the circle; angles over more than a turn are unwrapped and stay on a line."""
    if series.turn is None:
        return series
    low, high = series.value_range()
    if not high - low <= series.turn * (1 + 1e-6):
        return replace(series, turn=None)
    return replace(series, lowest=0.0 if low >= 0 else min(low, -series.turn / 2))
