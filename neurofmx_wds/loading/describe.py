"""What a loader's batches hold, for people: fields with their columns, and where the row of a batch comes from.

Knows readers, manifests and metadata; reads no samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StateError
from ..format.html import facts, table
from ..format.units import units_of
from ..nwb.clock import Grid
from .dataset import OpenDataset
from .mixture import DATASET, MixtureReader
from .readers import ShardReader
from .sessions import Sessions
from .views import ViewedReader
from .window_reader import WindowReader

_OF_UNITS = ("spikes", "spikes_mask")


@dataclass(frozen=True)
class Location:
    """Where a row of a batch comes from.

    Attributes:
        key: the sample's key.
        session_id: the session; "" if the metadata do not say.
        source: the recording's file; "" likewise.
        dataset: the dataset, of a mixture; else "".
        bin_starts_ns: int64 (bins,), when each bin starts on the recording's clock, ns; empty for samples without bins.
        event_ns: the event that the window lies around, ns; None without one.
        units: what is known of the session's units, column → a value for each column of ``spikes``.
        metadata: the sample's metadata.
    """

    key: str
    session_id: str
    source: str
    dataset: str
    bin_starts_ns: npt.NDArray[np.int64]
    event_ns: int | None
    units: dict[str, list[Any]]
    metadata: dict[str, Any]

    def _repr_html_(self) -> str:
        bins = self.bin_starts_ns
        about: dict[str, Any] = {"key": self.key, "session": self.session_id, "source": self.source}
        if len(bins):
            about["bins"] = f"{len(bins):,}, from {bins[0] / 1e9:.9g} s to {bins[-1] / 1e9:.9g} s"
        return facts(about) + table([*self.units], [*zip(*self.units.values(), strict=True)])


def locate(opened: OpenDataset, batch: Mapping[str, Any], row: int) -> Location:
    """Return where a row of a batch comes from (see :meth:`neurofmx_wds.loading.pipeline.ResumablePipeline.locate`)."""
    metadata = dict(batch["metadata"][row])
    dataset = batch.get(DATASET)
    return Location(
        key=str(batch["__key__"][row]),
        session_id=str(metadata.get("session_id") or ""),
        source=str(metadata.get("source") or ""),
        dataset="" if dataset is None else str(dataset[row]),
        bin_starts_ns=_bin_starts(metadata),
        event_ns=metadata.get("event_ns"),
        units=_units(opened.sessions, metadata),
        metadata=metadata,
    )


def _bin_starts(metadata: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    if not {"t_start_ns", "t_stop_ns", "bin_ns"} <= metadata.keys():
        return np.empty(0, np.int64)
    start, stop, width = metadata["t_start_ns"], metadata["t_stop_ns"], _width(metadata["bin_ns"])
    grid = Grid(width, metadata.get("event_ns", 0))
    first = round((start - grid.origin) / width)
    if grid.start_of(first) != start:  # bins of its own, as where windows are jittered
        grid, first = Grid(width, start), 0
    return np.array([grid.start_of(first + k) for k in range(round((stop - start) / width))], np.int64)


def _width(stored: Any) -> Fraction:
    return Fraction(stored["numerator"], stored["denominator"]) if isinstance(stored, dict) else Fraction(stored)


def _units(sessions: Sessions, metadata: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the units of the source that a sample is from.

    Raises:
        StateError: several recordings of the dataset have this file name and session.
    """
    asked = metadata.get("source"), metadata.get("session_id")
    same = [i for i, each in enumerate(sessions.sources) if (each.get("path"), each.get("session_id")) == asked]
    tables = []
    for i in same:
        own = units_of(sessions.sources[i], sessions.names[i])
        rows = range(len(own["key"])) if sessions.units is None else sessions.units[i]
        tables.append({name: [cells[row] for row in rows] for name, cells in own.items()})
    if not tables:
        return {}
    if any(each["key"] != tables[0]["key"] for each in tables):
        problem = f"{asked[0]} of session {asked[1]} stands for several recordings of the dataset"
        raise StateError(problem, remedy="give recordings different file names or session ids")
    return tables[0]


def fields_of(opened: OpenDataset) -> dict[str, dict[str, Any]]:
    """Return what is known of each field: dtype, shape of one sample, unit, columns and the like."""
    reader = opened.reader
    known = _known(reader)
    fields = {name: dict(known.get(name, {})) for name in reader.fields or known}
    if opened.sessions.to_take is not None:  # of the stored columns, those of some units are delivered
        for name in set(fields).intersection(_OF_UNITS):
            _choose(fields[name], opened.sessions)
    return fields


def _known(reader: Any) -> dict[str, dict[str, Any]]:
    """Return what manifests say of the fields that a reader reads; what differs between recordings is left out."""
    if isinstance(reader, ViewedReader):
        return _known(reader.reader)
    if isinstance(reader, ShardReader):
        manifest = reader.shards.manifest
        return {} if manifest is None else manifest.modalities
    if isinstance(reader, WindowReader):
        return _common([each.describe_fields() for each in reader.recordings])
    return _common([_known(each) for each in reader.readers]) if isinstance(reader, MixtureReader) else {}


def _common(every: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    known = {}
    for name in dict.fromkeys(name for each in every for name in each):
        own = [each[name] for each in every if name in each]
        known[name] = {key: value for key, value in own[0].items() if all(each.get(key) == value for each in own)}
    return known


def _choose(about: dict[str, Any], sessions: Sessions) -> None:
    columns = about.pop("columns", None)
    rows = {each for each in sessions.to_take or () if each is not None}
    if columns is not None and len(rows) == 1:
        [chosen] = rows
        about["columns"] = [columns[row] for row in chosen]
        about["shape"] = [*about["shape"][:-1], len(chosen)]
    elif "shape" in about:
        about["shape"] = [*about["shape"][:-1], None]


def loader_html(opened: OpenDataset, about: Mapping[str, Any]) -> str:
    """Return a loader as HTML, for notebooks.

    Args:
        opened: the dataset.
        about: what is said of the loader itself.
    """
    rows = [
        [
            name,
            each.get("dtype") or "",
            _shape(each.get("shape")),
            each.get("unit") or "",
            _columns(each.get("columns")),
        ]
        for name, each in fields_of(opened).items()
    ]
    return facts(about) + table(["field", "dtype", "shape of a sample", "unit", "columns"], rows)


def _shape(shape: list[int | None] | None) -> str:
    return "" if shape is None else " × ".join("?" if n is None else str(n) for n in shape) or "one number"


def _columns(columns: list[Any] | None) -> str:
    return (
        "" if not columns else ", ".join(map(str, columns[:6])) + (f", … ({len(columns)})" if len(columns) > 6 else "")
    )
