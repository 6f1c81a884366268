"""Pictures of the samples of a dataset, or of a file that gives samples: each field as what it is.

Knows samples, what the manifest says of their fields, and panels; knows nothing of how they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from ..errors import NeurofmxError
from ..format.pixels import decode_image
from ..nwb.clock import NS_PER_S
from .figure import Picture
from .panels import MOST_FRAMES, Coverage, Floats, Frames, Marks, Matrix, Panel, Raster, Traces, evenly
from .recordings import populations

Sample = Mapping[str, Any]
#: More columns than this are drawn one below the other.
_MOST_TOGETHER = 3
_OTHERS = ("metadata", "__key__", "__mask__")


@dataclass(frozen=True)
class About:
    """What is known of a dataset's samples besides them.

    Attributes:
        fields: field → its dtype, unit, columns and the like, as the manifest has it.
        sources: the manifest's entries of the recordings.
    """

    fields: Mapping[str, Mapping[str, Any]]
    sources: Sequence[Mapping[str, Any]] = ()

    def source_of(self, sample: Sample) -> Mapping[str, Any]:
        """Return the entry of the recording that a sample is from; {} if there is none."""
        name = sample.get("metadata", {}).get("source")
        return next((each for each in self.sources if each.get("path") == name), {})


class SamplePictures(Sequence[Picture]):
    """Pictures of samples, made when they are asked for.

    Args:
        read: returns the sample of a number.
        n: how many samples there are.
        about: what is known of them.
    """

    def __init__(self, read: Callable[[int], Sample], n: int, about: About) -> None:
        self._read, self._n, self._about = read, n, about

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < self._n:
            raise IndexError(f"sample {index} of {self._n}")
        return picture_of(self._read(index), self._about)


def picture_of(sample: Sample, about: About) -> Picture:
    """Return the picture of one sample.

    Args:
        sample: its fields, ``metadata`` and ``__key__``.
        about: what is known of it.

    Example:
        >>> sample = {"__key__": "a", "metadata": {}, "rates": np.zeros((30, 8))}
        >>> [type(panel).__name__ for panel in picture_of(sample, About({})).panels]
        ['Matrix']
    """
    metadata = dict(sample.get("metadata", {}))
    clock = _Clock.of(metadata)
    fields = {name: value for name, value in sample.items() if name not in _OTHERS and not name.endswith("_mask")}
    panels: list[Panel] = []
    if clock is not None:
        panels += _spikes(sample, clock, about)
    texts = {}
    for name, value in fields.items():
        if name in ("spikes", "spike_times", "spike_units") and clock is not None:
            continue
        made = _panels(name, value, sample.get(f"{name}_mask"), clock, about.fields.get(name, {}))
        panels += made
        if not made:
            texts[name] = _as_text(value)
    if clock is not None:
        panels += _coverage(about.source_of(sample), clock)
    key = str(sample.get("__key__", ""))
    told = {**texts, **{name: value for name, value in metadata.items() if value is not None}}
    caption = "\n".join(f"{name}: {_as_text(value)}" for name, value in told.items())
    span = (0.0, 1.0) if clock is None else (clock.start, clock.stop)
    event = 0.0 if clock is not None and clock.event else None
    return Picture(" · ".join(filter(None, [key, _title(metadata, clock)])), panels, span, caption, event)


@dataclass(frozen=True)
class _Clock:
    """When a sample is, s: on the recording's clock, or from its event on."""

    start: float
    stop: float
    offset: float
    event: bool

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Clock | None:
        if not {"t_start_ns", "t_stop_ns"} <= metadata.keys():
            return None
        start, stop, event = metadata["t_start_ns"], metadata["t_stop_ns"], metadata.get("event_ns")
        zero = 0 if event is None else event
        return cls((start - zero) / NS_PER_S, (stop - zero) / NS_PER_S, zero / NS_PER_S, event is not None)

    def times(self, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the middle of each of n equal pieces."""
        return self.start + (np.arange(n) + 0.5) * (self.stop - self.start) / n


def _title(metadata: Mapping[str, Any], clock: _Clock | None) -> str:
    parts = [str(metadata.get("session_id") or metadata.get("source") or "")]
    if clock is not None:
        parts.append(f"{clock.start + clock.offset:.6g} to {clock.stop + clock.offset:.6g} s")
        parts += [f"around the event at {clock.offset:.6g} s"] if clock.event else []
    return ", ".join(filter(None, parts))


def _spikes(sample: Sample, clock: _Clock, about: About) -> Iterator[Panel]:
    if "spikes" in sample:
        counts = np.asarray(sample["spikes"])
        bins, units = np.nonzero(counts)
        n_units, numbers = counts.shape[1], counts[bins, units].astype(np.int64)
        times = clock.times(len(counts))[bins]
    elif "spike_times" in sample and "spike_units" in sample:
        times = clock.start + np.asarray(sample["spike_times"]) / NS_PER_S
        units, numbers = np.asarray(sample["spike_units"]).astype(np.int64), None
        n_units = len(about.fields.get("spike_units", {}).get("columns") or ()) or int(units.max(initial=-1)) + 1
    else:
        return
    total = len(times) if numbers is None else int(numbers.sum())
    names = populations(about.source_of(sample).get("units", {}), n_units)
    yield Raster(times, units, n_units, names, numbers, f"{total:,} spikes of {n_units:,} units")


def _panels(name: str, value: Any, mask: Any, clock: _Clock | None, about: Mapping[str, Any]) -> list[Panel]:
    """Return the panel of a field; none of what cannot be drawn."""
    if isinstance(value, (bytes, bytearray)):
        try:
            return [Matrix(decode_image(bytes(value)), name)]
        except NeurofmxError:  # no image
            return []
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.size == 0 or array.ndim == 0:
        return []
    if clock is None or array.ndim == 1 or name.endswith("_frame"):
        return _timeless(name, array) if clock is None else []
    if name == "events":
        return _events(array, clock, about)
    if array.ndim >= 3 and array.dtype == np.uint8:
        shown = evenly(len(array), MOST_FRAMES)
        shown = shown if mask is None else shown[np.asarray(mask)[shown]]
        return [Frames(clock.times(len(array))[shown].tolist(), [array[i] for i in shown], name)]
    values = array.reshape(len(array), -1).astype(float)
    if mask is not None:
        values = np.where(np.asarray(mask).reshape(values.shape), values, np.nan)
    return _traces(name, values, clock, about)


def _traces(name: str, values: Floats, clock: _Clock, about: Mapping[str, Any]) -> list[Panel]:
    """Return a panel for the columns of each container and unit."""
    columns = _names(about, values.shape[1])
    units = about.get("units") or [about.get("unit", "")] * len(columns)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, (column, unit) in enumerate(zip(columns, units, strict=False)):
        groups.setdefault((column.rpartition("/")[0], unit), []).append(i)
    panels: list[Panel] = []
    for (container, unit), own in groups.items():
        stacked = len(own) > _MOST_TOGETHER
        rows, title = values[:, own], "/".join(filter(None, [name, container]))
        missing = _runs(np.asarray(np.isnan(rows).all(axis=1)), clock)
        names = [columns[i] for i in own]
        panels.append(Traces(clock.times(len(rows)), rows, names, unit, stacked, missing, title))
    return panels


def _names(about: Mapping[str, Any], n: int) -> list[str]:
    """Return the names of n columns."""
    columns = about.get("columns") or ()
    return [*map(str, columns if len(columns) == n else range(n))]


def _timeless(name: str, array: np.ndarray[Any, Any]) -> list[Panel]:
    if array.ndim <= 2:
        return [Matrix(array, f"{name} {' × '.join(map(str, array.shape))}")]
    if array.ndim == 3 and (array.dtype == np.uint8 or 3 in (array.shape[0], array.shape[2])):
        return [Matrix(array, name)]
    title = f"{name} {' × '.join(map(str, array.shape))}"
    return [Matrix(array.reshape(len(array), -1).astype(float), title)]


def _events(counts: np.ndarray[Any, Any], clock: _Clock, about: Mapping[str, Any]) -> list[Panel]:
    names, times = _names(about, counts.shape[1]), clock.times(len(counts))
    spans = [(times[i], times[i], names[k]) for i, k in zip(*np.nonzero(np.nan_to_num(counts)), strict=True)]
    return [Marks(spans, "events")] if spans else []


def _runs(missing: np.ndarray[Any, np.dtype[np.bool_]], clock: _Clock) -> list[tuple[float, float]]:
    """Return the stretches (s) of the rows that are missing."""
    edges = np.flatnonzero(np.diff(np.r_[False, missing, False].astype(np.int8))).reshape(-1, 2)
    step = (clock.stop - clock.start) / max(1, len(missing))
    return [(clock.start + a * step, clock.start + b * step) for a, b in edges.tolist()]


def _coverage(source: Mapping[str, Any], clock: _Clock) -> list[Panel]:
    segments = np.array(source.get("segments", []), float).reshape(-1, 2) / NS_PER_S
    if not len(segments):
        return []
    shown = (clock.start + clock.offset, clock.stop + clock.offset)
    return [Coverage([("windows", segments)], (float(segments[0, 0]), float(segments[-1, 1])), shown,
                     "where windows lie in the recording")]  # fmt: skip


def _as_text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        text = bytes(value[:2001]).decode(errors="ignore")
        return text if text.isprintable() and len(value) <= 2000 else f"{len(value):,} bytes"
    if isinstance(value, (np.ndarray, np.generic)):
        return str(value) if value.size <= 16 else f"{' × '.join(map(str, value.shape))} {value.dtype}"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 2000 else f"{text[:2000]}…"
