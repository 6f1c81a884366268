"""A recording whose samples lie elsewhere, such as in the segments of a dataset: its description as JSON values.

:func:`describe` says of an open recording all that is needed to know where windows can be and what they hold;
:class:`StoredRecording` reads that back and stands for the recording. Knows nothing of where the samples are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from .alignable import Alignable, Events, events_table, table_to_align
from .clock import Int64, no_intervals
from .intervals import Intervals
from .series import Series
from .timeline import Run, Timeline
from .units import SpikeTrains, support_of
from .video import Video


@dataclass(frozen=True)
class StoredTimeline(Timeline):
    """A timeline without the times of its samples.

    Attributes:
        pieces: int64 (n, 2), ns, the first and the last time of each stretch without a gap, of an irregular series.
        field: the array with the times of its samples; "" with a rate.
    """

    pieces: Int64 | None = None
    field: str = ""

    def _pieces(self) -> tuple[Int64, Int64]:
        return super()._pieces() if self.pieces is None else (self.pieces[:, 0], self.pieces[:, 1])


class Source(Protocol):
    """What is described: a recording that is open."""

    path: str

    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def spikes(self) -> SpikeTrains: ...
    @property
    def invalid_times(self) -> Int64: ...
    @property
    def intervals(self) -> dict[str, Intervals]: ...
    @property
    def to_align(self) -> Sequence[Alignable]: ...
    def warn(self, *lines: str) -> None: ...


@dataclass(frozen=True)
class Held:
    """One series or video of a recording, and what it is called.

    Attributes:
        modality: what it was asked for as; short: its name there.
        field: its name in the segments.
        source: the series or video.
        times: the array with the times of its samples, which others with the same times share; "" with a rate.
        shape: the shape of a row, if that is not (columns,).
    """

    modality: str
    short: str
    field: str
    source: Series | Video
    times: str = ""
    shape: tuple[int, ...] | None = None


def describe(recording: Source, modalities: Iterable[str], held: Iterable[Held], max_gap: float) -> dict[str, Any]:
    """Return the description of a recording as JSON values.

    Args:
        recording: the recording.
        modalities: what is taken of it.
        held: its series and videos that are taken.
        max_gap: ns; gaps up to this long are not remembered of irregular series.
    """
    names = tuple(modalities)
    return {
        "modalities": list(names),
        "spikes": _spikes_to_json(recording.spikes) if "spikes" in names else None,
        "series": [_series_to_json(each, max_gap) for each in held if isinstance(each.source, Series)],
        "videos": [_video_to_json(each, max_gap) for each in held if isinstance(each.source, Video)],
        "invalid_times": recording.invalid_times.tolist(),
        "tables": {table.name: list(table.cells) for table in recording.intervals.values()},
        "table_paths": {table.name: list(table.paths) for table in recording.intervals.values()},
        "alignable": [_alignable_to_json(each, rows) for each, rows in alignable_rows(recording)],
    }


def alignable_rows(recording: Source) -> Iterator[tuple[Alignable, Events | Intervals]]:
    """Yield all that windows can be aligned to beside the tables of intervals, with its rows.

    What cannot be read is left out, with a warning of the recording.
    """
    known = {path: table for table in recording.intervals.values() for path in table.paths}
    for each in recording.to_align:
        try:
            yield each, known.get(each.path) or each.read()
        except Exception as error:
            recording.warn(f"{each.path}: windows cannot be aligned to it, it cannot be read: {error}")


def _alignable_to_json(each: Alignable, rows: Events | Intervals) -> dict[str, Any]:
    events = {"name": rows.name, "labelled": rows.labels is not None} if isinstance(rows, Events) else None
    return {
        "path": each.path, "name": each.name, "links": list(each.links), "place": each.place,
        "holder": each.holder, "together": each.together, "events": events, "columns": list(table_of(rows).cells),
    }  # fmt: skip


def table_of(rows: Events | Intervals) -> Intervals:
    """Return rows to align to as a table."""
    return rows if isinstance(rows, Intervals) else events_table([rows])


def _events_of(path: str, about: Mapping[str, Any] | None, table: Intervals) -> Events | Intervals:
    """Return the rows that were stored as a table as what they were made of."""
    if about is None:
        return table
    cells = dict(table.cells)
    seconds = [np.nan if time is None else time for time in cells.pop("timestamp")]
    labels = cells.pop("label") if about["labelled"] else None
    return Events(path, about["name"], np.array(seconds, np.float64), labels, cells)


def _spikes_to_json(trains: SpikeTrains) -> dict[str, Any]:
    support, rule, stray = support_of(trains)  # of all units, also those that were not chosen
    own = None if trains.unit_intervals is None else [each.tolist() for each in trains.unit_intervals]
    observed = trains.obs_intervals is not None
    return {
        "ids": list(trains.ids), "support": support.tolist(), "rule": rule, "stray": stray,
        "observed": observed, "unit_intervals": own,
    }  # fmt: skip


def _series_to_json(held: Held, max_gap: float) -> dict[str, Any]:
    series: Any = held.source
    shape = {} if held.shape is None else {"shape": list(held.shape)}
    return {
        "modality": held.modality, "short": held.short, "field": held.field,
        "path": series.path, "columns": list(series.columns), "unit": series.unit, "kind": series.kind,
        "scale": np.asarray(series.scale).tolist(), "offset": series.offset, "turn": series.turn,
        "lowest": series.lowest, "timeline": _timeline_to_json(held, max_gap), **shape,
    }  # fmt: skip


def _video_to_json(held: Held, max_gap: float) -> dict[str, Any]:
    video: Any = held.source
    shape = None if video.data is None else [video.data.dtype.name, *video.data.shape[1:]]
    return {
        "modality": held.modality, "short": held.short, "field": held.field,
        "path": video.path, "unit": video.unit, "endless": video.endless, "frames": shape, "files": list(video.files),
        "first_frames": video.first_frames.tolist(), "timeline": _timeline_to_json(held, max_gap),
    }  # fmt: skip


def _timeline_to_json(held: Held, max_gap: float) -> dict[str, Any]:
    timeline = held.source.timeline
    about: dict[str, Any] = {"n": timeline.n, "period": timeline.period}
    if timeline.rate is None:
        firsts, lasts = timeline.pieces_at(max_gap)
        pieces = np.stack([firsts, lasts], axis=1).tolist()
        return {**about, "pieces": pieces, "shortest_gap": max_gap, "field": held.times}
    return {**about, "rate": str(timeline.rate), "runs": [[run.first, run.n, run.start] for run in timeline.runs]}


def _timeline_of(about: Mapping[str, Any], field: str) -> StoredTimeline:
    n, period = int(about["n"]), float(about["period"])
    if "rate" in about:
        runs = tuple(Run(*map(int, run)) for run in about["runs"])
        return StoredTimeline(n, period, Fraction(about["rate"]), runs, None, None)
    pieces, times = np.array(about["pieces"], np.int64).reshape(-1, 2), about.get("field", f"{field}_times")
    return StoredTimeline(n, period, None, (), None, None, pieces=pieces, field=times)


class StoredRecording:
    """A recording by its description; of its series there are the timelines, of its units the ids, but no samples.

    Args:
        path: what the recording is called.
        identity: session_id and the like.
        about: what :func:`describe` returned.
        tables: reads all rows of its interval tables; called when they are first needed.
        rows: reads all rows of something else that windows can be aligned to, by its path.
    """

    def __init__(
        self,
        path: str,
        identity: Mapping[str, Any],
        about: Mapping[str, Any],
        tables: Callable[[], dict[str, Intervals]],
        rows: Callable[[str], Intervals],
    ) -> None:
        self.path = path
        self.identity = dict(identity)
        self.modalities: tuple[str, ...] = tuple(about["modalities"])
        self.invalid_times = np.array(about["invalid_times"], np.int64).reshape(-1, 2)
        self.columns: dict[str, list[str]] = dict(about["tables"])
        self.table_paths: dict[str, list[str]] = dict(about.get("table_paths", {}))
        self.warnings: list[str] = []
        self.units_table: dict[str, list[Any]] = {}
        self._spikes = about["spikes"]
        self._read_tables = tables
        self._to_align = [self._alignable(each, rows) for each in about.get("alignable", ())]
        timelines = [each["timeline"] for each in (*about["series"], *about["videos"])]
        self.shortest_gap = max((float(each.get("shortest_gap", 0)) for each in timelines), default=0.0)
        self.held = [*(_held(each, self._series(each)) for each in about["series"])]
        self.held += [_held(each, self._video(each)) for each in about["videos"]]

    def _series(self, about: Mapping[str, Any]) -> Series:
        timeline = _timeline_of(about["timeline"], about["field"])
        return Series(
            about["path"], self.path, tuple(about["columns"]), about["unit"], about["kind"], None,
            timeline, np.array(about["scale"], np.float64), float(about["offset"]),
            about["turn"], _lowest_of(about["lowest"]),
        )  # fmt: skip

    def _video(self, about: Mapping[str, Any]) -> Video:
        frames: Any = None
        if about["frames"] is not None:
            dtype, *shape = about["frames"]
            frames = np.empty((0, *shape), dtype)
        timeline = _timeline_of(about["timeline"], about["field"])
        return Video(
            about["path"], self.path, about["unit"], timeline, bool(about["endless"]), frames,
            tuple(about["files"]), np.array(about["first_frames"], np.int64),
        )  # fmt: skip

    def has(self, modality: str) -> bool:
        """Return whether a modality was stored, or a series at or below a path."""
        return modality in self.modalities or bool(self._of(modality))

    @property
    def contents(self) -> str:
        """What was stored, in words, for errors."""
        return ", ".join((*self.modalities, *(each.source.path for each in self.held)))

    @cached_property
    def spikes(self) -> SpikeTrains:
        """The units, without their spikes."""
        about = self._spikes or {"ids": [], "unit_intervals": None, "observed": False}
        own = about["unit_intervals"]
        return SpikeTrains(
            times=np.empty(0, np.int64), units=np.empty(0, np.int32), ids=tuple(about["ids"]), invalid={},
            unsorted_units=(), obs_intervals=no_intervals() if about["observed"] else None, bad_obs_intervals=0,
            unit_intervals=None if own is None else tuple(np.array(each, np.int64).reshape(-1, 2) for each in own),
            support=self.spike_support if self._spikes else None,
        )  # fmt: skip

    def take_units(self, rows: Sequence[int]) -> None:
        """Keep only some of the units; where spikes can be stays as it is with all."""
        self.spikes = self.spikes.take(rows)

    @property
    def spike_support(self) -> tuple[Int64, str, int]:
        """As :func:`~neurofmx_wds.nwb.units.support_of`."""
        about = self._spikes
        return np.array(about["support"], np.int64).reshape(-1, 2), about["rule"], about["stray"]

    @cached_property
    def behavior(self) -> tuple[Series, ...]:
        """The behavior series, by path."""
        return tuple(
            each.source for each in self.held if each.modality == "behavior" and isinstance(each.source, Series)
        )

    @cached_property
    def events(self) -> tuple[Series, ...]:
        """The events, by path."""
        return tuple(self._series_of("events"))

    def _series_of(self, modality: str) -> Iterator[Series]:
        return (e.source for e in self.held if e.modality == modality and isinstance(e.source, Series))

    def fields_of(self, modality: str) -> dict[str, Series]:
        """Return the series of a modality, or at and below a path, by their short names."""
        return {each.short: each.source for each in self._of(modality) if isinstance(each.source, Series)}

    def videos_of(self, modality: str) -> dict[str, Video]:
        """Return the videos of a modality, or at and below a path, by their short names."""
        return {each.short: each.source for each in self._of(modality) if isinstance(each.source, Video)}

    def _of(self, modality: str) -> list[Held]:
        exact = [each for each in self.held if each.modality in (modality, f"/{modality}")]  # an array has a slash
        return exact or [each for each in self.held if f"{each.source.path}/".startswith(f"{modality}/")]

    @cached_property
    def intervals(self) -> dict[str, Intervals]:
        """All rows of the interval tables, by name."""
        return self._read_tables() if self.columns else {}

    def has_units(self, path: str) -> bool:
        """Return False: units are stored as spikes, whatever table they are from."""
        return False

    def _alignable(self, about: Mapping[str, Any], rows: Callable[[str], Intervals]) -> Alignable:
        path = about["path"]
        return Alignable(
            path, about["name"], lambda: _events_of(path, about["events"], rows(path)), tuple(about["links"]),
            about["place"], about["holder"], bool(about["together"]),
        )  # fmt: skip

    @property
    def alignable(self) -> tuple[str, ...]:
        """The names of the interval tables, and the paths of all else that windows can be aligned to."""
        known = {path for paths in self.table_paths.values() for path in paths}
        return (*self.columns, *(each.path for each in self._to_align if each.path not in known))

    def align_table(self, name: str) -> Intervals | None:
        """Return a table to align windows to, by its name or path; None if there is none of this name."""
        return table_to_align(name, self.intervals, self._to_align, self.path)

    def why_not(self, path: str) -> str:
        """Return "": what was not stored is not known."""
        return ""

    def unused(self) -> list[Any]:
        """List nothing: what was not stored is not known."""
        return []

    def warn(self, *lines: str) -> None:
        """Add lines about what is doubtful to the warnings, each once."""
        self.warnings += [line for line in dict.fromkeys(lines) if line not in self.warnings]


def _lowest_of(about: Any) -> float | tuple[float, ...]:
    return tuple(map(float, about)) if isinstance(about, list) else float(about)


def _held(about: Mapping[str, Any], source: Series | Video) -> Held:
    shape = tuple(about["shape"]) if "shape" in about else None
    timeline = source.timeline
    times = timeline.field if isinstance(timeline, StoredTimeline) else ""
    return Held(about["modality"], about["short"], about["field"], source, times, shape)
