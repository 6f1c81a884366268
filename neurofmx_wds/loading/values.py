"""The values that samples have of a column, such as their session or a label, as numbers.

Knows readers, manifests and metadata; knows nothing of order or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import available_hint
from ..format.manifest import recording_group
from .dataset import OpenDataset
from .readers import ShardReader
from .selection import values_of
from .views import ViewedReader


@dataclass(frozen=True)
class Column:
    """The value of each sample of a column, as a number.

    Attributes:
        reader: of the samples.
        values: what the numbers stand for.
        numbers: int64, of each source of the dataset, or of each of its samples.
        of_sources: whether they are of sources.
    """

    reader: Any
    values: list[Any]
    numbers: np.ndarray
    of_sources: bool

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each sample's value: int64 (n,)."""
        places = self.reader.sources(ids) if self.of_sources else self.reader.dataset_ids(ids)
        return np.asarray(self.numbers[places])


def column_of(opened: OpenDataset, name: str, option: str) -> Column:
    """Return what samples have of a column: the session or subject of their recording, or a name of their metadata.

    Args:
        opened: the dataset; of mixtures, and of windows that are cut while loading, only session and subject are known.
        name: "session_id", "subject", "label", or another name.
        option: the argument that asks for it, for errors.

    Raises:
        ValueError: the samples do not have it.
    """
    reader = as_stored(opened.reader)
    sources = opened.sessions.sources
    if name in ("session_id", "subject") and _are_known(opened, reader):
        values = opened.sessions.names if name == "session_id" else [recording_group(s, "subject") for s in sources]
        if None not in values:
            return Column(reader, *_numbered(values), of_sources=True)
    if not isinstance(reader, ShardReader):
        raise ValueError(
            f"{option}={name!r}: of mixtures and windows cut at load, only session_id and subject are known"
        )
    values = values_of(reader.shards, name)
    if None in values:
        hint = available_hint(reader.metadata(0), name)
        raise ValueError(f"{option}={name!r}: some samples have no {name} in their metadata; {hint}")
    return Column(reader, *_numbered(values), of_sources=False)


def as_stored(reader: Any) -> Any:
    """Return the reader below what views change of its batches."""
    return reader.reader if isinstance(reader, ViewedReader) else reader


def _are_known(opened: OpenDataset, reader: object) -> bool:
    sources = opened.sessions.sources
    if not len(sources) or not all("session_id" in source for source in sources):
        return False
    return not isinstance(reader, ShardReader) or int(opened.sessions.ends[-1]) == reader.shards.n_samples


def _numbered(values: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """Return the different values, sorted by their text, and the number of each value among them: int64 (n,)."""
    different = sorted(set(values), key=str)
    number = {value: i for i, value in enumerate(different)}
    return different, np.array([number[value] for value in values], np.int64)
