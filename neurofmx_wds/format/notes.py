"""What was left out of the sources of a dataset, and why, as lines for people.

Knows the reports on sources in a manifest; knows nothing of recordings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: Why windows and spikes of a recording are not in one part of a split; nothing is lost with them.
ELSEWHERE = "in the other parts of the split, or between them"
#: How reasons for what is dropped begin, and what helps.
_REMEDIES = {
    "outside the support of": "the first of --modalities decides where windows are",
    "outside the intervals given": "see --interval",
    "in invalid_times": "the file's own table says so",
    "segment shorter than a window": "--sequence-length makes windows shorter",
    "where no whole window fits": "--sequence-length makes windows shorter",
}
#: A field that was measured in a smaller share of the bins gets a line of its own.
_WELL_MEASURED = 0.9
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
        yield f"{name}: {n:,} window{'s' * (n != 1)} {_why(reason, 'dropped: ')}"
    spikes = source.get("spikes", {})
    because = spikes.get("outside_because", {})
    for reason, n in because.items():
        yield f"{name}: {n:,} spike{'s' * (n != 1)} {_why(reason, 'in no window: ')}"
    tails = source.get("bins_in_tails")
    if tails:
        yield f"{name}: {tails:,} bin{'s' * (tails != 1)} at the ends of segments fill no window"
    for field, share in source.get("measured", {}).items():
        if share < _WELL_MEASURED:
            remedy = f"--modalities {field}, before the others, cuts windows where it was measured"
            yield f"{name}: {percent(1 - share)} of {field} is NaN: not measured there ({remedy})"
    named = [f"{each.get('path')}/" for each in objects_not_taken(source)]
    for warning in source.get("warnings", []):
        path, left_out, _ = warning.partition(" left out: ")
        if not (left_out and f"{path}/".startswith(tuple(named))):
            yield f"{name}: {warning}"
    if "error" in source:
        yield f"{name}: left out: {source['error']}"


def _why(reason: str, before: str) -> str:
    if reason == ELSEWHERE:
        return f"are {reason}"
    remedy = next((text for start, text in _REMEDIES.items() if reason.startswith(start)), "")
    return f"{before}{reason}{f' ({remedy})' if remedy else ''}"


def percent(share: float) -> str:
    """Return a share in per cent, to a tenth; never 0 or 100 for what is not quite that.

    Example:
        >>> percent(0.4412), percent(0.99999), percent(1)
        ('44.1 %', '99.9 %', '100 %')
    """
    tenths = 1000 if share >= 1 else 0 if share <= 0 else min(999, max(1, round(share * 1000)))
    return f"{tenths / 10:g} %"


def coverage_lines(sources: Reports) -> list[str]:
    """Return how much of each field was measured, and by which rule it was found where windows are."""
    rules = Counter(str(source["support_rule"]) for source in sources if "support_rule" in source)
    several = len(sources) > 1
    lines = [f"  windows are cut: {rule}{f' ({n} sources)' if several else ''}" for rule, n in rules.items()]
    for source in [each for each in sources if each.get("measured")][:MOST_NOTES]:
        known = sorted(source["measured"].items(), key=lambda each: (each[1], each[0]))
        told = ", ".join(f"{field} {percent(share)}" for field, share in known)
        lines.append(f"  measured{f' of {name}' if several and (name := source.get('path')) else ''}: {told}")
    return lines


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
