"""One NWB file, opened: its spike trains, its series by modality or by path, its interval tables and identity.

Reads through pynwb; knows nothing of windows or shards.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, BinaryIO

from pynwb.behavior import BehavioralEvents

from ..errors import SourceError
from .alignable import Alignable
from .clock import Int64
from .columns import short_fields, with_distinct_columns
from .finding import Found, at_path, find_objects, of_modality
from .interval_tables import IntervalTables
from .intervals import Intervals
from .inventory import not_taken, reason_of
from .making import SeriesMaker
from .movie import Movie
from .opening import open_nwb
from .options import MODALITIES, RecordingOptions
from .series import Series
from .sweeps import Sweep, read_sweeps
from .tables import plain
from .unit_tables import Units, UnitTables
from .units import SpikeTrains, support_of
from .video import Video, read_video, video_length

#: Of objects left out, this many are named in an error; the report names all.
MOST_NAMED = 3


class Recording:
    """An NWB file open for reading.

    Args:
        path: the .nwb file (NWB 2, HDF5).
        options: how it is read.
        stream: the open file, where `path` is an address; it is closed with the recording. It must be the whole
            recording: files that it refers to are not looked for.
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
        options: RecordingOptions | None = None,
        stream: BinaryIO | None = None,
        make_io: Callable[[], Any] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._options = options or RecordingOptions()
        self.warnings: list[str] = []
        self._fields_of: dict[str, dict[str, Series]] = {}
        self._videos_of: dict[str, dict[str, Video]] = {}
        self._alone = stream is not None
        self._closing = contextlib.ExitStack()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                warnings.simplefilter("ignore", ResourceWarning)  # from garbage of other code
                self._io, self._nwb, self.left_out = open_nwb(self.path, stream, self._closing, make_io)
            self._check_paths()
        except BaseException:
            self._closing.close()
            raise
        self.warn(*(f"pynwb: {w.message}" for w in caught if "cached namespace" not in str(w.message)))
        self._unread = {path: str(error).split(" left out: ", 1)[-1] for path, error in self.left_out.items()}
        self.warn(*map(str, self.left_out.values()))
        self._interval_tables = IntervalTables(self._nwb, self._objects, self.path, self.warn)
        session = str(self.identity["session_id"])
        self._unit_tables = UnitTables(self._objects, self.path, self._options, self.warn, self._interval_ends, session)
        self._maker = SeriesMaker(self.path, self._io._file, self.warn, self._options, self._unread)

    def _check_paths(self) -> None:
        """Refuse options for objects that are not there."""
        options = self._options
        lost = {*options.clocks, *options.scales, *options.transposed} - {each.path for each in self._objects}
        if lost:
            raise SourceError(
                f"there is no {' and no '.join(sorted(lost))} in it that holds data",
                file=self.path,
                remedy="name objects by their path in the file for clock, scale and transposed",
            )

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
        spikes = ["spikes"] if self._unit_tables.usable() else []
        return (*spikes, *(name for name in MODALITIES[1:] if self._found(name)))

    def has(self, modality: str) -> bool:
        """Return whether the file has a modality, or a series at or below a path such as ``acquisition/x``."""
        if modality == "spikes":
            return bool(self._unit_tables.at())
        return bool(self._found(modality)) or (modality == "events" and bool(self._behavioral_events))

    @cached_property
    def contents(self) -> str:
        """The modalities and series in the file, in words, for errors."""
        there = ", ".join((*self.modalities, *(found.path for found in self.unused()))) or "no time series at all"
        return "; ".join((there, *[str(why) for why in self.left_out.values()][:MOST_NAMED]))

    def has_units(self, path: str) -> bool:
        """Return whether there are tables of units at or below a path."""
        return bool(self._unit_tables.at([path]))

    @cached_property
    def units(self) -> Units:
        """The units of the tables that were asked for by path, else of those in the usual places.

        Raises:
            SourceError: a table is damaged.
        """
        asked = [name for name in self._options.modalities or () if "/" in name and self.has_units(name)]
        return self._unit_tables.read(asked)

    @property
    def unit_paths(self) -> tuple[str, ...]:
        """The tables that the units are from."""
        return self.units.paths

    def _interval_ends(self) -> list[int]:
        return [int(max(each.stops)) for each in self.intervals.values() if len(each.stops)]

    @property
    def spikes(self) -> SpikeTrains:
        """The spike trains (see `units`)."""
        return self.units.trains

    @property
    def units_table(self) -> dict[str, list[Any]]:
        """What is said of each unit (see `units`)."""
        return self.units.columns

    @property
    def spike_support(self) -> tuple[Int64, str, int]:
        """Where spikes can be, by which rule, and the number of stray spikes (see `units.support_of`)."""
        return support_of(self.spikes)

    @cached_property
    def behavior(self) -> tuple[Series, ...]:
        """The behavior series, by path."""
        return self._joined(self._found("behavior"))

    @cached_property
    def events(self) -> tuple[Series, ...]:
        """The annotations and events, by path, and, if events are asked for by name, those of behavior."""
        asked = "events" in (self._options.modalities or ())
        return self._joined([*self._found("events"), *(self._behavioral_events if asked else ())])

    @property
    def _behavioral_events(self) -> list[Found]:
        return [found for found in self._found("behavior") if isinstance(found.holder, BehavioralEvents)]

    def _joined(self, found: list[Found]) -> tuple[Series, ...]:
        made = [series for each in found for _, series in self._maker.make(each)]
        return tuple(with_distinct_columns(made))

    def fields_of(self, modality: str) -> dict[str, Series]:
        """Return the series of lfp, of ophys, or at and below a path in the file, by field (`columns.short_fields`)."""
        if modality not in self._fields_of:
            made = [pair for each in self._found(modality) for pair in self._maker.make(each)]
            self._fields_of[modality] = short_fields(modality, made)
        return self._fields_of[modality]

    def videos_of(self, modality: str) -> dict[str, Video]:
        """Return the image series, all or those at and below a path, by field (`columns.short_fields`)."""
        if modality not in self._videos_of:
            found = [each for each in self._found(modality) if each.kind == "video"]
            made = [(each.series.name, self._video(each)) for each in found]
            self._videos_of[modality] = short_fields(
                modality, [(name, each) for name, each in made if each is not None]
            )
        return self._videos_of[modality]

    def _video(self, found: Found) -> Video | None:
        timeline = self._maker.timeline(found, video_length(found.series))
        opener = self._movie if self._options.decode_video else None
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
        return read_sweeps(self._nwb, lambda path, each: self._maker.series(Found(path, None, each, "sweep")))

    @property
    def intervals(self) -> dict[str, Intervals]:
        """The tables whose rows become metadata of samples, by name (see `IntervalTables.metadata`)."""
        return self._interval_tables.metadata

    @property
    def invalid_times(self) -> Int64:
        """The intervals of the invalid_times table: int64 (n, 2), ns."""
        return self._interval_tables.invalid_times

    def align_table(self, name: str) -> Intervals | None:
        """Return a table to align windows to (see `IntervalTables.to_align`)."""
        return self._interval_tables.to_align(name)

    @property
    def to_align(self) -> list[Alignable]:
        """What windows can be aligned to beside the tables of `intervals`."""
        return self._interval_tables.others

    @property
    def alignable(self) -> tuple[str, ...]:
        """The names and paths of what windows can be aligned to."""
        return self._interval_tables.names

    def not_taken(self, modalities: Sequence[str], paths: Collection[str]) -> list[dict[str, str]]:
        """Return the objects that hold data and are not taken (see `inventory.not_taken`).

        Args:
            modalities: the modalities and paths that are converted.
            paths: the objects that became fields or metadata of samples, but for the units.
        """
        known = {each.path for each in self._objects}
        unreadable = {path: why for path, why in self._unread.items() if path.rsplit("/", 1)[0] not in known}
        units = self.units.paths if "spikes" in modalities else ()
        left_out = {
            **unreadable,
            **self._maker.left_out,
            **self._unit_tables.left_out,
            **self._interval_tables.left_out,
        }
        return not_taken(self._objects, modalities, {*paths, *units}, left_out)

    def unused(self) -> list[Found]:
        """List the objects that belong to no modality and can be taken by their path."""
        used = {each.path for name in MODALITIES[1:] for each in self._found(name)}
        usual = [each.path for each in self._unit_tables.at()]
        others = [each for each in self._objects if each.path not in used and not each.path.startswith("intervals/")]
        return [each for each in others if each.path not in usual and each.kind != "timeless"]

    def why_not(self, path: str) -> str:
        """Return why the objects of a modality or at a path cannot be fields; "" if nothing is wrong with them."""
        if path == "spikes":
            return self._unit_tables.why_not()
        found = at_path(self._objects, path) if "/" in path else self._found(path)
        reasons = {each.path: self._maker.left_out.get(each.path) or reason_of(each) for each in found}
        return "; ".join(f"{where}: {why}" for where, why in reasons.items() if why)

    @property
    def objects(self) -> list[Found]:
        """The objects of the file that hold data, by path."""
        return self._objects

    @cached_property
    def _objects(self) -> list[Found]:
        found, clocks = find_objects(self._nwb, self._path_of), self._options.clocks
        return [replace(each, clock=clocks[each.path]) if each.path in clocks else each for each in found]

    def _path_of(self, item: Any) -> str:
        return str(self._io.manager.get_builder(item).path).removeprefix("root/")

    def _found(self, modality: str) -> list[Found]:
        return of_modality(self._objects, modality)
