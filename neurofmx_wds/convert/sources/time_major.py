"""Arrays in .npz and .npy files whose first dimension is time, as a source of windows.

Sees arrays as the series of a recording; knows nothing of shards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import SourceError
from ...nwb.clock import NS_PER_S
from ...nwb.plain import PlainRecording
from ...nwb.series import Series
from ...nwb.timeline import Timeline, timeline_at_rate, timeline_of_timestamps
from ...storage.location import name_of
from .arrays import ArraySource, Rows
from .contract import SourceDescription
from .nwb import RecordingSource
from .segments import SegmentSource
from .settings import ArrayConfig
from .windows import WindowConfig


class _Frames:
    """An array seen as rows of numbers: what a `Series` asks of its data, and no more."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.shape = (rows.shape[0], math.prod(rows.shape[1:]))
        self.dtype = rows.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return np.asarray(self._rows[start:stop]).reshape(stop - start, self.shape[1])
        low = int(rows.min())
        return np.asarray(self[low : int(rows.max()) + 1][rows - low])


class ArrayRecording(PlainRecording):
    """Arrays along time, seen as a recording of nothing but series; the session is the file.

    Args:
        path: the .npz or .npy file.
        config: its `rate` or `timestamps` say when the rows are.
        kind: "npz" or "npy", which the file must be; None: either.

    Raises:
        SourceError: the file cannot be read, or has no such timestamps, or arrays that hold no numbers.
    """

    def __init__(self, path: str | os.PathLike[str], config: ArrayConfig, kind: str | None = None) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.identity = {"session_id": Path(name_of(self.path)).stem}
        asked = config.modalities and (*config.modalities, *filter(None, [config.timestamps]))
        self._source = ArraySource(path, replace(config, modalities=asked), kind)
        try:
            arrays = dict(self._source.arrays)
            timeline = self._timeline(arrays.pop(config.timestamps or "", None), config)
            self.shapes = {name: tuple(rows.shape[1:]) for name, rows in arrays.items()}
            self.series = {name: self._series_of(name, rows, timeline) for name, rows in arrays.items()}
        except BaseException:
            self._source.close()
            raise

    def _timeline(self, seconds: Rows | None, config: ArrayConfig) -> Timeline:
        n = self._source.describe().n_samples
        try:
            if config.rate is not None:
                return timeline_at_rate(n, 0.0, config.rate)
            if seconds is None or len(seconds.shape) != 1 or seconds.dtype.kind not in "iuf":
                raise ValueError("there is no array of timestamps of this name, one number for each row")
            timeline = timeline_of_timestamps(np.asarray(seconds[0:n]), n)
        except ValueError as error:
            remedy = "name the npz's array of times in seconds, or give a rate"
            raise SourceError(str(error), file=self.path, member=config.timestamps, remedy=remedy) from error
        self.warn(*(f"{config.timestamps}: {count} {what}" for what, count in timeline.notes.items()))
        return timeline

    def _series_of(self, name: str, rows: Rows, timeline: Timeline) -> Series:
        if rows.dtype.kind not in "biuf" or 0 in rows.shape or timeline.n == 0:
            problem = f"its {rows.dtype} of shape {rows.shape} at {timeline.n} usable times are no series of numbers"
            raise SourceError(problem, file=self.path, member=name, remedy="leave it out with modalities")
        columns = tuple(map(str, range(math.prod(rows.shape[1:]))))
        kind = "states" if rows.dtype.kind == "b" else "voltage"
        return Series(f"/{name}", self.path, columns, "", kind, _Frames(rows), timeline)

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def open_along_time(
    path: str | os.PathLike[str], arrays: ArrayConfig, windows: WindowConfig, kind: str | None = None
) -> TimeMajorSource | SegmentSource:
    """Open arrays whose first dimension is time as windows or as segments; the arguments are those of the former."""
    recording = ArrayRecording(path, arrays, kind)
    asked = tuple(f"/{name}" for name in arrays.modalities or () if name != arrays.timestamps)
    windows = replace(windows, modalities=asked or None)
    return SegmentSource(recording, windows) if windows.layout == "segments" else TimeMajorSource(recording, windows)


class TimeMajorSource:
    """The windows of arrays whose first dimension is time; each keeps its other dimensions.

    Floats and integers keep their own rate where it is at least two samples a bin, else they are interpolated
    (``lfp_method``); booleans hold until the next. A mask says where data is, where it may be missing.

    Args:
        recording: the arrays.
        windows: bins, windows and ways.

    Raises:
        SourceError: the file lacks what was asked for.
    """

    def __init__(self, recording: ArrayRecording, windows: WindowConfig) -> None:
        self._config = windows
        self._recording = recording
        self._windows = RecordingSource(recording, windows)

    def describe(self) -> SourceDescription:
        """Count the windows and says what is in them."""
        described = self._windows.describe()
        fields = {
            name: {**about, "shape": [about["shape"][0], *self._shape_of(name)]}
            for name, about in described.fields.items()
        }
        warnings = [*described.report["warnings"], *self._interpolated(described.report["series"])]
        return replace(described, fields=fields, report={**described.report, "warnings": warnings})

    def _interpolated(self, series: list[dict[str, Any]]) -> list[str]:
        """Describe which arrays have too few rows for the bins, so that what is in the windows is not in the file."""
        if self._config.lfp_method != "auto":
            return []
        rate = f"{float(NS_PER_S / self._config.bin_width_ns):.9g} bins/s"
        remedy = "lfp_method native, or bins of two rows or more, keep them as they are"
        return [
            f"{each['path'][1:]}: rows at {each['rate']:.9g} Hz are interpolated, in float32, for {rate} ({remedy})"
            for each in series
            if each["way"] == "linear"
        ]

    def _shape_of(self, field: str) -> tuple[int, ...]:
        shapes = self._recording.shapes
        return shapes[field] if field in shapes else shapes[field.removesuffix("_mask")]

    def read(self, start: int, stop: int) -> Iterator[tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]]:
        """Return the windows [start, stop) in order, float32 and bool.

        Raises:
            IndexError: there are no such windows.
            SourceError: the file is damaged.
        """
        for fields, metadata in self._windows.read(start, stop):
            yield {n: rows.reshape(len(rows), *self._shape_of(n)) for n, rows in fields.items()}, metadata

    def close(self) -> None:
        """Close the file."""
        self._windows.close()
