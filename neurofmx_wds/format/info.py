"""What a dataset holds, for people: the tables that `info` and `convert` show.

Knows the format; knows nothing of order, loading or recordings.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import printable
from . import html
from .finding import DEFAULT_SHARD_PATTERN
from .groups import linked_group
from .manifest import SPIKE_COUNTS, Manifest
from .modalities import modalities_of
from .notes import ELSEWHERE, coverage_lines, note_lines
from .remote_shards import open_shards_anywhere
from .statistics import Moments, merged, pooled

_MOST_SOURCES = 20
_GAP = "  "


class ShardedDatasetInfo:
    """Looks at a dataset without loading it. With a manifest, no shard is read.

    Args:
        shard_dir: a directory, a shard, a pattern, a list of shards, or a URL.
        shard_pattern: which files of a directory without a manifest are shards.

    Raises:
        FileNotFoundError: there is no such directory or shard.
        ShardError: no shards, or damaged ones.

    Example:
        >>> import numpy as np, tempfile
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"spikes": np.ones((5, 100, 96), "float32")}, shard_size=2)
        >>> info = ShardedDatasetInfo(out).get_summary()
        >>> info["total_samples"], info["total_shards"], info["modalities"]["spikes"]["shape"]
        (5, 3, [100, 96])
    """

    def __init__(
        self, shard_dir: str | os.PathLike[str] | Sequence[str], shard_pattern: str = DEFAULT_SHARD_PATTERN
    ) -> None:
        shards = open_shards_anywhere(shard_dir, shard_pattern)
        self.shard_dir = str(shards.paths[0].parent) if shards.paths else os.fspath(str(shard_dir))
        self._manifest = shards.manifest or Manifest(
            shard_size=max(record.n_samples for record in shards.records),
            compression=_compression_of(shards.paths),
            modalities=modalities_of(shards.index(i) for i in range(len(shards.paths))),
            shards=shards.records,
        )

    def __repr__(self) -> str:
        size = f"samples={self._n_samples}, shards={len(self._manifest.shards)}"
        return f"{type(self).__name__}({self.shard_dir!r}, {size})"

    @property
    def _n_samples(self) -> int:
        of_a_group = linked_group(self._manifest) is not None
        return int(self._manifest.config["group"]["n_samples"]) if of_a_group else self._manifest.total_samples

    def get_summary(self) -> dict[str, Any]:
        """Return what the dataset holds.

        Returns:
            The manifest's content (total_samples, total_shards, shard_size, compression, modalities, shards, sources,
            config, …), with ``shard_dir`` and ``total_bytes``. Without a manifest, what the indexes of its shards
            contain. ``total_samples`` of a group counts its own samples; its shards hold others, too.
        """
        summary = {**self._manifest.summary(), "total_samples": self._n_samples}
        total_bytes = sum(shard.n_bytes for shard in self._manifest.shards)
        return {"shard_dir": self.shard_dir, "total_bytes": total_bytes, **summary}

    def print_summary(self, every: bool = False) -> None:
        """Show the dataset as tables on the standard output, no wider than the terminal.

        Args:
            every: all notes on the sources; by default the first ones.
        """
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        sys.stdout.write(printable(format_summary(self.get_summary(), width, every), keep="\n") + "\n")

    def _repr_html_(self) -> str:
        summary = self.get_summary()
        about = {"dataset": self.shard_dir, "samples": self._n_samples, "shards": summary["total_shards"]}
        return html.facts({**about, "size": human_size(summary["total_bytes"])}) + html.table(
            ["field", "dtype", "shape", "unit", "columns"],
            [
                [name, each.get("dtype") or "", _shape(each), each.get("unit") or "", _columns(each.get("columns"))]
                for name, each in self._manifest.modalities.items()
            ],
        )


def _compression_of(paths: Sequence[Path]) -> str:
    kinds = {path.suffix.lstrip(".") for path in paths}
    names = {"tar": "none", "tgz": "gz"}
    return ", ".join(sorted(names.get(kind, kind) for kind in kinds))


def human_size(n_bytes: int) -> str:
    """Return a number of bytes as text.

    Example:
        >>> human_size(1_234_567), human_size(999)
        ('1.2 MB', '999 B')
    """
    size, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}" if size < 99.95 else f"{size:.0f} {unit}"


def count(number: int, noun: str) -> str:
    """Return a number and its noun: ``1,185 windows``, ``1 shard``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None, indent: str = "") -> str:
    """Rows under a header, columns aligned: numbers to the right, the rest to the left.

    Args:
        header: the columns' names.
        rows: their cells; an int is written with thousands separated, None as nothing.
        width: columns of the terminal; the widest text is cut until it fits. None: as wide as it is.
        indent: what every line begins with.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    columns = list(zip(header, *cells, strict=True))
    sizes = [max(map(len, column)) for column in columns]
    if width is not None:
        _narrow(sizes, width - len(indent) - len(_GAP) * (len(sizes) - 1))
    right = [bool(rows) and all(isinstance(row[i], int) or row[i] is None for row in rows) for i in range(len(header))]
    lines = []
    for line in (header, *cells):
        fitted = [_cut(cell, size) for cell, size in zip(line, sizes, strict=True)]
        aligned = [
            cell.rjust(size) if to_right else cell.ljust(size)
            for cell, size, to_right in zip(fitted, sizes, right, strict=True)
        ]
        lines.append((indent + _GAP.join(aligned)).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else printable(str(value))


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def _narrow(sizes: list[int], width: int) -> None:
    while sum(sizes) > max(width, 4 * len(sizes)):
        sizes[sizes.index(max(sizes))] -= 1


def format_summary(summary: Mapping[str, Any], width: int | None = None, every: bool = False) -> str:
    """Return a dataset's summary as text.

    Args:
        summary: what :meth:`ShardedDatasetInfo.get_summary` returned.
        width: columns of the terminal; None: no limit.
        every: include all notes on the sources, not only the first ones.
    """
    parts = [_title(summary), _modality_table(summary, width)]
    sources = [source for source in summary["sources"] if "error" not in source]
    if sources:
        lines = [_wrapped(printable(line), width) for line in coverage_lines(sources)]
        parts.append("\n".join([_source_table(sources, width), *lines]))
    notes = note_lines(summary["sources"], every)
    if notes:
        parts.append("\n".join(_wrapped(printable(note), width) for note in notes))
    return "\n\n".join(parts)


def _title(summary: Mapping[str, Any]) -> str:
    facts = [
        count(summary["total_samples"], "sample"),
        count(summary["total_shards"], "shard")
        + (f" of up to {summary['shard_size']:,}" if summary["total_shards"] > 1 else ""),
        human_size(summary["total_bytes"]),
    ]
    if summary["compression"] != "none":
        facts.append(f"compressed ({summary['compression']})")
    if not summary["created_by"]:
        facts.append("no manifest")
    lines = [summary["shard_dir"], f"  {', '.join(facts)}"]
    if group := summary["config"].get("group"):
        among = count(sum(shard["n_samples"] for shard in summary["shards"]), "sample")
        lines.append(f"  the group {group['name']!r}, {count(len(group['labels']), 'label')}, among the {among} of "
                     f"linked shards of {group['of']}")  # fmt: skip
    return "\n".join(lines)


def _modality_table(summary: Mapping[str, Any], width: int | None) -> str:
    having = _samples_having(summary)
    rows = [
        [
            name,
            about.get("dtype") or ("various" if "dtype" in about else _text(about.get("format", ""))),
            _shape(about),
            about.get("unit", ""),
            _columns(about.get("columns")),
            *([having.get(name, "")] if having else []),
        ]
        for name, about in summary["modalities"].items()
    ]
    header = ["modality", "dtype", "shape", "unit", "columns", *([""] if having else [])]
    return table(header, rows, width, "  ")


def _samples_having(summary: Mapping[str, Any]) -> dict[str, str]:
    """How many samples have a field, of those that not all have, where the sources tell of all samples."""
    windows = [(s.get("fields", {}), s.get("windows", {}).get("emitted", 0)) for s in summary["sources"]]
    total = summary["total_samples"]
    if sum(n for _, n in windows) != total:
        return {}
    counts = {name: sum(n for fields, n in windows if name in fields) for name in summary["modalities"]}
    return {name: f"in {n:,} of {count(total, 'sample')}" for name, n in counts.items() if 0 < n < total}


def _text(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _shape(about: Mapping[str, Any]) -> str:
    """Return a shape as text; ``?`` where samples differ."""
    if "shape" not in about:
        return ""
    if about["shape"] is None:
        return "various"
    return " × ".join("?" if n is None else str(n) for n in about["shape"]) or "one number"


def _columns(columns: Sequence[str] | None) -> str:
    if not columns:
        return ""
    shown = ", ".join(map(str, columns[:3]))
    return f"{len(columns)}: {shown}{', …' if len(columns) > 3 else ''}"


def _source_table(sources: Sequence[Mapping[str, Any]], width: int | None) -> str:
    header = ["source", "session", "subject", "windows", "dropped"]
    rows = [
        [
            source.get("path", ""),
            source.get("session_id") or "",
            (source.get("subject") or {}).get("subject_id") or "",
            source.get("windows", {}).get("emitted", 0),
            sum(n for why, n in source.get("windows", {}).get("dropped", {}).items() if why != ELSEWHERE),
        ]
        for source in sources
    ]
    if any("spikes" in source for source in sources):
        header += ["spikes", *SPIKE_COUNTS[1:]]
        for row, source in zip(rows, sources, strict=True):
            row += [source.get("spikes", {}).get(kind) for kind in SPIKE_COUNTS]
    _leave_out(("session", "subject"), header, rows)
    if width is not None and max(map(len, table(header, rows, None, "  ").splitlines())) > width:
        _leave_out(("dropped", "outside", "invalid"), header, rows)
    shown = rows[:_MOST_SOURCES]
    if len(rows) > len(shown):
        shown.append([f"and {len(rows) - len(shown)} more", *[None] * (len(header) - 1)])
    if len(rows) > 1:
        totals: dict[str, Any] = dict(zip(header[1:], map(_total, list(zip(*rows, strict=True))[1:]), strict=True))
        shown.append(["all", *({**totals, **(_all_spikes(sources) if "spikes" in header else {})}).values()])
    return table(header, shown, width, "  ")


def _leave_out(names: Sequence[str], header: list[str], rows: list[list[Any]]) -> None:
    """Leave out those of some columns that say nothing."""
    for name in names:
        if name in header and not any(row[header.index(name)] for row in rows):
            i = header.index(name)
            header.pop(i)
            for row in rows:
                row.pop(i)


def _wrapped(line: str, width: int | None) -> str:
    """Return a line cut into several where it is wider than the terminal; what it begins with stays its indent."""
    if width is None or len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line.strip(), width, initial_indent=indent, subsequent_indent=f"{indent}  ",
                         break_on_hyphens=False)  # fmt: skip


def _all_spikes(sources: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the spikes of all recordings, each recording's once, also if parts of it are several sources."""
    whole: dict[Any, tuple[int, int]] = {}
    for i, source in enumerate(sources):
        spikes = source.get("spikes", {})
        identity = source.get("sha256") or source.get("version") or i
        whole[str(identity)] = spikes.get("total") or 0, spikes.get("invalid") or 0
    binned = sum(source.get("spikes", {}).get("binned") or 0 for source in sources)
    total, invalid = (sum(each[k] for each in whole.values()) for k in (0, 1))
    return {"spikes": total, "binned": binned, "outside": max(0, total - binned - invalid), "invalid": invalid}


def _total(column: Sequence[Any]) -> int | None:
    return None if any(isinstance(value, str) for value in column) else sum(value or 0 for value in column)


def unit_lines(units: Mapping[str, Sequence[Any]], width: int | None = None) -> str:
    """Return a table of units as text, without the columns in which nothing stands.

    Args:
        units: column → one value for each unit, as :func:`~neurofmx_wds.format.units.unit_table` returns it.
        width: columns of the terminal; None: as wide as it gets.
    """
    columns = {name: cells for name, cells in units.items() if any(cell is not None for cell in cells)}
    rows = [[_number(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    return f"{table(list(columns), rows, width)}\n\n{count(len(rows), 'unit')}".lstrip()


def _number(cell: Any) -> Any:
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell) if isinstance(cell, (bool, list)) else cell


def statistics_lines(summary: Mapping[str, Any], every: bool = False, width: int | None = None) -> str:
    """Return the statistics of a dataset as text: a line for each field, over all sources and columns.

    Args:
        summary: as :meth:`ShardedDatasetInfo.get_summary` gives it.
        every: a line for each column of each source instead.
        width: columns of the terminal; None: as wide as it gets.
    """
    sources = [source for source in summary["sources"] if "statistics" in source]
    if not sources:
        return f"{summary['shard_dir']}: its manifest has no statistics; the command stats writes them"
    header = ["field", "columns", "values", "NaN", "mean", "std", "min", "max"]
    if every:
        header[:2] = ["source", "field", "column"]
        rows = [row for source in sources for row in _statistics_of(source, summary["modalities"])]
    else:
        names = dict.fromkeys(name for source in sources for name in source["statistics"])
        rows = [_pooled_statistics(name, [s["statistics"][name] for s in sources if name in s["statistics"]])
                for name in names]  # fmt: skip
    return table(header, [[_number(cell) for cell in row] for row in rows], width)


def _statistics_of(source: Mapping[str, Any], modalities: Mapping[str, Any]) -> Iterator[list[Any]]:
    for name, about in source["statistics"].items():
        columns = source.get("fields", {}).get(name, {}).get("columns") or modalities.get(name, {}).get("columns")
        n = len(about["count"])
        names = columns if columns and len(columns) == n else range(n)
        for i, column in enumerate(names):
            yield [source.get("path", ""), name, str(column), *(about[key][i] for key in _STATISTICS)]


def _pooled_statistics(name: str, sources: Sequence[Mapping[str, Any]]) -> list[Any]:
    whole = merged(pooled(Moments.from_json(each)) for each in sources) or Moments.nothing(1)
    about, widths = whole.to_json(), {len(each["count"]) for each in sources}
    return [name, widths.pop() if len(widths) == 1 else None, *(about[key][0] for key in _STATISTICS)]


_STATISTICS = ("count", "nan", "mean", "std", "min", "max")
