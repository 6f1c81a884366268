"""The segments of a dataset: which recording each is of, and its arrays, without copies where shards are mapped.

Knows manifests, shards and the description of recordings; knows nothing of windows, order or batches.
"""

from __future__ import annotations

import bisect
import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ManifestError
from ..format.manifest import Manifest
from ..nwb.intervals import Intervals
from ..nwb.stored import StoredRecording
from ..nwb.timeline import Timeline
from .readers import ShardReader

LAYOUT = "segments"
SPIKE_TIMES, SPIKE_UNITS = "spike_times", "spike_units"
_KEPT_BYTES = 64 << 20  # of arrays that had to be copied out of their shard


class Segments:
    """The segments of a dataset, by number.

    Args:
        reader: reads the dataset's shards.
        units: the units of each source that are chosen; None: all.

    Attributes:
        recordings: the recordings that segments are of.
        source_numbers: the number of each in the manifest.

    Raises:
        ManifestError: the dataset does not consist of segments.
    """

    def __init__(self, reader: ShardReader, units: Sequence[Sequence[int]] | None = None) -> None:
        self._reader = reader
        self._units = units
        manifest = reader.shards.manifest
        self._packed = manifest is not None and manifest.config.get("field_format") == "npy.gz"
        self.source_numbers: list[int] = []
        self._kept: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()
        self.recordings = list(self._described(reader.shards.manifest))

    def _described(self, manifest: Manifest | None) -> Iterator[SegmentedRecording]:
        if manifest is None or manifest.config.get("layout") != LAYOUT:
            raise ManifestError(
                "the dataset holds windows that were cut when it was made, not segments",
                file=self._reader.where,
                remedy="leave out windows=, or convert the recordings with layout segments",
            )
        first = 0
        for i, source in enumerate(manifest.sources):
            if "stored" in source:
                recording = SegmentedRecording(self, first, source, None if self._units is None else self._units[i])
                self.source_numbers.append(i)
                first += recording.n_segments
                yield recording
        if first != self._reader.shards.n_samples:
            problem = f"the manifest describes {first} segments, the shards hold {self._reader.shards.n_samples}"
            raise ManifestError(problem, file=self._reader.where, remedy="convert the recordings again")

    def array(self, segment: int, field: str) -> np.ndarray:
        """Return one array of a segment, read-only; compared with its checksum when it is read first.

        Raises:
            ShardError: the shard is missing or damaged.
        """
        if self._reader.mapped and not self._packed:
            return self._reader.array(segment, field)
        kept = self._kept.pop((segment, field), None)
        found = self._reader.array(segment, field) if kept is None else kept
        self._kept[segment, field] = found  # the last to leave
        if kept is None:
            self._drop_oldest()
        return found

    def _drop_oldest(self) -> None:
        """Keep no more bytes than allowed. They are counted anew: several threads may add the same array."""
        excess = sum(array.nbytes for array in list(self._kept.values())) - _KEPT_BYTES
        with contextlib.suppress(KeyError):  # another thread has dropped the rest
            while excess > 0 and len(self._kept) > 1:
                excess -= self._kept.popitem(last=False)[1].nbytes

    def spikes(self, segment: int) -> tuple[np.ndarray, np.ndarray]:
        """Return times and units of the spikes of a segment, as `array` does."""
        if self._reader.mapped:
            shard, row = self._reader.place(segment)
            return shard.array(SPIKE_TIMES, row), shard.array(SPIKE_UNITS, row)
        return self.array(segment, SPIKE_TIMES), self.array(segment, SPIKE_UNITS)

    def metadata(self, segment: int) -> dict[str, Any]:
        """Return the metadata of a segment."""
        return self._reader.metadata(segment)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}


class SegmentedRecording:
    """One recording and its segments.

    Args:
        segments: the dataset's.
        first: number of its first segment in the dataset.
        source: its entry in the manifest.
        units: those that are chosen; None: all.

    Attributes:
        about: the recording, without its samples.
        segment_ns: length of a segment.
        n_segments: how many it has.
        heads: its interval tables, without their rows.
        unit_numbers: where units are chosen, the number of each stored unit among them, -1 for the others: int32
            (n_units,); else None.
    """

    def __init__(
        self, segments: Segments, first: int, source: Mapping[str, Any], units: Sequence[int] | None = None
    ) -> None:
        stored = source["stored"]
        identity = {name: source[name] for name in ("session_id", "identifier", "subject") if name in source}
        self.about = StoredRecording(source["path"], identity, stored, self._all_rows, self._rows_to_align)
        self._alignable = {each["path"]: each for each in stored.get("alignable", ())}
        self.unit_numbers: np.ndarray | None = None
        if units is not None:
            self.unit_numbers = np.full(len(self.about.spikes.ids), -1, np.int32)
            self.unit_numbers[list(units)] = np.arange(len(units), dtype=np.int32)
            self.about.take_units(units)
        self.segment_ns = int(stored["segment_ns"])
        self.heads = _tables(self.about.columns, [])
        self._segments = segments
        self._first = first
        runs = np.array(stored["segments"], np.int64).reshape(-1, 2)  # (place in time, how many follow one another)
        self._run_places = runs[:, 0].tolist()
        self._run_firsts = np.concatenate([[0], np.cumsum(runs[:, 1])]).tolist()
        self.n_segments = int(self._run_firsts[-1])
        self._one_run = len(self._run_places) == 1
        self._ranges: dict[tuple[str, int], tuple[int, int]] = {}
        self._rows: dict[int, dict[str, Intervals]] = {}

    def number(self, place: int) -> int | None:
        """Return the dataset's segment that covers ``[place, place + 1) · segment_ns``; None where there is none."""
        if self._one_run:
            within = place - self._run_places[0]
            return self._first + within if 0 <= within < self.n_segments else None
        run = bisect.bisect_right(self._run_places, place) - 1
        if run < 0:
            return None
        within = self._run_firsts[run] + place - self._run_places[run]
        return self._first + within if within < self._run_firsts[run + 1] else None

    def numbers(self, start: int, stop: int) -> list[int]:
        """Return the dataset's segments that overlap ``[start, stop)``, ns."""
        places = range(start // self.segment_ns, -(-stop // self.segment_ns))
        return [number for place in places if (number := self.number(place)) is not None]

    def array(self, place: int, field: str) -> np.ndarray | None:
        """Return one array of the segment at a place in time; None where there is no segment."""
        number = self.number(place)
        return None if number is None else self._segments.array(number, field)

    def spikes(self, place: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return times and units of the spikes of the segment at a place in time; None where there is no segment."""
        number = self.number(place)
        return None if number is None else self._segments.spikes(number)

    def samples(self, field: str, timeline: Timeline, place: int) -> tuple[int, int]:
        """Return the range of the samples of a series with a rate that the segment at a place holds."""
        found = self._ranges.get((field, place))
        if found is None:
            start = place * self.segment_ns
            found = self._ranges[field, place] = timeline.search(start), timeline.search(start + self.segment_ns)
        return found

    def before(self, place: int) -> int | None:
        """Return the last place before this one that has a segment."""
        run = bisect.bisect_left(self._run_places, place) - 1
        if run < 0:
            return None
        length = self._run_firsts[run + 1] - self._run_firsts[run]
        return min(place - 1, self._run_places[run] + length - 1)

    def after(self, place: int) -> int | None:
        """Return the first place after this one that has a segment."""
        if self.number(place + 1) is not None:
            return place + 1
        run = bisect.bisect_right(self._run_places, place)
        return self._run_places[run] if run < len(self._run_places) else None

    def _holder(self, place: int) -> int:
        """Return the dataset's segment that has the rows of tables at a place in time."""
        run = bisect.bisect_right(self._run_places, place) - 1
        if run < 0:
            return self._first
        within = self._run_firsts[run] + place - self._run_places[run]
        return self._first + min(within, self._run_firsts[run + 1] - 1)

    def tables(self, time: int) -> dict[str, Intervals]:
        """Return the rows of interval tables that overlap the segment at a time (ns)."""
        number = self._holder(time // self.segment_ns)
        found = self._rows.get(number)
        if found is None:
            found = _tables(self.about.columns, [self._segments.metadata(number)])
            if len(self._rows) > 4096:
                self._rows.clear()
            self._rows[number] = found
        return found

    def _all_rows(self) -> dict[str, Intervals]:
        every = _tables(self.about.columns, self._all_metadata())
        paths = self.about.table_paths
        return {name: replace(table, paths=tuple(paths.get(name, ()))) for name, table in every.items()}

    def _rows_to_align(self, path: str) -> Intervals:
        """Return all rows of something that windows can be aligned to, by its path."""
        about = self._alignable[path]
        known = next((name for name, paths in self.about.table_paths.items() if path in paths), None)
        if known is not None:
            return self.about.intervals[known]
        rows = [row for each in self._all_metadata() for row in each.get("alignable", {}).get(path, ())]
        event = "timestamp" if about["events"] else "start_time"
        table = _intervals(about["name"], about["columns"], [[row[0], None, None, *row[1:]] for row in rows])
        return replace(table, event=event, paths=(path,))

    def _all_metadata(self) -> Iterator[dict[str, Any]]:
        return (self._segments.metadata(number) for number in range(self._first, self._first + self.n_segments))


def _tables(columns: Mapping[str, list[str]], metadata: Iterable[Mapping[str, Any]]) -> dict[str, Intervals]:
    """Return the rows of each table that stand in the metadata of some segments, each row once."""
    rows: dict[str, dict[int, Any]] = {name: {} for name in columns}
    for about in metadata:
        for name, overlapping in about.get("intervals", {}).items():
            rows[name].update((row[0], row) for row in overlapping)
    return {name: _intervals(name, columns[name], list(found.values())) for name, found in rows.items()}


def _intervals(name: str, columns: list[str], rows: list[list[Any]]) -> Intervals:
    """Return a table of (row, start, stop, *cells); rows whose start is None are no intervals, but have cells."""
    number, start, stop = (np.array([row[k] for row in rows if row[1] is not None], np.int64) for k in range(3))
    by_start = np.argsort(start, kind="stable")
    cells: dict[str, list[Any]] = {each: [None] * (1 + max((row[0] for row in rows), default=-1)) for each in columns}
    for row in rows:
        for each, cell in zip(columns, row[3:], strict=True):
            cells[each][row[0]] = cell
    return Intervals(name, number[by_start], start[by_start], stop[by_start], cells)
