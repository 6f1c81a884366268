"""What a file holds as lines of text: the lines that `inspect` shows.

Knows what :func:`neurofmx_wds.convert.inspect.inspect_file` returns; reads no files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..format.info import count, human_size, table

#: Lines of a table that are shown without --all.
MOST_ROWS = 30
_INDENT = "  "


def inspection_lines(
    found: Mapping[str, Any], command: str, width: int | None = None, most: int | None = MOST_ROWS
) -> Iterator[str]:
    """Yield the lines that describe one file.

    Args:
        found: what `inspect_file` returned.
        command: the command line that converts the file.
        width: columns of the terminal; None: as wide as it gets.
        most: rows of each table; None: all.
    """
    yield from _title(found)
    recording = found.get("recording")
    if recording:
        for heading, header, rows in _tables_of(recording, _fields_by_path(found["convert"])):
            if rows:
                yield f"\n{_INDENT}{heading}"
                yield from _rows(header, rows, width, most)
        yield from _interval_lines(recording["tables"], width)
    yield from _conversion_lines(found["convert"], width, most)
    yield f"\n{_INDENT}{command}"


def _rows(header: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None, most: int | None) -> Iterator[str]:
    """Yield the first rows as a table; if it is wider than the terminal, each row as a short paragraph."""
    indent, shown = _INDENT * 2, rows[:most]
    used = [i for i, _ in enumerate(header) if any(row[i] not in ("", None) for row in rows)]
    names = [header[i] for i in used]
    lines = table(names, [[row[i] for i in used] for row in shown], None, indent)
    if width is None or max(map(len, lines.splitlines())) <= width:
        yield lines
    else:
        for row in shown:
            yield f"{indent}{row[0]}"
            facts = ", ".join(f"{header[i]} {_grouped(row[i])}" for i in used[1:] if row[i] not in ("", None))
            yield textwrap.fill(facts, width, initial_indent=indent + _INDENT, subsequent_indent=indent + _INDENT)
    if len(shown) < len(rows):
        yield f"{indent}and {len(rows) - len(shown)} more (--all shows them)"


def _grouped(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def overview(every: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """Return a table with one row for each file."""
    header = ["file", "session", "subject", "seconds", "units", "spikes", "series", "samples"]
    return table(header, [_overview_row(each) for each in every], width)


def _overview_row(found: Mapping[str, Any]) -> list[Any]:
    recording = found.get("recording") or {}
    identity, units = recording.get("identity", {}), recording.get("units") or {}
    span = recording.get("span_s")
    return [
        found["name"],
        identity.get("session_id") or "",
        identity.get("subject", {}).get("subject_id") or "",
        round(span[1] - span[0]) if span else None,
        units.get("n"),
        units.get("spikes"),
        len(recording["series"]) if recording else None,
        found["convert"].get("samples"),
    ]


def _title(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['name']}  ({found['kind']}, {human_size(found['size_bytes'])})"
    recording = found.get("recording")
    if not recording:
        return
    identity = recording["identity"]
    subject = [str(value) for name, value in identity["subject"].items() if name != "description"]
    span = recording["span_s"]
    yield f"{_INDENT}session {identity['session_id']}, started {identity['session_start']}"
    yield f"{_INDENT}subject {', '.join(subject) or 'not given'}"
    if span:
        yield f"{_INDENT}data from {_number(span[0])} s to {_number(span[1])} s ({_duration(span[1] - span[0])})"
    if recording["invalid_s"]:
        yield f"{_INDENT}{_duration(recording['invalid_s'])} of it in invalid_times"
    if recording["sweeps"]:
        yield f"{_INDENT}{count(recording['sweeps'], 'sweep')} of intracellular recordings"


def _fields_by_path(convert: Mapping[str, Any]) -> dict[str, str]:
    fields = convert.get("fields", {})
    return {path: field for field, about in fields.items() for path in about.get("paths", [])}


def _tables_of(recording: Mapping[str, Any], taken: Mapping[str, str]) -> Iterator[tuple[str, list[str], list[Any]]]:
    """Yield heading, header and rows of each table."""
    units = recording["units"]
    if units:
        heading = f"{count(units['n'], 'unit')}, {count(units['spikes'], 'spike')}, {_extent(units)} s"
        header = ["region", "quality", "units", "silent", "spikes", "rate (Hz)", "lowest", "highest"]
        yield heading, header, [_unit_row(each) for each in units["groups"]]
    span = recording["span_s"]
    header = ["series", "type", "Hz", "unit", "columns", "time (s)", "measured", "gaps", "field"]
    rows = [[*_series_row(each, span), taken.get(each["path"], "not taken")] for each in recording["series"]]
    yield f"{len(rows)} series (measured: share of the recording)", header, rows
    header = ["video", "frames", "size", "Hz", "time (s)", "files", "field"]
    rows = [[*_video_row(each), taken.get(each["path"], "not taken")] for each in recording["videos"]]
    yield count(len(rows), "video"), header, rows
    rows = [
        [each["path"], each["type"], each["n"], _extent(each), _counts(each["labels"]), taken.get(each["path"], "")]
        for each in recording["events"]
    ]
    yield "events", ["events", "type", "n", "time (s)", "labels", "field"], rows
    rows = [
        [each["path"], _extent(each), ", ".join(f"{name} {_duration(s)}" for name, s in each["states_s"].items())]
        for each in recording["states"]
    ]
    yield "states", ["states", "time (s)", "how long each holds"], rows


def _unit_row(group: Mapping[str, Any]) -> list[Any]:
    low, median, high = (_number(rate, 3) for rate in group["rate_hz"])
    return [group["region"], group["quality"], group["n"], group["silent"], group["spikes"],
            median, low, high]  # fmt: skip


def _series_row(series: Mapping[str, Any], span: Sequence[float]) -> list[Any]:
    seconds, gaps = span[1] - span[0], series["gaps"]
    return [
        series["path"],
        series["type"],
        _rate(series),
        series["unit"],
        len(series["columns"]),
        _extent(series),
        f"{series['measured_s'] / seconds:.0%}" if seconds > 0 else "",
        f"{gaps['n']:,}, ≤ {_number(gaps['longest_s'], 3)} s" if gaps["n"] else "none",
    ]


def _rate(series: Mapping[str, Any]) -> str:
    regular = series.get("regularity", "regular") != "irregular"
    return "" if series["rate"] is None else f"{'' if regular else '~'}{_number(series['rate'], 5)}"


def _video_row(video: Mapping[str, Any]) -> list[Any]:
    size = "in files" if video["shape"] is None else " × ".join(map(str, video["shape"]))
    return [video["path"], video["frames"], size, _rate(video), _extent(video), ", ".join(video["files"])]


def _interval_lines(tables: Sequence[Mapping[str, Any]], width: int | None) -> Iterator[str]:
    for each in tables:
        unusable = each["rows"] - each["usable"]
        odd = f", {unusable} without usable start and stop" if unusable else ""
        yield f"\n{_INDENT}{each['path'] or each['name']}: {count(each['rows'], 'row')}, {_extent(each)} s{odd}"
        told = (f"{name} {_about_column(about)}".strip() for name, about in each["columns"].items())
        yield textwrap.fill(
            "; ".join(told),
            max(40, width or 120),
            initial_indent=_INDENT * 2,
            subsequent_indent=_INDENT * 2,
        )


def _about_column(about: Mapping[str, Any]) -> str:
    parts = []
    if "values" in about:
        parts.append(_counts(about["values"]))
    elif "range" in about:
        low, high = about["range"]
        parts.append(_number(low) if low == high else f"{_number(low)} to {_number(high)}")
    elif "different" in about:
        parts.append(f"{about['different']:,} different")
    if about["missing"]:
        parts.append(f"{about['missing']:,} missing")
    return f"({', '.join(parts)})" if parts else ""


def _conversion_lines(convert: Mapping[str, Any], width: int | None, most: int | None) -> Iterator[str]:
    if "error" in convert:
        yield f"\n{_INDENT}convert takes nothing of it: {convert['error']}"
        return
    if convert.get("empty"):
        yield f"\n{_INDENT}convert takes nothing of it: {convert['empty']}"
    else:
        with_fields = ", each with" if convert["fields"] else ""
        yield f"\n{_INDENT}convert makes {count(convert['samples'], 'sample')} of it{with_fields}"
        rows = [
            [name, about.get("dtype", ""), _shape(about.get("shape")), about.get("unit", "")]
            for name, about in convert["fields"].items()
        ]
        if rows:
            yield table(["field", "dtype", "shape", "unit"], rows, width, _INDENT * 2)
    yield from (f"{_INDENT}{n:,} windows dropped: {why}" for why, n in convert["dropped"].items())
    left = convert["not_taken"]
    if left:
        yield f"\n{_INDENT}not taken"
        rows = [[each["path"], each["type"], each["why"], each["take"]] for each in left]
        yield from _rows(["object", "type", "why", "taken with"], rows, width, most)
    if convert["warnings"]:
        yield f"\n{_INDENT}notes"
        yield from (
            textwrap.fill(each, width or 120, initial_indent=_INDENT * 2, subsequent_indent=_INDENT * 3)
            for each in convert["warnings"]
        )


def _shape(shape: Sequence[int | None] | None) -> str:
    return "" if shape is None else " × ".join("?" if n is None else str(n) for n in shape) or "one number"


def _counts(values: Mapping[str, int]) -> str:
    shown = [f"{label} {n:,}" for label, n in list(values.items())[:MOST_ROWS]]
    return ", ".join(shown) + (f", and {len(values) - len(shown)} more" if len(shown) < len(values) else "")


def _extent(part: Mapping[str, Any]) -> str:
    start, stop = part["start_s"], part["stop_s"]
    return "" if start is None else f"{_number(start)} to {'?' if stop is None else _number(stop)}"


def _number(value: float, digits: int = 6) -> str:
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    """Return seconds as people write them: ``1 h 26 min``, ``2 min 5 s``, ``3.2 s``."""
    if seconds < 60:
        return f"{_number(seconds, 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if rest else f"{minutes} min"
