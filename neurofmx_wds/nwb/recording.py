"""One NWB file, opened: its spike trains, its series by modality or by path, its interval tables and identity.

Reads through pynwb and turns its complaints into ours; knows nothing of bins' purpose, windows or shards.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, BinaryIO, Literal, TypeVar

import h5py
import numpy as np
from hdmf.common import DynamicTable
from hdmf.utils import LabelledDict
from pynwb import TimeSeries
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
from pynwb.image import ImageSeries
from pynwb.misc import AnnotationSeries
from pynwb.ophys import RoiResponseSeries

from ..errors import SourceError
from .clock import NS_PER_S, Int64, intervals_of, no_intervals
from .movie import Movie
from .opening import open_nwb
from .series import Series, Timeline, Transposed, timeline_at_rate, timeline_of_timestamps
from .sweeps import Sweep, read_sweeps
from .tables import Intervals, TimedColumn, cells_of, plain, read_intervals, timed_columns
from .units import SpikeTrains, read_units
from .video import Video

AnySeries = TypeVar("AnySeries", Series, Video)

BEHAVIOR_CONTAINERS = (
    Position,
    CompassDirection,
    BehavioralTimeSeries,
    BehavioralEvents,
    EyeTracking,
    PupilTracking,
)
TURNS = {"radian": 2 * np.pi, "rad": 2 * np.pi, "degree": 360.0, "deg": 360.0, "°": 360.0}
MODALITIES = ("spikes", "behavior", "lfp", "ophys", "events")
#: Frames that a video of unknown length is taken to have.
MOST_FRAMES = 2**31
#: Annotations with more different labels than this are prose, and counted without telling them apart.
MOST_LABELS = 256
#: Of objects left out, this many are named in an error; the report names all.
MOST_NAMED = 3
#: A lower mean rate (spikes/s) of the units of a recording, or a later last spike, in ends of all else, is doubtful.
LOWEST_RATE, LATEST_SPIKE = 0.05, 20


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
        stream: the file, open, where `path` is no path but tells where it is; closed with the recording. It must hold
            all of it: nothing that it says to be in other files is looked for.
        decode_video: decode the video files beside it that it names, instead of only numbering their frames.
        time_scale: what one unit of the Units table's times is in seconds, where it is not one: 1/1000 of those in ms.
        make_io: makes pynwb's IO where `path` is no HDF5 file.

    Attributes:
        warnings: what was left out or repaired, and what pynwb warned of, one line each.
        left_out: path → what is wrong with an object that pynwb cannot make; the rest of the file is read.

    Raises:
        SourceError: the file is missing, empty, damaged, a git-LFS pointer, no HDF5, or not NWB 2.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        time_scale: Fraction = Fraction(1),
        stream: BinaryIO | None = None,
        decode_video: bool = False,
        make_io: Callable[[], Any] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._time_scale = time_scale
        self.warnings: list[str] = []
        self._fields_of: dict[str, dict[str, Series]] = {}
        self._videos_of: dict[str, dict[str, Video]] = {}
        self._timelines: dict[tuple[int, int], Timeline] = {}
        self._decode_video = decode_video
        self._alone = stream is not None
        self._closing = contextlib.ExitStack()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                warnings.simplefilter("ignore", ResourceWarning)  # of what is collected just now, not of the file
                self._io, self._nwb, self.left_out = open_nwb(self.path, stream, self._closing, make_io)
        except BaseException:
            self._closing.close()
            raise
        self.warn(*(f"pynwb: {w.message}" for w in caught if "cached namespace" not in str(w.message)))
        self.warn(*map(str, self.left_out.values()))

    def close(self) -> None:
        """Closes the file; the arrays already read stay."""
        self._closing.close()

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
            "subject": {name: plain(value) for name, value in known.items() if value},
            "session_start": nwb.session_start_time.isoformat(),
            "timestamps_reference_time": nwb.timestamps_reference_time.isoformat(),
        }

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """What there is to convert of spikes, behavior, lfp, ophys and events, in this order; video only when asked."""
        return tuple(name for name in MODALITIES if self.has(name))

    def has(self, modality: str) -> bool:
        """Says whether there is anything of a modality, or any series at or below a path such as ``acquisition/x``."""
        if modality == "spikes":
            return self._has_spikes
        return bool(self._found(modality)) or (modality == "events" and bool(getattr(self._nwb, "events", None)))

    @cached_property
    def contents(self) -> str:
        """What there is, in words, for errors."""
        there = ", ".join((*self.modalities, *(found.path for found in self.unused()))) or "no time series at all"
        return "; ".join((there, *[str(why) for why in self.left_out.values()][:MOST_NAMED]))

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
            trains = read_units(self._nwb.units, self.path, self._time_scale)
        except OSError as error:
            raise SourceError(
                f"the Units table cannot be read: {error}", file=self.path, remedy="the file is damaged; copy it again"
            ) from error
        doubt = self._why_not_seconds(trains)
        if doubt:
            self.warn(f"units: {doubt}: in ms or samples? time_scale mends that (1/1000; 1/30000 of samples at 30 kHz)")
        return trains

    def _why_not_seconds(self, trains: SpikeTrains) -> str | None:
        """Says what makes one doubt that spike times are in seconds; a heuristic, and blind to few spikes."""
        if len(trains) < 100:
            return None
        times, ends = trains.times, [each.stops.max() for each in self.intervals.values() if len(each.stops)]
        ends += [trains.obs_intervals.max()] if trains.obs_intervals is not None else []
        if not (times % NS_PER_S).any():
            return "all spike times are whole seconds"
        if ends and times[-1] > LATEST_SPIKE * max(ends) > 0:
            return f"the last spike is at {times[-1] / NS_PER_S:.6g} s, all else ends at {max(ends) / NS_PER_S:.6g} s"
        span = (times[-1] - times[0]) / NS_PER_S
        rate = len(trains) / span / np.count_nonzero(trains.per_unit) if span else np.inf
        return f"the units that fire do so at {rate:.2g} spikes/s" if rate < LOWEST_RATE else None

    @cached_property
    def units_table(self) -> dict[str, list[Any]]:
        """The Units table's ids, spike counts and, where it has them, electrode groups and locations."""
        table, trains = self._nwb.units, self.spikes
        columns: dict[str, list[Any]] = {"id": list(trains.ids), "n_spikes": trains.per_unit}
        if "electrode_group" in table.colnames:
            groups = table["electrode_group"][:]
            columns["electrode_group"] = [group.name for group in groups]
            columns["location"] = [plain(getattr(group, "location", None)) for group in groups]  # one left out has none
        for name in ("location", "electrodes"):
            if name in table.colnames:
                columns[name] = [plain(value) for value in cells_of(table[name])]
        return columns

    @cached_property
    def behavior(self) -> tuple[Series, ...]:
        """The behavior series, by path; angles know their circle."""
        series = [self._series(found) for found in self._found("behavior")]
        return tuple(_on_its_circle(each) for each in _with_distinct_columns([s for s in series if s is not None]))

    @cached_property
    def events(self) -> tuple[Series, ...]:
        """The annotations and events tables, by path; each label is a column."""
        series = [self._labels(f.path, f.series.timestamps, f.series.data) for f in self._found("events")]
        tables = getattr(self._nwb, "events", None) or {}
        for name, table in sorted(tables.items()):
            times = table["timestamp"].data
            series.append(self._labels(f"events/{name}", times, [name] * len(times)))
        return tuple(_with_distinct_columns([each for each in series if each is not None]))

    def _labels(self, path: str, seconds: Any, labels: Any) -> Series | None:
        """Makes a series of one column per label; of one for all, where labels are as many as prose has."""
        name = path.rsplit("/", 1)[-1]
        n = min(len(seconds), len(labels))
        texts = [str(plain(label)) for label in labels[:n]]
        known = sorted(set(texts))
        if len(known) > MOST_LABELS:
            self.warn(f"{path}: {len(known)} different labels are counted in one column")
            texts, known = [name] * n, [name]
        timeline = timeline_of_timestamps(seconds, n)
        if timeline.n == 0:
            self.warn(f"{path} left out: it has no usable timestamp")
            return None
        self.warn(*(f"{path}: {count} {what}" for what, count in timeline.notes.items()))
        columns = tuple(name if label == name else f"{name}/{label}" for label in known)
        is_label = np.array(texts)[:, None] == np.array(known)
        return Series(path, self.path, columns, "count", "labels", is_label, timeline)

    def fields_of(self, modality: str) -> dict[str, Series]:
        """Gives the series of lfp, of ophys, or at and below a path in the file, each with a field of its own.

        Returns:
            field → series: the modality where there is one, else ``<modality>_<name>``; of a path, the series' names.
        """
        if modality not in self._fields_of:
            found = [each for each in self._found(modality) if not isinstance(each.series, ImageSeries)]
            made = [(each.series.name, self._series(each)) for each in found]
            self._fields_of[modality] = _named(modality, [(name, each) for name, each in made if each is not None])
        return self._fields_of[modality]

    def videos_of(self, modality: str) -> dict[str, Video]:
        """Gives the image series, all of them or those at and below a path, by field, named as `fields_of` does."""
        if modality not in self._videos_of:
            found = [each for each in self._found(modality) if isinstance(each.series, ImageSeries)]
            made = [(each.series.name, self._video(each)) for each in found]
            self._videos_of[modality] = _named(modality, [(name, each) for name, each in made if each is not None])
        return self._videos_of[modality]

    def _video(self, found: Found) -> Video | None:
        """Makes the video of a pynwb ImageSeries; None, with a warning, where it cannot be placed in time."""
        source = found.series
        files = tuple(map(str, source.external_file[:])) if source.external_file is not None else ()
        numbered = MOST_FRAMES if source.timestamps is None else len(source.timestamps)
        n = int(len(source.data) if not files else getattr(source, "num_samples", None) or numbered)
        try:
            timeline = self._timeline(found, n)
        except (ValueError, TypeError, OSError) as error:
            self.warn(f"{found.path} left out: {error}")
            return None
        data: Any = None if files else source.data
        if timeline.n == 0 or (data is not None and (0 in data.shape or data.dtype.kind not in "biuf")):
            self.warn(f"{found.path} left out: it has no frames of numbers, or no usable timestamp")
            return None
        endless = n == MOST_FRAMES
        if endless:
            self.warn(f"{found.path}: the file does not say how many frames there are; their numbers go on to the end")
        self.warn(*(f"{found.path}: {count} {what}" for what, count in timeline.notes.items()))
        firsts = np.zeros(max(1, len(files)), np.int64) if source.starting_frame is None else source.starting_frame[:]
        firsts = np.asarray(firsts, np.int64)
        if files and self._decode_video:
            data = self._movie(found.path, files, firsts, n)
        return Video(found.path, self.path, source.unit or "", timeline, endless, data, files, firsts)

    def _movie(self, path: str, files: tuple[str, ...], firsts: Int64, n: int) -> Movie | None:
        """Opens the files of a video; None, with a warning, where one of them may not be opened or cannot be."""
        try:
            if self._alone:
                raise ValueError("the recording is not a file on disk, and what it names is not looked for")
            movie = Movie(self.path, files, firsts, n)
        except (ValueError, OSError) as error:
            if isinstance(error, SourceError):
                raise
            self.warn(f"{path}: its frames are only numbered, not decoded: {error}")
            return None
        self._closing.callback(movie.close)
        return movie

    @cached_property
    def sweeps(self) -> tuple[Sweep, ...]:
        """The sweeps of intracellular recordings."""
        return read_sweeps(self._nwb, lambda path, each: self._series(Found(path, "sweeps", None, each)))

    @cached_property
    def intervals(self) -> dict[str, Intervals]:
        """The tables of trials, epochs and other intervals, by name; invalid_times are none of them."""
        nwb = self._nwb
        tables = [nwb.trials, nwb.epochs, *(nwb.intervals or {}).values()]
        return {
            table.name: self._intervals(table)
            for table in tables
            if table is not None
            and table.name != "invalid_times"
            and {"start_time", "stop_time"} <= set(table.colnames)
        }

    def _intervals(self, table: Any) -> Intervals:
        intervals, notes = read_intervals(table)
        self.warn(*notes)
        return intervals

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
        """Lists the time series that belong to no modality; a path may ask for them."""
        used = {id(found.series) for name in MODALITIES[1:] for found in self._found(name)}
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
        every = self._all_series
        if "/" in modality:
            return [f for f in every if f"{f.path}/".startswith(f"{modality.strip('/')}/")]
        if modality == "behavior":
            return [f for f in every if _is_behavior(f)]
        if modality == "events":
            return [f for f in every if isinstance(f.series, AnnotationSeries)]
        if modality == "ophys":
            return [f for f in every if _is_ophys(f)]
        if modality == "video":
            return [f for f in every if isinstance(f.series, ImageSeries)]
        electrical = [f for f in every if modality == "lfp" and _is_voltage(f)]
        return [f for f in electrical if isinstance(f.holder, LFP)] or electrical

    def _series(self, found: Found) -> Series | None:
        """Makes the series of a pynwb TimeSeries; None, with a warning, where its data are of no use."""
        source, data = found.series, self._time_first(found)
        shape: tuple[int, ...] = getattr(data, "shape", ())
        dtype = getattr(data, "dtype", np.dtype(object))
        problem = self._missing_target(found) or _no_columns(shape, dtype)
        if problem:
            self.warn(f"{found.path} left out: {problem}")
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
        plain_integers = dtype.kind in "iu" and bool(np.all(scale == 1)) and offset == 0
        kind = _kind(found, dtype.kind == "b" or plain_integers)
        if plain_integers and kind in ("voltage", "continuous"):
            self.warn(f"{found.path}: integers with conversion 1.0 are taken as {source.unit}, and may be raw counts")
        return Series(
            path=found.path,
            file=self.path,
            columns=_columns(found, shape),
            unit=source.unit or "",
            kind=kind,
            data=data,
            timeline=timeline,
            scale=scale,
            offset=offset,
            turn=_turn(found, shape),
        )

    def _time_first(self, found: Found) -> Any:
        """Gives a series' data with time on their first axis; the ROI table's length tells which that is."""
        data: Any = found.series.data
        n_rois = len(found.series.rois.data) if isinstance(found.series, RoiResponseSeries) else None
        match getattr(data, "shape", ()):
            case (rows, columns) if rows == n_rois != columns:
                self.warn(f"{found.path}: its data are ROI by time and are turned")
                return Transposed(data)
        return data

    def _missing_target(self, found: Found) -> str | None:
        """Says where the data or timestamps should be, if they are links that lead nowhere."""
        with contextlib.suppress(KeyError):
            group = self._io._file[found.path]
            for name in ("data", "timestamps") if isinstance(group, h5py.Group) else ():
                link = group.get(name, getlink=True)
                if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)) and group.get(name) is None:
                    where = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else link.path
                    return f"its {name} are a link to {where}, which is not there"
        return None

    def _timeline(self, found: Found, n_rows: int) -> Timeline:
        source = found.series
        if source.timestamps is None:
            return timeline_at_rate(n_rows, float(source.starting_time or 0.0), float(source.rate or np.nan))
        n_times = len(source.timestamps)
        coarse = _float32_step(source.timestamps)
        if coarse > 1e-4:
            self.warn(f"{found.path}: timestamps stored as float32 are only known to {coarse:.2g} s")
        if n_times != n_rows:
            self.warn(f"{found.path}: {n_rows} rows of data but {n_times} timestamps; the rest is left out")
        clock = id(source.timestamps), min(n_rows, n_times)
        if clock not in self._timelines:  # the columns of a table have one in common
            self._timelines[clock] = timeline_of_timestamps(source.timestamps, clock[1])
        return self._timelines[clock]


def _series_in(path: str, place: str, holder: Any, item: Any) -> Iterator[Found]:
    if isinstance(item, TimeSeries):
        yield Found(path, place, holder, item)
    elif isinstance(item, MultiContainerInterface):
        for group in item.fields.values():
            for name, child in group.items() if isinstance(group, LabelledDict) else ():
                yield from _series_in(f"{path}/{name}", place, item, child)
    elif isinstance(item, DynamicTable):
        yield from (Found(f"{path}/{each.name}", place, item, each) for each in timed_columns(item))


def _is_behavior(found: Found) -> bool:
    """Says whether a series is of behavior: by its container, its type, or, a plain one, by its module's name."""
    plain = type(found.series) in (TimeSeries, TimedColumn) and found.place == "behavior"
    return isinstance(found.holder, BEHAVIOR_CONTAINERS) or isinstance(found.series, SpatialSeries) or plain


def _is_voltage(found: Found) -> bool:
    return isinstance(found.series, ElectricalSeries) and not isinstance(found.series, SpikeEventSeries)


def _is_ophys(found: Found) -> bool:
    photometry = found.series.neurodata_type == "FiberPhotometryResponseSeries"  # an extension's, often not installed
    return isinstance(found.series, RoiResponseSeries) or photometry


def _kind(found: Found, coded: bool) -> Literal["voltage", "events", "states", "continuous"]:
    if _is_voltage(found):
        return "voltage"
    if isinstance(found.holder, BehavioralEvents):
        return "events"
    return "states" if coded and not _is_ophys(found) else "continuous"


def _no_columns(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    if not 1 <= len(shape) <= 2 or 0 in shape or dtype.kind not in "biuf":
        return f"data of shape {tuple(shape)} and type {dtype} are no columns of numbers"
    return None


def _float32_step(times: Any) -> float:
    """Gives the distance (s) of neighbouring float32 numbers at the last of some times; 0 for wider types."""
    if getattr(times, "dtype", None) != np.float32 or len(times) == 0:
        return 0.0
    return float(np.spacing(np.abs(np.float32(times[len(times) - 1]))))


def _named(modality: str, made: list[tuple[str, AnySeries]]) -> dict[str, AnySeries]:
    """Gives series fields: of a modality its name, with the series' where there are several; of a path the series'."""
    prefix = "" if "/" in modality else f"{modality}_"
    fields: dict[str, AnySeries] = {}
    for series_name, each in made:
        name = modality if prefix and len(made) == 1 else prefix + field_name(series_name)
        same = sum(taken == name or re.fullmatch(rf"{name}_\d+", taken) is not None for taken in fields)
        fields[f"{name}_{same + 1}" if same else name] = each
    return fields


def field_name(name: str) -> str:
    """Makes a name that a field may have: lower-case letters, digits and single underscores between them."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "series"


def _columns(found: Found, shape: tuple[int, ...]) -> tuple[str, ...]:
    if isinstance(found.series, ElectricalSeries):
        return _rows_named(found.series.electrodes, shape)
    if isinstance(found.series, RoiResponseSeries):
        return _rows_named(found.series.rois, shape)
    return _behavior_columns(found, shape)


def _behavior_columns(found: Found, shape: tuple[int, ...]) -> tuple[str, ...]:
    name = f"{found.holder.name if found.holder is not None else found.place}/{found.series.name}"
    n_columns = shape[1] if len(shape) == 2 else 1
    if n_columns == 1:
        return (name,)
    spatial = isinstance(found.series, SpatialSeries) and n_columns <= 3
    return tuple(f"{name}_{axis}" for axis in ("xyz"[:n_columns] if spatial else range(n_columns)))


def _rows_named(region: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names columns by the ids of the electrodes or ROIs; by number where the file does not say one for each."""
    n_columns = shape[1] if len(shape) == 2 else 1
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
