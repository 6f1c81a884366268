"""The recordings of a dataset and their units, as its manifest lists them: whose each sample is, and what is chosen.

Knows manifests; knows nothing of batches or files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import join_some
from ..format.manifest import Manifest
from ..format.units import sessions_of, unit_table, units_of
from ..nwb.choosing import Choice

logger = logging.getLogger("neurofmx_wds")


@dataclass(frozen=True)
class Sessions:
    """The sources of a dataset in the order of its manifest; a source is known by its number there.

    Attributes:
        sources: what the manifest reports on each.
        where: the dataset, for errors.
        units: the rows of each source's units that are chosen; None: all.
        to_take: the rows that are still to be taken of what is read of each source; None: it is read as it shall be.
    """

    sources: Sequence[Mapping[str, Any]]
    where: str
    units: tuple[tuple[int, ...], ...] | None = None
    to_take: tuple[tuple[int, ...] | None, ...] | None = None

    @classmethod
    def of(cls, manifest: Manifest | None, where: str, n_samples: int) -> Sessions:
        """Return the sources that a manifest lists; where it lists none, the dataset as one source of all samples."""
        if manifest is not None and manifest.sources:
            return cls(manifest.sources, where)
        return cls(({"path": where, "windows": {"emitted": n_samples}},), where)

    @classmethod
    def joined(cls, parts: Sequence[Sessions]) -> Sessions:
        """Return the sources of several datasets, one after the other."""
        sources = [source for part in parts for source in part.sources]
        units = to_take = None
        if any(part.units is not None for part in parts):
            units = tuple(rows for part in parts for rows in part.units or map(_all_units, part.sources))
            to_take = tuple(rows for part in parts for rows in part.to_take or [None] * len(part.sources))
        return cls(sources, ", ".join(dict.fromkeys(part.where for part in parts)), units, to_take)

    @cached_property
    def names(self) -> list[str]:
        """What the session of each source is called, different for different recordings."""
        return sessions_of(self.sources)

    @cached_property
    def ends(self) -> np.ndarray:
        """Where the samples of each source end among all of the dataset, int64 (n_sources,)."""
        return np.cumsum([source.get("windows", {}).get("emitted", 0) for source in self.sources], dtype=np.int64)

    def require(self, n_samples: int, option: str) -> None:
        """Refuse an option that needs to know which sample is of which recording, where the manifest does not say.

        Raises:
            ValueError: naming the option and the dataset.
        """
        known = int(self.ends[-1]) if len(self.sources) else 0
        if known != n_samples:
            told = f"the manifest of {self.where} tells the source of {known} of {n_samples} samples"
            raise ValueError(f"{option}: {told}; convert the recordings with this package")

    @property
    def table(self) -> dict[str, list[Any]]:
        """The units that are chosen: see :func:`~neurofmx_wds.format.units.unit_table`."""
        return unit_table(self.sources, self.units)

    def choose(self, units: str, from_stored: bool = False) -> Sessions:
        """Return the same with only the units that fulfil an expression; a warning names sources of which none does.

        Args:
            units: the expression.
            from_stored: whether windows are stored with all units, and these still have to be taken.

        Raises:
            ValueError: no unit fulfils it, there is no such column, or values cannot be compared.
        """
        choice = Choice(units)
        try:
            choice.rows(self.table)  # raises where no source has the column, or values cannot be compared
        except ValueError as error:
            raise ValueError(f"units={units!r}: {error}") from None
        chosen = [self._rows(choice, source, name) for source, name in zip(self.sources, self.names, strict=True)]
        if not any(chosen):
            raise ValueError(f"units={units!r}: none of the {len(self.table['key'])} units of {self.where} fulfils it")
        without = [source.get("path", "") for source, rows in zip(self.sources, chosen, strict=True) if not rows]
        if without:
            logger.warning("units=%r: no unit of %s fulfils it; their samples have none", units, join_some(without))
        return Sessions(self.sources, self.where, tuple(chosen), tuple(chosen) if from_stored else None)

    def _rows(self, choice: Choice, source: Mapping[str, Any], session: str) -> tuple[int, ...]:
        own = units_of(source, session)
        table = {name: own.get(name, [None] * len(own["key"])) for name in choice.columns}
        return tuple(np.flatnonzero(choice.rows(table)).tolist())


def _all_units(source: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(range(len(source.get("units", {}).get("id", ()))))


def as_data_frame(table: dict[str, list[Any]]) -> Any:
    """Return a table as a pandas DataFrame where pandas is installed, else as it is."""
    try:
        from pandas import DataFrame  # type: ignore[import-untyped]
    except ImportError:
        return table
    return DataFrame(table)


NO_SESSIONS = Sessions((), "")
