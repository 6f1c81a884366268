"""The units of a dataset, as its manifest describes them: a table with a key for each unit.

Knows manifests; knows nothing of recordings or loading.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

#: Columns that come first, in this order.
FIRST = ("key", "session_id", "source", "column", "id")


def sessions_of(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what each source's session is called in the dataset, so that different recordings have different names.

    A session is called by its ``session_id``. Where another recording (with other bytes) of the dataset has that
    already, ``~2``, ``~3``, … follow, in the order of the sources.

    Example:
        >>> sessions_of([{"session_id": "s1", "sha256": "a"}, {"session_id": "s1", "sha256": "b"}])
        ['s1', 's1~2']
    """
    known: dict[tuple[str, Any], str] = {}
    names = []
    for source in sources:
        session = str(source.get("session_id") or source.get("identifier") or source.get("path", ""))
        content = session, source.get("sha256") or source.get("version") or source.get("path")
        if content not in known:
            taken = set(known.values())
            numbered = (f"{session}~{k}" for k in itertools.count(2))
            known[content] = next(name for name in itertools.chain([session], numbered) if name not in taken)
        names.append(known[content])
    return names


def unit_keys(source: Mapping[str, Any], session: str) -> list[str]:
    """Return the key of each unit of a source: ``session/id``, with a number where an id is repeated.

    Args:
        source: its report in the manifest.
        session: what its session is called in the dataset.
    """
    units = source.get("units", {})
    ids = units.get("id", [])
    known = units.get("key")
    if known is not None and len(known) == len(ids):  # given when it was converted: some of the units may be left out
        return [f"{session}/{key.rpartition('/')[2]}" for key in known]
    seen: Counter[Any] = Counter()
    keys = []
    for i in ids:
        seen[i] += 1
        keys.append(f"{session}/{i}" if seen[i] == 1 else f"{session}/{i}~{seen[i]}")
    return keys


def with_unit_keys(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the reports on sources with keys of units that are unique in the dataset."""
    named = zip(sources, sessions_of(sources), strict=True)
    return [
        {**source, "units": {**source["units"], "key": unit_keys(source, session)}} if "units" in source
        else dict(source)
        for source, session in named
    ]  # fmt: skip


def units_of(source: Mapping[str, Any], session: str) -> dict[str, list[Any]]:
    """Return what is known of the units of one source: column → one value for each unit; see :func:`unit_table`.

    Args:
        source: its report in the manifest.
        session: what its session is called in the dataset.
    """
    known, keys = source.get("units", {}), unit_keys(source, session)
    of_source = {"session_id": source.get("session_id"), "source": source.get("path", "")}
    first = {"key": keys, **{name: [value] * len(keys) for name, value in of_source.items()}}
    first["column"] = list(range(len(keys)))
    return {**first, **{name: cells for name, cells in known.items() if name not in first}}


def unit_table(
    sources: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[int]] | None = None
) -> dict[str, list[Any]]:
    """Return the units of a dataset: column → one value for each unit, None where a source does not say.

    ``key`` is unique in the dataset, ``column`` is the unit's place along the last axis of ``spikes``, and
    the other columns are those of the recordings' unit tables. Units that several sources share, such as those of a
    recording that was cut in two, stand once.

    Args:
        sources: the reports on sources, of the manifest.
        rows: which units of each source; by default all.

    Example:
        >>> unit_table([{"session_id": "s1", "path": "a.nwb", "units": {"id": [0, 0], "quality": ["good", "mua"]}}])
        {'key': ['s1/0', 's1/0~2'], 'session_id': ['s1', 's1'], 'source': ['a.nwb', 'a.nwb'], 'column': [0, 1], \
'id': [0, 0], 'quality': ['good', 'mua']}
    """
    units: dict[str, dict[str, Any]] = {}
    for i, (source, session) in enumerate(zip(sources, sessions_of(sources), strict=True)):
        own = units_of(source, session)
        taken = range(len(own["key"])) if rows is None else rows[i]
        for column, row in enumerate(taken):
            units.setdefault(own["key"][row], {**{name: cells[row] for name, cells in own.items()}, "column": column})
    names = dict.fromkeys((*FIRST, *(name for each in units.values() for name in each)))
    return {name: [each.get(name) for each in units.values()] for name in names}
