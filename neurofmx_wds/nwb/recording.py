"""One NWB file, opened: its spike trains, behavior series, LFP, trials and identity.

Reads through pynwb and turns its complaints into ours; knows nothing of bins' purpose, windows or shards.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hdmf.utils import LabelledDict
from pynwb import NWBHDF5IO, TimeSeries
from pynwb.behavior import (
    BehavioralEvents,
    BehavioralTimeSeries,
    CompassDirection,
    EyeTracking,
    Position,
    PupilTracking,
    SpatialSeries,
)
from pynwb.core import MultiContainerInterface
from pynwb.ecephys import LFP, ElectricalSeries, SpikeEventSeries

from ..errors import SourceError
from .clock import Int64, intervals_of, no_intervals, to_ns
from .series import Series, Timeline, timeline_at_rate, timeline_of_timestamps
from .units import SpikeTrains, read_units

BEHAVIOR_CONTAINERS = (
    Position,
    CompassDirection,
    BehavioralTimeSeries,
    BehavioralEvents,
    EyeTracking,
    PupilTracking,
)
TURNS = {"radian": 2 * np.pi, "rad": 2 * np.pi, "degree": 360.0, "deg": 360.0, "°": 360.0}
MODALITIES = ("spikes", "behavior", "lfp")


@dataclass(frozen=True)
class Trials:
    """The trials table on the clock, by start: row in the table, start and stop (int64 ns) of each usable trial."""

    rows: Int64
    starts: Int64
    stops: Int64

    def at(self, time: int) -> int | None:
        """Gives the row of the trial with start ≤ time < stop (ns), the last to start where several have; or None."""
        started = int(np.searchsorted(self.starts, time, side="right"))
        running = np.flatnonzero(self.stops[:started] > time)
        return int(self.rows[running[-1]]) if len(running) else None


@dataclass(frozen=True)
class Found:
    """A time series, where it was found, and the container that it is in."""

    path: str
    place: str
    holder: Any
    series: Any


class Recording:
    """An NWB file open for reading.

    Args:
        path: the .nwb file (NWB 2, HDF5).

    Attributes:
        warnings: what was left out or repaired, and what pynwb warned of, one line each.

    Raises:
        SourceError: the file is missing, empty, damaged, a git-LFS pointer, no HDF5, or not NWB 2.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.warnings: list[str] = []
        _check_is_nwb2(Path(path))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self._io = NWBHDF5IO(self.path, "r", load_namespaces=True)
                self._nwb = self._io.read()
            except Exception as error:  # pynwb and hdmf raise whatever the file's oddity leads to
                raise SourceError(
                    f"pynwb cannot read it: {type(error).__name__}: {error}",
                    file=self.path,
                    remedy="run `pynwb-validate` on it, or open it with the tool that wrote it and export it again",
                ) from error
        self.warn(*(f"pynwb: {w.message}" for w in caught if "cached namespace" not in str(w.message)))

    def close(self) -> None:
        """Closes the file; the arrays already read stay."""
        self._io.close()

    def warn(self, *lines: str) -> None:
        """Notes what was left out or repaired, once each."""
        self.warnings += [line for line in dict.fromkeys(lines) if line not in self.warnings]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Who and when: identifier, session_id, subject, session_start, timestamps_reference_time (ISO)."""
        nwb, subject = self._nwb, self._nwb.subject
        names = ("subject_id", "species", "sex", "age", "genotype", "strain", "weight", "description", "date_of_birth")
        known = {name: getattr(subject, name, None) for name in names}
        return {
            "identifier": nwb.identifier,
            "session_id": nwb.session_id or nwb.identifier,
            "subject": {name: _plain(value) for name, value in known.items() if value},
            "session_start": nwb.session_start_time.isoformat(),
            "timestamps_reference_time": nwb.timestamps_reference_time.isoformat(),
        }

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """What there is to convert, of spikes, behavior and lfp, in this order."""
        return tuple(name for name in MODALITIES if (self._has_spikes if name == "spikes" else self._found(name)))

    @cached_property
    def contents(self) -> str:
        """What there is, in words, for errors."""
        return ", ".join((*self.modalities, *(found.path for found in self.unused()))) or "no time series at all"

    @cached_property
    def _has_spikes(self) -> bool:
        return self._nwb.units is not None and "spike_times" in self._nwb.units.colnames

    @cached_property
    def spikes(self) -> SpikeTrains:
        """The spike trains of the Units table.

        Raises:
            SourceError: the table is damaged.
        """
        try:
            return read_units(self._nwb.units, self.path)
        except OSError as error:
            raise SourceError(
                f"the Units table cannot be read: {error}", file=self.path, remedy="the file is damaged; copy it again"
            ) from error

    @cached_property
    def units_table(self) -> dict[str, list[Any]]:
        """The Units table's ids, spike counts and, where it has them, electrode groups and locations."""
        table, trains = self._nwb.units, self.spikes
        columns: dict[str, list[Any]] = {"id": list(trains.ids), "n_spikes": trains.per_unit}
        if "electrode_group" in table.colnames:
            groups = table["electrode_group"][:]
            columns["electrode_group"] = [group.name for group in groups]
            columns["location"] = [_plain(group.location) for group in groups]
        for name in ("location", "electrodes"):
            if name in table.colnames:
                columns[name] = [_plain(value) for value in _cells(table[name])]
        return columns

    @cached_property
    def behavior(self) -> tuple[Series, ...]:
        """The behavior series, by path; angles know their circle."""
        series = [self._series(found, _behavior_columns) for found in self._found("behavior")]
        return tuple(_on_its_circle(each) for each in _with_distinct_columns([s for s in series if s is not None]))

    @cached_property
    def lfp(self) -> dict[str, Series]:
        """The LFP series by field name: ``lfp`` where there is one, else ``lfp_<name>``."""
        made = [(found.series.name, self._series(found, _electrodes)) for found in self._found("lfp")]
        series = [(name, replace(each, kind="continuous")) for name, each in made if each is not None]
        if len(series) == 1:
            return {"lfp": series[0][1]}
        fields: dict[str, Series] = {}
        for name, each in series:
            field = "lfp_" + re.sub(r"[^a-z0-9_]+", "_", name.lower())
            same = sum(taken == field or re.fullmatch(rf"{field}_\d+", taken) is not None for taken in fields)
            fields[f"{field}_{same + 1}" if same else field] = each
        return fields

    @cached_property
    def trials(self) -> Trials | None:
        """The trials table, or None."""
        table = self._nwb.trials
        if table is None:
            return None
        starts, stops = (np.asarray(table[name].data[:], dtype=np.float64) for name in ("start_time", "stop_time"))
        rows = np.flatnonzero(starts < stops)
        if len(rows) < len(starts):
            self.warn(f"{len(starts) - len(rows)} trials have no usable start and stop")
        rows = rows[np.argsort(starts[rows], kind="stable")]
        return Trials(rows, to_ns(starts[rows]), to_ns(stops[rows]))

    @cached_property
    def invalid_times(self) -> Int64:
        """The intervals of the invalid_times table: int64 (n, 2), ns."""
        table = self._nwb.invalid_times
        if table is None:
            return no_intervals()
        intervals, bad = intervals_of(table["start_time"].data[:], table["stop_time"].data[:])
        if bad:
            self.warn(f"{bad} rows of invalid_times have no usable start and stop")
        return intervals

    def unused(self) -> list[Found]:
        """Lists the time series that belong to no modality."""
        used = {id(found.series) for name in ("behavior", "lfp") for found in self._found(name)}
        return [found for found in self._all_series if id(found.series) not in used]

    @cached_property
    def _all_series(self) -> list[Found]:
        places = [("acquisition", "acquisition", self._nwb.acquisition)]
        places += [(f"processing/{m.name}", m.name, m.data_interfaces) for m in self._nwb.processing.values()]
        found = [
            each
            for path, place, items in places
            for name, item in items.items()
            for each in _series_in(f"{path}/{name}", place, None, item)
        ]
        return list({id(each.series): each for each in sorted(found, key=lambda each: each.path)}.values())

    def _found(self, modality: str) -> list[Found]:
        if modality == "behavior":
            return [f for f in self._all_series if isinstance(f.holder, BEHAVIOR_CONTAINERS) or _is_bare_spatial(f)]
        electrical = [
            f
            for f in self._all_series
            if isinstance(f.series, ElectricalSeries) and not isinstance(f.series, SpikeEventSeries)
        ]
        return [f for f in electrical if isinstance(f.holder, LFP)] or electrical

    def _series(self, found: Found, columns_of: Any) -> Series | None:
        """Makes the series of a pynwb TimeSeries; None, with a warning, where its data are of no use."""
        source, data = found.series, found.series.data
        shape: tuple[int, ...] = getattr(data, "shape", ())
        dtype = getattr(data, "dtype", np.dtype(object))
        if not 1 <= len(shape) <= 2 or 0 in shape or dtype.kind not in "biuf":
            self.warn(f"{found.path} left out: data of shape {tuple(shape)} and type {dtype} are no columns of numbers")
            return None
        try:
            timeline = self._timeline(found, shape[0])
        except (ValueError, TypeError, OSError) as error:
            self.warn(f"{found.path} left out: {error}")
            return None
        if timeline.n == 0:
            self.warn(f"{found.path} left out: it has no usable timestamp")
            return None
        self.warn(*(f"{found.path}: {count} {what}" for what, count in timeline.notes.items()))
        scale: Any = 1.0 if source.conversion is None else source.conversion
        if getattr(source, "channel_conversion", None) is not None:
            scale = scale * np.asarray(source.channel_conversion[:], dtype=np.float64)
        if np.size(scale) not in (1, shape[-1] if len(shape) == 2 else 1):
            self.warn(f"{found.path} left out: {np.size(scale)} channel_conversion values for data of shape {shape}")
            return None
        offset = float(source.offset or 0.0)
        coded = dtype.kind == "b" or (dtype.kind in "iu" and np.all(scale == 1) and offset == 0)
        return Series(
            path=found.path,
            file=self.path,
            columns=columns_of(found, shape),
            unit=source.unit or "",
            kind="events" if isinstance(found.holder, BehavioralEvents) else "states" if coded else "continuous",
            data=data,
            timeline=timeline,
            scale=scale,
            offset=offset,
            turn=_turn(found, shape),
        )

    def _timeline(self, found: Found, n_rows: int) -> Timeline:
        source = found.series
        if source.timestamps is None:
            return timeline_at_rate(n_rows, float(source.starting_time or 0.0), float(source.rate or np.nan))
        n_times = len(source.timestamps)
        if n_times != n_rows:
            self.warn(f"{found.path}: {n_rows} rows of data but {n_times} timestamps; the rest is left out")
        return timeline_of_timestamps(source.timestamps, min(n_rows, n_times))


def _check_is_nwb2(path: Path) -> None:
    """Raises a SourceError that says what the file is instead of NWB 2, where it is not."""
    problem, remedy = _other_than_nwb2(path)
    if problem:
        raise SourceError(problem, file=path, remedy=remedy)


def _other_than_nwb2(path: Path) -> tuple[str | None, str]:
    damaged = "it was cut short or not closed by its writer; copy or download it again"
    try:
        if path.is_dir():
            return "is a directory, not an NWB file", "name the .nwb files in it"
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"cannot be opened: {error.strerror or error}", "check the path and the permissions"
    if not start:
        return "is empty", damaged
    if start.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the recording itself", "run `git lfs pull` where it was checked out"
    if not h5py.is_hdf5(path):
        return "is not an HDF5 file", "NWB 2 files are HDF5; for arrays use .npz or .npy"
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("nwb_version", file["nwb_version"][()] if "nwb_version" in file else None)
    except (OSError, RuntimeError, KeyError) as error:
        return f"is a damaged HDF5 file: {error}", damaged
    version = version.decode() if isinstance(version, bytes) else version
    if version is None:
        return "is an HDF5 file but not NWB: it has no nwb_version", "convert it to NWB 2 with pynwb or NeuroConv first"
    if str(version).startswith(("1", "NWB-1", "0")):
        return f"is NWB {version}, which is not NWB 2", "convert it to NWB 2 first"
    return None, ""


def _series_in(path: str, place: str, holder: Any, item: Any) -> Iterator[Found]:
    if isinstance(item, TimeSeries):
        yield Found(path, place, holder, item)
    elif isinstance(item, MultiContainerInterface):
        for group in item.fields.values():
            for name, child in group.items() if isinstance(group, LabelledDict) else ():
                yield from _series_in(f"{path}/{name}", place, item, child)


def _is_bare_spatial(found: Found) -> bool:
    return isinstance(found.series, SpatialSeries) and found.holder is None


def _behavior_columns(found: Found, shape: tuple[int, ...]) -> tuple[str, ...]:
    name = f"{found.holder.name if found.holder is not None else found.place}/{found.series.name}"
    n_columns = shape[1] if len(shape) == 2 else 1
    if n_columns == 1:
        return (name,)
    spatial = isinstance(found.series, SpatialSeries) and n_columns <= 3
    return tuple(f"{name}_{axis}" for axis in ("xyz"[:n_columns] if spatial else range(n_columns)))


def _electrodes(found: Found, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names channels by their electrodes' ids; by number where the file does not say one for each."""
    n_columns = shape[1] if len(shape) == 2 else 1
    region = found.series.electrodes
    rows = [] if region is None else [int(row) for row in region.data[:]]
    if len(rows) != n_columns:
        return tuple(str(channel) for channel in range(n_columns))
    return tuple(str(region.table.id[row]) for row in rows)


def _with_distinct_columns(series: list[Series]) -> list[Series]:
    """Calls columns by their series' whole path where the short name stands for two."""
    names = [column for each in series for column in each.columns]
    return [
        replace(each, columns=tuple(f"{each.path.rsplit('/', 1)[0]}/{c.split('/', 1)[-1]}" for c in each.columns))
        if any(names.count(column) > 1 for column in each.columns)
        else each
        for each in series
    ]


def _turn(found: Found, shape: tuple[int, ...]) -> float | None:
    """Gives a full turn in the series' unit where its values are directions."""
    named = re.search("direction|heading", found.series.name, re.IGNORECASE) and isinstance(found.series, SpatialSeries)
    if not (isinstance(found.holder, CompassDirection) or named) or (len(shape) == 2 and shape[1] > 1):
        return None
    unit = (found.series.unit or "").strip().lower()
    return TURNS.get(unit, TURNS.get(unit.removesuffix("s")))


def _on_its_circle(series: Series) -> Series:
    """Finds where a series of angles cuts the circle; one that goes round more than once is unwrapped, hence a line."""
    if series.turn is None:
        return series
    low, high = series.value_range()
    if not high - low <= series.turn * (1 + 1e-6):
        return replace(series, turn=None)
    return replace(series, lowest=0.0 if low >= 0 else min(low, -series.turn / 2))


def _cells(column: Any) -> Iterator[Any]:
    """Gives a table column's cells as stored: a ragged region's as the row numbers it points to."""
    if not hasattr(column, "target"):
        yield from column.data[:]
        return
    values, stop = column.target.data, 0
    for end in column.data[:]:
        start, stop = stop, int(end)
        yield values[start:stop]


def _plain(value: Any) -> Any:
    """Makes a cell plain JSON."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
