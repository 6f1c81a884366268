"""Window ids → batches of windows, cut from the segments of a dataset.

Knows where windows can be and how they are cut; knows nothing of epochs' order or ranks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import NeurofmxError
from ..format.encoding import encode_json
from ..nwb.clock import NS_PER_S, Grid
from ..order.jitter import jitter
from .collate import MetadataList, stack, to_array
from .cutting import Column, CutRecording, Cutter, Events
from .memory import BatchMemory, Memory
from .partition import Partition
from .readers import ShardReader
from .segments import Segments
from .selection import Select
from .sessions import NO_SESSIONS, Sessions
from .splitting import recordings_of_part
from .stretches import Stretches
from .windows import Windows

_PAD_TO = 8  # ragged spikes are padded to a multiple of this


class WindowReader:
    """Reads windows and batches of windows by window id, their number over all recordings of a dataset.

    Args:
        reader: reads the shards of a dataset of segments.
        windows: how windows are cut.
        select: which of them, by their metadata; None: all.
        sessions: the recordings that the manifest lists, and which units of each are chosen.
        partition: which part of the dataset is read; None: all of it.

    Attributes:
        counts: int64 (n_stretches,): windows in each stretch in which windows may be, in the dataset's order.
        sample_bytes: bytes of a window.

    Raises:
        ManifestError: the dataset does not consist of segments.
        NeurofmxError: a recording lacks what was asked for.
        ValueError: no window fits the selection.
    """

    def __init__(
        self,
        reader: ShardReader,
        windows: Windows,
        select: Select | None = None,
        sessions: Sessions = NO_SESSIONS,
        partition: Partition | None = None,
    ) -> None:
        self._reader = reader
        self.windows = windows
        segments = Segments(reader, sessions.units)
        self._source_numbers = np.array(segments.source_numbers, np.int64)
        self.recordings = [CutRecording(each, windows) for each in segments.recordings]
        if partition is not None:
            sources = [sessions.sources[i] for i in segments.source_numbers]
            self.recordings = recordings_of_part(self.recordings, sources, windows, partition)
        self._stretches = Stretches.of(self.recordings, select)
        self._selected = select is not None
        self.counts = self._stretches.counts
        if not self.counts.sum():
            seconds = float(windows.sequence_length * windows.bin_width_ns) / NS_PER_S
            problem = f"no window of {seconds:.9g} s fits in any of its {len(self.recordings)} recordings"
            remedy = "choose shorter windows, or other intervals to keep them within"
            raise NeurofmxError(problem, file=reader.where, remedy=remedy)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        known: dict[Any, Any] = {}
        for each in self.recordings:  # one object for all that are equal
            each.signature = known.setdefault(each.signature, each.signature)
        self._memory = BatchMemory()
        self._jitter: tuple[int, int] | None = None
        self._stride, self._length = windows.stride, windows.sequence_length
        self.fields = sorted({name for each in self.recordings for name in self._names(each)})

    def _names(self, recording: CutRecording) -> list[str]:
        names = list(recording.describe_fields())
        if self.windows.spikes == "ragged" and "spike_times" in names:
            names.append("spike_mask")
        elif self.windows.spikes == "events" and "spike_times" in names:
            names.append("spike_offsets")
        return names

    def of_epoch(self, seed: int, epoch: int) -> WindowReader:
        """Return the same with the jitter of an epoch."""
        if not self.windows.jitter:
            return self
        twin = object.__new__(WindowReader)
        twin.__dict__.update(self.__dict__, _jitter=(seed, epoch))
        return twin

    def expect_share(self, share: float) -> None:
        """Prepare for reading this share of the windows in this process: of the same share of the segments."""
        self._reader.expect_share(share)

    @property
    def prefetch_bytes(self) -> int:
        """How much is requested before it is needed."""
        return getattr(self._reader, "prefetch_bytes", 0)

    def expect(self, ids: np.ndarray, _: object = None) -> None:
        """Begin to fetch the segments in which the windows with these ids lie, and return at once."""
        places = self._places(ids)
        starts, stops = Grid(self.windows.bin_width_ns).starts_of(places.firsts), places.firsts + self._length
        starts = starts[0] + places.origins
        stops = Grid(self.windows.bin_width_ns).starts_of(stops)[0] + places.origins
        spans = zip(places.recordings, starts.tolist(), stops.tolist(), strict=True)
        numbers = {n for recording, start, stop in spans for n in recording.segmented.numbers(start, stop)}
        self._reader.expect(np.array(sorted(numbers), np.int64))  # type: ignore[attr-defined]

    @property
    def chosen(self) -> bytes:
        """Which windows of the dataset these are, and how far jitter may move them, as bytes."""
        found = self._stretches
        return np.stack([found.recording, found.origin, found.first, found.counts, found.latest]).tobytes()

    @property
    def where(self) -> str:
        """The directory of the shards."""
        return self._reader.where

    @property
    def sample_bytes(self) -> int:
        """About how many bytes a window takes in a batch."""
        shapes = [about for each in self.recordings[:1] for about in each.describe_fields().values()]
        sizes = [np.dtype(a["dtype"]).itemsize * int(np.prod([n or 64 for n in a["shape"]])) for a in shapes]
        return max(1, sum(sizes))

    @property
    def open_bytes(self) -> int:
        """Bytes of memory that open shards take, roughly."""
        return self._reader.open_bytes

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return the windows' numbers among all of the dataset, for their keys and the random numbers of transforms."""
        stretch = self._stretch_of(ids)
        return np.asarray(self._stretches.number[stretch] + ids - self._starts[stretch])

    def sources(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each window's source in the manifest, int64 (B,)."""
        return np.asarray(self._source_numbers[self._stretches.recording[self._stretch_of(ids)]])

    def _stretch_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, ids, side="right") - 1

    def file(self, sample_id: int) -> None:
        """Return None: a window may be cut from several shards."""

    def name(self, sample_id: int) -> tuple[Path | None, str]:
        """Return the recording and the key of a window, to name it in an error."""
        ids = np.array([sample_id])
        recording = self.recordings[int(self._stretches.recording[self._stretch_of(ids)[0]])]
        return Path(recording.recording.path), self._keys(ids)[0]

    def _keys(self, ids: np.ndarray) -> list[str]:
        return [f"sample_{number:09d}" for number in self.dataset_ids(ids).tolist()]

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> dict[str, Any]:
        """Cut the windows with these ids into one batch.

        Args:
            ids: window ids, shape (B,), int64.
            memory: where its tensors are made.

        Returns:
            field → tensor of shape (B, …), or list where windows differ; ``metadata``;
            and ``__key__``.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        return self._read(self._places(ids), self._keys(ids), memory or self._memory)

    @property
    def kind(self) -> tuple[str, str]:
        """What readers must have in common to read one batch together."""
        settings = {**self.windows.to_json(), "within": None, "jitter": None, "modalities": None}
        return "windows", json.dumps(settings, sort_keys=True)

    def with_fields(self, fields: Sequence[str]) -> WindowReader:
        """Return a reader of the same windows all batches of which have these fields."""
        twin = copy.copy(self)
        twin.fields = list(fields)
        return twin

    @staticmethod
    def read_together(
        parts: Sequence[tuple[WindowReader, np.ndarray]], order: np.ndarray, memory: Memory | None = None
    ) -> dict[str, Any]:
        """Cut one batch by several readers of one kind.

        Args:
            parts: readers and the ids of their windows.
            order: int64 (B,): the windows of the parts, one part after the other, in the order of the batch.
            memory: where its tensors are made.

        Returns:
            As :meth:`read_batch`.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        first = parts[0][0]
        rows = order.tolist()
        keys = [key for reader, ids in parts for key in reader._keys(ids)]
        places = Places.joined([reader._places(ids) for reader, ids in parts]).take(rows)
        return first._read(places, [keys[row] for row in rows], memory or first._memory)

    def _read(self, places: Places, keys: list[str], memory: Memory) -> dict[str, Any]:
        batch = self._columns(places, memory)
        spikes = batch.pop("spike_times", None)
        if isinstance(spikes, Events):
            batch |= spikes.padded(_PAD_TO) if self.windows.spikes == "ragged" else spikes.flat()
        batch = {name: batch.get(name, [None] * len(keys)) for name in self.fields}
        batch["metadata"] = WindowMetadata(places)
        batch["__key__"] = keys
        return batch

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Cut the windows with these ids, each a dictionary of writable arrays, ``metadata`` and ``__key__``.

        Spikes that are not dense are ``spike_times`` (n_spikes,) int64 and ``spike_units`` (n_spikes,) int32.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        places = self._places(ids)
        columns = self._columns(places, self._memory)
        spikes = columns.pop("spike_times", None)
        arrays = {name: to_array(c) if isinstance(c, torch.Tensor) else c for name, c in columns.items()}
        samples = [{name: column[row] for name, column in arrays.items()} for row in range(len(ids))]
        samples = [{name: value for name, value in each.items() if value is not None} for each in samples]
        if isinstance(spikes, Events):
            for sample, (times, units) in zip(samples, spikes.each(), strict=True):
                sample |= {"spike_times": times, "spike_units": units}
        metadata, keys = WindowMetadata(places), self._keys(ids)
        for row, sample in enumerate(samples):
            for name, value in sample.items():
                if isinstance(value, torch.Tensor):
                    sample[name] = to_array(value)
            sample |= {"metadata": metadata[row], "__key__": keys[row]}
        return samples

    def _places(self, ids: np.ndarray) -> Places:
        """Return where the windows with these ids are, moved by the epoch's jitter."""
        found = self._stretches
        stretch = self._stretch_of(ids)
        within = ids - self._starts[stretch]
        origins, firsts = found.origin[stretch], found.first[stretch] + within * self._stride
        if self._jitter is not None:
            width = self.windows.bin_width_ns
            room = found.stop[stretch] - firsts - self._length
            bins = np.minimum(room, self._stride)  # a whole stride, but not beyond the stretch
            below = bins * width.numerator // width.denominator + (bins == room)
            if self._selected:  # the rows of tables that were asked for still run when the moved window starts
                starts = Grid(width).starts_of(firsts)[0] + origins
                below = np.minimum(below, found.latest[stretch] - starts + 1)
            origins = origins + jitter(*self._jitter, self.dataset_ids(ids), np.maximum(below, 1))
        recordings = [self.recordings[i] for i in found.recording[stretch].tolist()]
        return Places(recordings, origins, firsts, found.before[stretch] + within)

    def _columns(self, places: Places, memory: Memory) -> dict[str, Column]:
        """Return the fields of windows; of recordings that are not alike they are cut apart and put together."""
        first = places.recordings[0]
        if all(each is first or each.signature is first.signature for each in places.recordings):
            return Cutter(places.recordings, places.origins, places.firsts, memory).columns()
        groups: dict[Any, list[int]] = {}
        for row, recording in enumerate(places.recordings):
            groups.setdefault(recording.signature, []).append(row)
        if len(groups) == 1:
            return Cutter(places.recordings, places.origins, places.firsts, memory).columns()
        found = [(rows, self._columns(places.take(rows), BatchMemory())) for rows in groups.values()]
        columns: dict[str, Column] = {}
        for name in dict.fromkeys(name for _, cut in found for name in cut):
            values: list[Any] = [None] * len(places.recordings)
            for rows, cut in found:
                column = cut.get(name, [None] * len(rows))
                for row, value in zip(rows, column.each() if isinstance(column, Events) else column, strict=True):
                    values[row] = value
            columns[name] = Events.of(values) if name == "spike_times" else stack(values)
        return columns


@dataclass(frozen=True)
class Places:
    """Where some windows are.

    Attributes:
        recordings: the recording of each.
        origins: int64 (n,), where bin 0 of each window's grid is, ns.
        firsts: int64 (n,), the first bin of each on that grid.
        indices: int64 (n,), the number of each in its recording.
    """

    recordings: list[CutRecording]
    origins: np.ndarray
    firsts: np.ndarray
    indices: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """Return the windows of several, one after the other."""
        recordings = [recording for each in parts for recording in each.recordings]
        arrays = (np.concatenate([getattr(each, name) for each in parts]) for name in ("origins", "firsts", "indices"))
        return cls(recordings, *arrays)

    def take(self, rows: list[int]) -> Places:
        """Return some of them."""
        return Places([self.recordings[i] for i in rows], self.origins[rows], self.firsts[rows], self.indices[rows])

    def metadata(self, row: int) -> dict[str, Any]:
        """Return the metadata of one of the windows."""
        recording = self.recordings[row]
        grid = Grid(recording.grid.width, int(self.origins[row]))
        first = int(self.firsts[row])
        running = dict(recording.segmented.tables(grid.start_of(first)))
        if recording.aligned_table is not None:
            running[recording.aligned_table.name] = recording.aligned_table
        return recording.metadata(recording.recording.path, int(self.indices[row]), grid, first, running)


class WindowMetadata(MetadataList):
    """The metadata of a batch of windows, each made when it is first asked for."""

    __slots__ = ("_places",)

    def __init__(self, places: Places) -> None:
        super().__init__([b""] * len(places.recordings))
        self._places = places

    def _decoded(self, index: int) -> dict[str, Any]:
        return self._places.metadata(index)

    def __reduce__(self) -> tuple[type[MetadataList], tuple[list[bytes]]]:
        return MetadataList, ([encode_json(each) for each in self],)
