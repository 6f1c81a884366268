"""Names of fields and of their columns, made from the names in an NWB file.

Knows what series, electrodes and ROIs are called; reads no data.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, TypeVar

from pynwb.behavior import SpatialSeries
from pynwb.ecephys import ElectricalSeries
from pynwb.ophys import RoiResponseSeries

from .finding import Found
from .series import Series
from .video import Video

AnySeries = TypeVar("AnySeries", Series, Video)


def field_name(name: str) -> str:
    """Return a valid field name: lower-case letters and digits, with single underscores between them.

    Example:
        >>> field_name("Wheel speed (cm/s)")
        'wheel_speed_cm_s'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "series"


def by_field(modality: str, made: list[tuple[str, AnySeries]]) -> dict[str, AnySeries]:
    """Return series by field.

    Args:
        modality: a modality or a path. A modality's only series has its name, several ``<modality>_<series>``; the
            series of a path have their own names.
        made: (name in the file, series).
    """
    prefix = "" if "/" in modality else f"{modality}_"
    fields: dict[str, AnySeries] = {}
    for series_name, each in made:
        name = modality if prefix and len(made) == 1 else prefix + field_name(series_name)
        same = sum(taken == name or re.fullmatch(rf"{name}_\d+", taken) is not None for taken in fields)
        fields[f"{name}_{same + 1}" if same else name] = each
    return fields


def columns_of(found: Found, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of a series' columns: ids of electrodes or ROIs, axes of positions, else numbers.

    Args:
        found: the series.
        shape: of its data, time first.
    """
    if isinstance(found.series, ElectricalSeries):
        return _row_ids(found.series.electrodes, shape)
    if isinstance(found.series, RoiResponseSeries):
        return _row_ids(found.series.rois, shape)
    return _plain_columns(found, shape)


def _plain_columns(found: Found, shape: tuple[int, ...]) -> tuple[str, ...]:
    name = f"{found.holder.name if found.holder is not None else found.place}/{found.series.name}"
    n_columns = shape[1] if len(shape) == 2 else 1
    if n_columns == 1:
        return (name,)
    spatial = isinstance(found.series, SpatialSeries) and n_columns <= 3
    return tuple(f"{name}_{axis}" for axis in ("xyz"[:n_columns] if spatial else range(n_columns)))


def _row_ids(region: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the ids of a region's rows; numbers where the file does not name one row for each column."""
    n_columns = shape[1] if len(shape) == 2 else 1
    rows = [] if region is None else [int(row) for row in region.data[:]]
    if len(rows) != n_columns:
        return tuple(str(channel) for channel in range(n_columns))
    return tuple(str(region.table.id[row]) for row in rows)


def with_distinct_columns(series: list[Series]) -> list[Series]:
    """Return the series, with their whole path in their columns' names where the short name is ambiguous."""
    names = [column for each in series for column in each.columns]
    return [
        replace(each, columns=tuple(f"{each.path.rsplit('/', 1)[0]}/{c.split('/', 1)[-1]}" for c in each.columns))
        if any(names.count(column) > 1 for column in each.columns)
        else each
        for each in series
    ]
