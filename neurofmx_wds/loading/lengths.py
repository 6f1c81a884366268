"""Composed stages: ``batched``, and how many items come out of a stage.

Knows webdataset's stages; knows nothing of what flows through them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import webdataset as wds

from .options import Collate

_ONE_FOR_ONE = (  # stages of webdataset's that hand on an item for each that they take
    wds.filters._decode, wds.filters._extract_keys, wds.filters._map, wds.filters._map_dict, wds.filters._map_tuple,
    wds.filters._rename, wds.filters._rename_keys, wds.filters._shuffle, wds.filters._to_tuple,
)  # fmt: skip


@dataclass(frozen=True)
class Batched:
    """Stage: samples → batches.

    Attributes:
        size: samples in a batch.
        collate: what makes a batch of them; None: it is their list.
        partial: whether the last batch may have fewer.
    """

    size: int
    collate: Collate | None
    partial: bool

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"batchsize must be positive, not {self.size}")

    def __call__(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches."""
        samples = iter(samples)
        while batch := list(itertools.islice(samples, self.size)):
            if self.partial or len(batch) == self.size:
                yield batch if self.collate is None else self.collate(batch)


def length_after(stage: Any, length: int) -> int:
    """How many items come out of a stage that gets so many.

    Raises:
        TypeError: that is not known.
    """
    if isinstance(stage, Batched):
        return length // stage.size + (stage.partial and length % stage.size > 0)
    if isinstance(stage, wds.filters.FilterFunction) and stage.f in _ONE_FOR_ONE:
        return length
    remedy = "count them, and say it by with_length(n)"
    raise TypeError(f"the length is not known after {stage!r}, which may drop items or make several of one: {remedy}")
