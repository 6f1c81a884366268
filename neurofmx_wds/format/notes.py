"""What was left out of the sources of a dataset, and why, as lines for people.

Knows the reports on sources in a manifest; knows nothing of recordings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: Lines of each kind that are shown by default.
MOST_NOTES, MOST_NOT_TAKEN = 20, 6

Reports = Sequence[Mapping[str, Any]]


def note_lines(sources: Reports, every: bool = False) -> list[str]:
    """Return what was dropped or is doubtful, and the objects that were not taken.

    Args:
        sources: the reports on the sources, as in a manifest.
        every: all of it; by default the first lines.
    """
    notes = [f"  {line}" for source in sources for line in _notes_on(source)]
    objects = [f"    {line}" for line in _not_taken(sources)]
    heading = ["  objects that hold data and are not taken:"] if objects else []
    return [*_first(notes, MOST_NOTES, every), *heading, *_first(objects, MOST_NOT_TAKEN, every)]


def _first(lines: list[str], most: int, every: bool) -> list[str]:
    rest = len(lines) - most
    if every or rest <= 1:
        return lines
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return [*lines[:most], f"{indent}and {rest} more: --all shows them, and dataset_metadata.json has them"]


def _notes_on(source: Mapping[str, Any]) -> Iterator[str]:
    name = source.get("path", "")
    for reason, n in source.get("windows", {}).get("dropped", {}).items():
        yield f"{name}: {n:,} window{'s' * (n != 1)} dropped: {reason}"
    tails = source.get("bins_in_tails")
    if tails:
        yield f"{name}: {tails:,} bin{'s' * (tails != 1)} at the ends of segments fill no window"
    named = [f"{each.get('path')}/" for each in objects_not_taken(source)]
    for warning in source.get("warnings", []):
        path, left_out, _ = warning.partition(" left out: ")
        if not (left_out and f"{path}/".startswith(tuple(named))):
            yield f"{name}: {warning}"
    if "error" in source:
        yield f"{name}: left out: {source['error']}"


def _not_taken(sources: Reports) -> list[str]:
    """Return a line for each object; objects that are alike in several sources share one."""
    where: dict[tuple[str, ...], list[str]] = {}
    for source in sources:
        for each in objects_not_taken(source):
            key = tuple(str(each.get(name, "")) for name in ("path", "type", "why", "take"))
            where.setdefault(key, []).append(str(source.get("path", "")))
    lines = []
    for (path, kind, why, take), names in sorted(where.items()):
        of = "" if len(sources) == 1 else f" of {names[0]}" if len(names) == 1 else f" of {len(names)} sources"
        lines.append(f"{path}{f' ({kind})' if kind else ''}{of}: {why}{f'; {take} takes it' if take else ''}")
    return lines


def objects_not_taken(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the objects that were not taken of a source, as its report has them."""
    found = source.get("not_taken")
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
