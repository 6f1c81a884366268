"""One NWB file, opened: its spike trains, its series by modality or by path, its interval tables and identity.

Reads through pynwb; knows nothing of windows or shards.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from pynwb.image import ImageSeries

from ..errors import SourceError
from .clock import NS_PER_S, Int64, intervals_of, no_intervals
from .finding import MODALITIES, Found, find_series, of_modality
from .making import SeriesMaker, on_its_circle
from .movie import Movie
from .naming import by_field, with_distinct_columns
from .opening import open_nwb
from .series import Series
from .sweeps import Sweep, read_sweeps
from .tables import Intervals, cells_of, plain, read_intervals
from .units import SpikeTrains, read_units, support_of
from .video import Video, read_video, video_length

#: Of objects left out, this many are named in an error; the report names all.
MOST_NAMED = 3
#: Spike times are doubtful if the units that fire have a lower mean rate (spikes/s), or if the last spike is later than
#: this many times the end of all else.
LOWEST_RATE, LATEST_SPIKE = 0.05, 20


class Recording:
    """An NWB file open for reading.

    Args:
        path: the .nwb file (NWB 2, HDF5).
        time_scale: seconds per unit of the Units table's times, where a file does not use seconds: 1/1000 for ms.
        stream: the open file, where `path` is an address; it is closed with the recording. It must be the whole
            recording: files that it refers to are not looked for.
        decode_video: decode the video files that it names below its directory, instead of only numbering their frames.
        make_io: returns pynwb's IO if `path` is not an HDF5 file.

    Attributes:
        warnings: what was left out or repaired, and pynwb's warnings, one line each.
        left_out: path → error of each object that pynwb cannot read; the rest of the file is read.

    Raises:
        SourceError: the file is missing, empty, damaged, a git-LFS pointer, or not NWB 2.
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
        self._decode_video = decode_video
        self._alone = stream is not None
        self._closing = contextlib.ExitStack()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                warnings.simplefilter("ignore", ResourceWarning)  # from garbage of other code
                self._io, self._nwb, self.left_out = open_nwb(self.path, stream, self._closing, make_io)
        except BaseException:
            self._closing.close()
            raise
        self.warn(*(f"pynwb: {w.message}" for w in caught if "cached namespace" not in str(w.message)))
        self.warn(*map(str, self.left_out.values()))
        self._maker = SeriesMaker(self.path, self._io._file, self.warn)

    def close(self) -> None:
        """Close the file; arrays that were read stay valid."""
        self._closing.close()

    def warn(self, *lines: str) -> None:
        """Add lines about what was left out or repaired to the warnings, each once."""
        self.warnings += [line for line in dict.fromkeys(lines) if line not in self.warnings]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The identifier, session_id, subject, session_start and timestamps_reference_time (ISO 8601)."""
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
        """Which of spikes, behavior, lfp, ophys and events the file has, in this order; video must be asked for."""
        return tuple(name for name in MODALITIES if self.has(name))

    def has(self, modality: str) -> bool:
        """Return whether the file has a modality, or a series at or below a path such as ``acquisition/x``."""
        if modality == "spikes":
            return self._has_spikes
        return bool(self._found(modality)) or (modality == "events" and bool(getattr(self._nwb, "events", None)))

    @cached_property
    def contents(self) -> str:
        """The modalities and series in the file, in words, for errors."""
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
            self.warn(f"units: {doubt}: in ms or samples? set time_scale (1/1000; 1/30000 for samples at 30 kHz)")
        return trains

    @property
    def spike_support(self) -> tuple[Int64, str, int]:
        """Where spikes can be, by which rule, and the number of stray spikes (see `units.support_of`)."""
        return support_of(self.spikes)

    def _why_not_seconds(self, trains: SpikeTrains) -> str | None:
        """Return why spike times may not be in seconds, or None; a heuristic that needs a hundred spikes."""
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
        """The Units table's ids, spike counts, and electrode groups and locations if it has them."""
        table, trains = self._nwb.units, self.spikes
        columns: dict[str, list[Any]] = {"id": list(trains.ids), "n_spikes": trains.per_unit}
        if "electrode_group" in table.colnames:
            groups = table["electrode_group"][:]
            columns["electrode_group"] = [group.name for group in groups]
            columns["location"] = [plain(getattr(group, "location", None)) for group in groups]  # None if left out
        for name in ("location", "electrodes"):
            if name in table.colnames:
                columns[name] = [plain(value) for value in cells_of(table[name])]
        return columns

    @cached_property
    def behavior(self) -> tuple[Series, ...]:
        """The behavior series, by path; angles are on their circle."""
        series = [self._maker.series(found) for found in self._found("behavior")]
        return tuple(on_its_circle(each) for each in with_distinct_columns([s for s in series if s is not None]))

    @cached_property
    def events(self) -> tuple[Series, ...]:
        """The annotations and events tables, by path; each label is a column."""
        series = [self._maker.labels(f.path, f.series.timestamps, f.series.data) for f in self._found("events")]
        tables = getattr(self._nwb, "events", None) or {}
        for name, table in sorted(tables.items()):
            times = table["timestamp"].data
            series.append(self._maker.labels(f"events/{name}", times, [name] * len(times)))
        return tuple(with_distinct_columns([each for each in series if each is not None]))

    def fields_of(self, modality: str) -> dict[str, Series]:
        """Return the series of lfp, of ophys, or at and below a path in the file, by field (see `naming.by_field`)."""
        if modality not in self._fields_of:
            found = [each for each in self._found(modality) if not isinstance(each.series, ImageSeries)]
            made = [(each.series.name, self._maker.series(each)) for each in found]
            self._fields_of[modality] = by_field(modality, [(name, each) for name, each in made if each is not None])
        return self._fields_of[modality]

    def videos_of(self, modality: str) -> dict[str, Video]:
        """Return the image series, all or those at and below a path, by field (see `naming.by_field`)."""
        if modality not in self._videos_of:
            found = [each for each in self._found(modality) if isinstance(each.series, ImageSeries)]
            made = [(each.series.name, self._video(each)) for each in found]
            self._videos_of[modality] = by_field(modality, [(name, each) for name, each in made if each is not None])
        return self._videos_of[modality]

    def _video(self, found: Found) -> Video | None:
        timeline = self._maker.timeline(found, video_length(found.series))
        opener = self._movie if self._decode_video else None
        return None if timeline is None else read_video(found, self.path, timeline, self.warn, opener)

    def _movie(self, path: str, files: tuple[str, ...], firsts: Int64, n: int) -> Movie | None:
        """Open the files of a video; None, with a warning, if one of them must not or cannot be opened."""
        try:
            if self._alone:
                raise ValueError("the recording is not a file on disk, and files that it refers to are not looked for")
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
        return read_sweeps(self._nwb, lambda path, each: self._maker.series(Found(path, "sweeps", None, each)))

    @cached_property
    def intervals(self) -> dict[str, Intervals]:
        """The tables of trials, epochs and other intervals, by name, without invalid_times."""
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
        """List the time series that belong to no modality; they can be taken by their path."""
        used = {id(found.series) for name in MODALITIES[1:] for found in self._found(name)}
        return [found for found in self._all_series if id(found.series) not in used]

    @cached_property
    def _all_series(self) -> list[Found]:
        return find_series(self._nwb)

    def _found(self, modality: str) -> list[Found]:
        return of_modality(self._all_series, modality)
