"""Numbers for sessions, units and subjects that stay when datasets grow or are mixed, for embeddings.

Knows what manifests say of recordings; knows nothing of samples' values or order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import StateError
from ..format.units import units_of
from ..storage.atomic import write_atomic
from ..storage.regular import read_regular
from .memory import Memory
from .sessions import Sessions, as_data_frame
from .views import Batch

_VERSION, _MAX_BYTES = 1, 1 << 30
SESSION, SUBJECT, UNIT = "session_index", "subject_index", "unit_index"


@dataclass(frozen=True)
class Vocabulary:
    """The sessions, units and subjects of datasets; the index of each is its place.

    Attributes:
        sessions: of each session its ``name``, ``content`` (checksum of the recording) and ``subject``.
        units: of each unit its ``key``, and what its recording's table says of it.
        subjects: of each subject its ``subject_id``, and what else is known of it.

    Example:
        >>> source = {"session_id": "s1", "sha256": "ab", "subject": {"subject_id": "m1"}, "units": {"id": [7, 8]}}
        >>> known = Vocabulary().extended(Sessions([source], "shards"))
        >>> [unit["key"] for unit in known.units], known.subjects
        (['s1/7', 's1/8'], [{'subject_id': 'm1'}])
    """

    sessions: list[dict[str, Any]] = field(default_factory=list)
    units: list[dict[str, Any]] = field(default_factory=list)
    subjects: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self.sessions)} sessions, {len(self.units)} units, {len(self.subjects)} subjects)"

    @property
    def unit_table(self) -> Any:
        """The units: a pandas DataFrame where pandas is installed, else column → list; the row is the index."""
        names = dict.fromkeys(name for unit in self.units for name in unit)
        return as_data_frame({name: [unit.get(name) for unit in self.units] for name in names})

    def extended(self, sessions: Sessions) -> Vocabulary:
        """Return the same with what it does not know yet of a dataset's sessions, units and subjects, at the end."""
        grown = Vocabulary(list(self.sessions), list(self.units), list(self.subjects))
        grown.indices_of(sessions, adding=True)
        return grown

    def indices_of(self, sessions: Sessions, adding: bool = False) -> Indices:
        """Return the indices of a dataset's sources and of their units.

        Args:
            sessions: the dataset's.
            adding: whether what is not known is added at the end.

        Raises:
            KeyError: something is not known, and not to be added.
        """
        known = {_content_of(each): i for i, each in enumerate(self.sessions)}
        names = {each["name"] for each in self.sessions}
        units = {each["key"]: i for i, each in enumerate(self.units)}
        subjects = {each["subject_id"]: i for i, each in enumerate(self.subjects)}
        of_sessions, of_subjects, of_units = [], [], []
        for source in sessions.sources:
            about = _session(source)
            if _content_of(about) not in known and adding:
                about["name"] = _unused(about["name"], names)
                names.add(about["name"])
                known[_content_of(about)] = len(self.sessions)
                self.sessions.append(about)
            number = known[_content_of(about)]
            of_sessions.append(number)
            of_subjects.append(self._subject(source.get("subject") or {}, subjects, adding))
            of_units.append(self._units(source, self.sessions[number]["name"], units, adding))
        return Indices(np.array(of_sessions, np.int64), np.array(of_subjects, np.int64), of_units)

    def _subject(self, subject: Mapping[str, Any], known: dict[str, int], adding: bool) -> int:
        name = subject.get("subject_id") or ""
        if name not in known and adding:
            known[name] = len(self.subjects)
            self.subjects.append({**subject, "subject_id": name})
        return known[name]

    def _units(self, source: Mapping[str, Any], session: str, known: dict[str, int], adding: bool) -> np.ndarray:
        table = units_of(source, session)
        for row, key in enumerate(table["key"]):
            if key not in known and adding:
                known[key] = len(self.units)
                self.units.append({name: cells[row] for name, cells in table.items() if name != "column"})
        return np.array([known[key] for key in table["key"]], np.int64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it into a JSON file, whole or not at all."""
        text = json.dumps({"version": _VERSION, **vars(self)}, ensure_ascii=False)
        write_atomic(Path(path), text.encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            StateError: it is no vocabulary, or damaged.
        """
        try:
            about = json.loads(read_regular(Path(path), _MAX_BYTES, StateError))
            parts = [about[name] for name in ("sessions", "units", "subjects")]
            good = about["version"] == _VERSION and all(
                _has(each, name) for each, name in zip(parts, _NAMES, strict=True)
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StateError(f"not a vocabulary: {type(error).__name__}: {error}", file=path) from error
        if not good:
            raise StateError("not a vocabulary of this version", file=path, remedy="save it again")
        return cls(*parts)


_NAMES = ("name", "key", "subject_id")


def _has(rows: Any, name: str) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get(name), str) for row in rows)


def _session(source: Mapping[str, Any]) -> dict[str, Any]:
    name = str(source.get("session_id") or source.get("identifier") or source.get("path", ""))
    content = source.get("sha256") or source.get("version") or source.get("path", "")
    return {"name": name, "session_id": name, "content": content,
            "subject": (source.get("subject") or {}).get("subject_id") or ""}  # fmt: skip


def _content_of(session: Mapping[str, Any]) -> tuple[Any, Any]:
    return session.get("session_id"), session.get("content")


def _unused(name: str, taken: set[str]) -> str:
    k, unused = 2, name
    while unused in taken:
        unused, k = f"{name}~{k}", k + 1
    return unused


@dataclass(frozen=True)
class Indices:
    """Indices of the sources of a dataset.

    Attributes:
        sessions, subjects: of each source, int64 (n_sources,).
        units: of each source those of its units, int64.
    """

    sessions: np.ndarray
    subjects: np.ndarray
    units: Sequence[np.ndarray]


@dataclass(frozen=True)
class Indexed:
    """Batches with ``session_index`` and ``subject_index`` (B,), and ``unit_index``: of each unit, or of each spike.

    Attributes:
        indices: of the sources; their units are those that batches hold.
        width: columns of ``unit_index`` where units are padded, with 0; None: as many as there are units.
    """

    indices: Indices
    width: int | None = None

    def fields(self, names: Sequence[str]) -> list[str]:
        """Return the fields, with the indices."""
        has_units = self._has_units and not {"spikes", "spike_units"}.isdisjoint(names)
        return list(dict.fromkeys([*names, SESSION, SUBJECT, *([UNIT] if has_units else [])]))

    def __call__(self, batch: Batch, sources: np.ndarray, memory: Memory) -> Batch:
        """Return the batch with the indices."""
        added: Batch = {
            SESSION: torch.from_numpy(self.indices.sessions[sources]),
            SUBJECT: torch.from_numpy(self.indices.subjects[sources]),
        }
        units = [self.indices.units[source] for source in sources.tolist()]
        if not self._has_units:
            return {**batch, **added}
        if "spike_units" in batch:
            added[UNIT] = self._of_spikes(batch, units)
        elif "spikes" in batch:
            added[UNIT] = self._of_units(units)
        return {**batch, **added}

    @property
    def _has_units(self) -> bool:
        """Whether any recording has a table of units."""
        return any(len(each) for each in self.indices.units)

    def _of_units(self, units: Sequence[np.ndarray]) -> Any:
        width = self.width
        if width is None:
            widths = {len(each) for each in units}
            if len(widths) > 1:
                return [torch.from_numpy(each.copy()) for each in units]
            width = widths.pop()
        padded = np.zeros((len(units), width), np.int64)
        for row, each in zip(padded, units, strict=True):
            row[: len(each)] = each
        return torch.from_numpy(padded)

    def _of_spikes(self, batch: Batch, units: Sequence[np.ndarray]) -> Any:
        numbers = batch["spike_units"]
        if "spike_offsets" in batch:
            counts = np.diff(np.asarray(batch["spike_offsets"]))
            parts = np.split(np.asarray(numbers), np.cumsum(counts)[:-1])
            found = [each[part] for each, part in zip(units, parts, strict=True)]
            return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *found]))
        if isinstance(numbers, torch.Tensor) and "spike_mask" in batch:
            there, index = np.asarray(batch["spike_mask"]), np.zeros(numbers.shape, np.int64)
            for row, each in enumerate(units):
                index[row, there[row]] = each[np.asarray(numbers[row])[there[row]]]
            return torch.from_numpy(index)
        each_row = [
            None if n is None else torch.from_numpy(u[np.asarray(n)]) for u, n in zip(units, numbers, strict=True)
        ]
        return torch.stack(each_row) if isinstance(numbers, torch.Tensor) else each_row  # type: ignore[arg-type]
