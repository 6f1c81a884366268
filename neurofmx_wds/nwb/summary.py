"""What a recording holds, as plain JSON values: units by region and quality, series, tables, events, and when each is.

Reads times and labels; reads no samples of continuous series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .clock import NS_PER_S, Int64, union
from .finding import Found
from .intervals import Intervals
from .recording import Recording
from .series import Series
from .timeline import Timeline
from .units import SpikeTrains
from .video import Video

#: Columns of units tables that say how good a unit is; the first that there is counts.
QUALITY_COLUMNS = ("quality", "unit_quality", "cluster_quality", "KSLabel", "group", "classification")
#: Columns that say where a unit is.
REGION_COLUMNS = ("location", "brain_area", "brain_region", "region", "area")
#: Values of a column of texts or codes are counted if there are at most so many different ones.
MOST_VALUES = 8


def summarize(recording: Recording, max_gap: float) -> dict[str, Any]:
    """Return what a recording holds, as JSON values.

    Args:
        recording: an open NWB file.
        max_gap: ns; a longer step between two samples is a gap.

    Returns:
        "identity"; "units" (None if there are none): their number, spikes and rates, in all and by region and quality;
        "series": path, type, rate, unit, columns, times and gaps of each; "videos"; "events": how many of each label;
        "tables": rows, times and columns of each table of intervals; "sweeps": how many; "span_s": first and last time
        of all of these; "invalid_s": seconds in the table of invalid times. Times are in seconds.
    """
    series, videos, events, states = [], [], [], []
    for found in recording.objects:
        for each in _made_of(recording, found):
            if isinstance(each, Video):
                videos.append(_video(found, each, max_gap))
            elif not each.is_sparse:
                series.append(_series(found, each, max_gap))
            elif each.kind == "labels":
                events.append(_events(found, each))
            elif each.kind == "epochs":
                states.append(_states(found, each))
    units = _units(recording) if "spikes" in recording.modalities else None
    tables = [_table(each) for each in _tables(recording)]
    parts = [*series, *videos, *events, *states, *tables, *filter(None, [units])]
    times = [time for part in parts for time in (part["start_s"], part["stop_s"]) if time is not None]
    return {
        "identity": recording.identity,
        "span_s": [min(times), max(times)] if times else None,
        "units": units,
        "series": series,
        "videos": videos,
        "events": events,
        "states": states,
        "tables": tables,
        "sweeps": len(recording.sweeps),
        "invalid_s": _seconds(np.diff(union([recording.invalid_times])).sum()),
    }


def _made_of(recording: Recording, found: Found) -> list[Series | Video]:
    """Return the series or the video of an object; none of what cannot be used, and of tables and units."""
    if found.kind not in ("series", "events", "epochs", "video"):
        return []
    made: list[Series | Video] = [*recording.fields_of(found.path).values(), *recording.videos_of(found.path).values()]
    return [each for each in made if each.path == found.path]


def _seconds(ns: Any) -> float:
    return float(ns) / NS_PER_S


def _extent(timeline: Timeline, max_gap: float) -> dict[str, Any]:
    """Return when the samples are: start, stop and measured seconds, and gaps."""
    support = timeline.support(max_gap)
    return {
        "start_s": _seconds(support[0, 0]),
        "stop_s": _seconds(support[-1, 1]),
        "measured_s": _seconds(np.diff(support).sum()),
        "gaps": timeline.gaps(max_gap),
    }


def _rate(timeline: Timeline) -> float | None:
    return NS_PER_S / timeline.period if timeline.period else None


def _series(found: Found, series: Series, max_gap: float) -> dict[str, Any]:
    return {
        "path": found.path,
        "type": found.type,
        "dtype": series.data.dtype.name,
        "unit": series.unit,
        "columns": list(series.columns),
        "samples": series.timeline.n,
        "rate": _rate(series.timeline),
        "regularity": series.timeline.regularity,
        **_extent(series.timeline, max_gap),
    }


def _video(found: Found, video: Video, max_gap: float) -> dict[str, Any]:
    extent = {"start_s": _seconds(video.timeline.time_of(0)), "stop_s": None, "measured_s": None, "gaps": None}
    return {
        "path": found.path,
        "type": found.type,
        "frames": None if video.endless else video.timeline.n,
        "shape": None if video.data is None else list(video.data.shape[1:]),
        "rate": _rate(video.timeline),
        "files": list(video.files),
        **(extent if video.endless else _extent(video.timeline, max_gap)),
    }


def _events(found: Found, series: Series) -> dict[str, Any]:
    counts = np.asarray(series.stored(0, series.timeline.n)).sum(axis=0, dtype=np.int64)
    labels = [column.partition("/")[2] or column for column in series.columns]
    first, last = series.timeline.time_of(0), series.timeline.time_of(series.timeline.n - 1)
    return {
        "path": found.path,
        "type": found.type,
        "n": series.timeline.n,
        "labels": dict(zip(labels, counts.tolist(), strict=True)) if len(labels) > 1 else {},
        "start_s": _seconds(first),
        "stop_s": _seconds(last),
    }


def _states(found: Found, series: Series) -> dict[str, Any]:
    """Return the states of an object, with the seconds for which each holds."""
    times = series.timeline.between(0, series.timeline.n)
    holds = np.asarray(series.stored(0, series.timeline.n))[:-1]
    seconds = (holds * np.diff(times)[:, None]).sum(axis=0) / NS_PER_S
    labels = [column.partition("/")[2] or column for column in series.columns]
    return {
        "path": found.path,
        "type": found.type,
        "states_s": dict(zip(labels, seconds.tolist(), strict=True)),
        "start_s": _seconds(times[0]),
        "stop_s": _seconds(times[-1]),
    }


def _units(recording: Recording) -> dict[str, Any]:
    trains, columns = recording.spikes, recording.units_table
    seconds = _observed_s(trains, recording.spike_support[0])
    spikes = np.array(trains.per_unit, dtype=np.int64)
    rates = np.divide(spikes, seconds, out=np.zeros(len(spikes)), where=seconds > 0)
    region, quality = (_column(columns, names) for names in (REGION_COLUMNS, QUALITY_COLUMNS))
    groups: dict[tuple[str, str], list[int]] = {}
    for i in range(len(spikes)):
        groups.setdefault((_text(region, i), _text(quality, i)), []).append(i)
    support = recording.spike_support[0]
    return {
        "tables": list(recording.units.paths),
        **_rates(spikes, rates, list(range(len(spikes)))),
        "groups": [
            {"region": key[0], "quality": key[1], **_rates(spikes, rates, rows)} for key, rows in sorted(groups.items())
        ],
        "columns": list(columns),
        "start_s": _seconds(support[0, 0]) if len(support) else None,
        "stop_s": _seconds(support[-1, 1]) if len(support) else None,
    }


def _observed_s(trains: SpikeTrains, support: Int64) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return for how long each unit was observed, s."""
    each = trains.unit_intervals or (support,) * len(trains.ids)
    return np.array([_seconds(np.diff(union([intervals])).sum()) for intervals in each])


def _column(columns: dict[str, list[Any]], names: Sequence[str]) -> list[Any] | None:
    known = {name.lower(): values for name, values in columns.items()}
    return next((known[name.lower()] for name in names if name.lower() in known), None)


def _text(column: list[Any] | None, row: int) -> str:
    return "" if column is None or column[row] is None else str(column[row])


def _rates(spikes: Int64, rates: np.ndarray[Any, Any], rows: list[int]) -> dict[str, Any]:
    """Return the number of some units, of their spikes, and their rates (spikes/s)."""
    own = rates[rows]
    return {
        "n": len(rows),
        "silent": int((spikes[rows] == 0).sum()),
        "spikes": int(spikes[rows].sum()),
        "rate_hz": [float(np.quantile(own, q)) for q in (0, 0.5, 1)] if len(own) else None,
    }


def _tables(recording: Recording) -> list[Intervals]:
    """Return the tables of intervals of the file, wherever they are."""
    known = list(recording.intervals.values())
    paths = {path for table in known for path in table.paths}
    others = [each.path for each in recording.objects if each.kind == "intervals" and each.path not in paths]
    read = (recording.align_table(path) for path in others if path != "intervals/invalid_times")
    return [*known, *(table for table in read if table is not None)]


def _table(table: Intervals) -> dict[str, Any]:
    return {
        "name": table.name,
        "path": table.paths[0] if table.paths else "",
        "rows": max(map(len, table.cells.values()), default=len(table.rows)),
        "usable": len(table.rows),
        "start_s": _seconds(table.starts.min()) if len(table.rows) else None,
        "stop_s": _seconds(table.stops.max()) if len(table.rows) else None,
        "columns": {name: _about_cells(cells) for name, cells in table.cells.items()},
    }


def _about_cells(cells: list[Any]) -> dict[str, Any]:
    """Return what a column holds: how often each value if there are few, else the range of its numbers."""
    known = [", ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in cells if cell is not None]
    about: dict[str, Any] = {"missing": len(cells) - len(known)}
    counts = Counter(map(str, known))
    if not known:
        return about
    if len(counts) <= MOST_VALUES and (len(counts) < len(known) or isinstance(known[0], (str, bool))):
        about["values"] = dict(counts.most_common())
    elif all(isinstance(cell, (int, float)) for cell in known):
        about["range"] = [min(known), max(known)]
    else:
        about["different"] = len(counts)
    return about
