"""What series and their columns are called, after the names in an NWB file.

Knows what series, electrodes and ROIs are called; reads no data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from pynwb.behavior import SpatialSeries
from pynwb.ecephys import ElectricalSeries
from pynwb.ophys import RoiResponseSeries

from .descriptions import Columns, rows_of_region, scalar_columns
from .finding import Found
from .names import field_name
from .series import Series
from .tables import plain
from .video import Video

AnySeries = TypeVar("AnySeries", Series, Video)


def short_fields(modality: str, made: list[tuple[str, AnySeries]]) -> dict[str, AnySeries]:
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


def short_name(found: Found) -> str:
    """Return an object's name after that of its container, or of its module."""
    return f"{found.holder.name if found.holder is not None else found.place}/{found.series.name}"


def columns_of(found: Found, n_columns: int, warn: Callable[..., None]) -> tuple[str, ...]:
    """Return the names of a series' columns: ids of electrodes or ROIs, labels, axes of positions, else numbers.

    Args:
        found: the series.
        n_columns: how many columns its data have.
        warn: called with a line if its electrodes or ROIs are not rows of their table.
    """
    series: Any = found.series
    if isinstance(series, (ElectricalSeries, RoiResponseSeries)):
        return _row_ids(found.path, region_of(series)[1], n_columns, warn)
    name, words = short_name(found), getattr(series, "vocabulary", None)
    if n_columns == 1:
        return (name,)
    if words is not None and len(words) == n_columns:
        return tuple(f"{name}/{plain(word)}" for word in words[:])
    shape = getattr(series.data, "shape", ())
    if len(shape) > 2:
        return tuple(f"{name}_{'_'.join(map(str, each))}" for each in np.ndindex(shape[1:]))
    spatial = isinstance(series, SpatialSeries) and n_columns <= 3
    return tuple(f"{name}_{axis}" for axis in ("xyz"[:n_columns] if spatial else range(n_columns)))


def region_of(series: Any) -> tuple[str, Any]:
    """Return what the columns of a series are ("electrodes", "rois", or ""), and the rows of their table."""
    if isinstance(series, ElectricalSeries):
        return "electrodes", series.electrodes
    return ("rois", series.rois) if isinstance(series, RoiResponseSeries) else ("", None)


def about_columns(series: Any, n_columns: int, warn: Callable[..., None]) -> Columns:
    """Return what the table of a series' electrodes or ROIs says of each column; {} where it has no row for each."""
    _, region = region_of(series)
    rows = [] if region is None else [int(row) for row in region.data[:]]
    if len(rows) != n_columns or not all(0 <= row < len(region.table) for row in rows):
        return {}
    columns, notes = scalar_columns(region.table)
    warn(*notes)
    return rows_of_region({"id": [int(i) for i in region.table.id[:]], **columns}, rows)


def _row_ids(path: str, region: Any, n_columns: int, warn: Callable[..., None]) -> tuple[str, ...]:
    """Return the ids of a region's rows; numbers where the file does not name one row for each column."""
    rows = [] if region is None else [int(row) for row in region.data[:]]
    numbers = tuple(str(channel) for channel in range(n_columns))
    if len(rows) != n_columns:
        return numbers
    n_rows = len(region.table)
    outside = sum(not 0 <= row < n_rows for row in rows)
    if outside:
        from_one = ": do they count from 1?" if min(rows) == 1 and max(rows) == n_rows else ""
        told = f"{outside} of its {len(rows)} rows are not among the {n_rows} of {region.table.name}{from_one}"
        warn(f"{path}: {told}; its columns are numbered instead")
        return numbers
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
