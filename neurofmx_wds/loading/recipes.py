"""Ways from the ids of a plan to what is delivered for it: a sample, a copied batch, or one that is made of samples.

Knows samples and collation; knows nothing of plans, errors that are suppressed, or processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from .interfaces import Reader
from .labels import label_column
from .memory import BatchMemory, Memory
from .options import Collate
from .samples import SampleMaker
from .transforms import BatchTransforms, SampleRngs, return_error


class Recipe(Protocol):
    """How the samples of a plan become what is delivered."""

    @property
    def reuses_memory(self) -> bool:
        """Whether the next batch may lie in the memory of the one before, once nobody holds that."""

    def read(self, ids: np.ndarray) -> Any:
        """Return what is delivered for samples, made together: ids of shape (B,), int64."""

    def make(self, ids: np.ndarray) -> Any:
        """Return what :meth:`join` takes of a single sample: ids of shape (1,); it raises where the sample is bad."""

    def join(self, ids: np.ndarray, made: Sequence[Any]) -> Any:
        """Return what is delivered for samples of which :meth:`make` has made something, without making it again."""


@dataclass(frozen=True, eq=False)
class SingleSample:
    """Plans of one row → samples.

    Attributes:
        maker: makes them.
    """

    reuses_memory: ClassVar[bool] = False
    maker: SampleMaker

    def read(self, ids: np.ndarray) -> Any:
        """Return the sample."""
        return self.maker.samples(ids, self.maker.rngs(ids))[0]

    make = read

    def join(self, ids: np.ndarray, made: Sequence[Any]) -> Any:
        """Return the sample that was made."""
        return made[0]


@dataclass(frozen=True, eq=False)
class CopiedBatch:
    """Plans → batches that are copied as they are stored.

    Attributes:
        reader: copies them.
        memory: where to; a worker's shared slots, for one.
    """

    reuses_memory: ClassVar[bool] = True
    reader: Reader
    memory: Memory | None

    def read(self, ids: np.ndarray) -> Any:
        """Return the batch."""
        return self.reader.read_batch(ids, self.memory)

    make = read

    def join(self, ids: np.ndarray, made: Sequence[Any]) -> Any:
        """Return the batch, read once more: there is no other work in it."""
        return self.read(ids)


@dataclass(frozen=True, eq=False)
class StoredBatch:
    """Plans → batches as they are stored, with other labels, or after functions of a batch.

    Attributes:
        maker: knows labels and random numbers.
        transforms: the functions.
        memory: where batches are made; a function may keep them, so it is no worker's slot.
    """

    reuses_memory: ClassVar[bool] = False
    maker: SampleMaker
    transforms: BatchTransforms
    memory: BatchMemory | None

    def read(self, ids: np.ndarray) -> Any:
        """Return the batch."""
        batch = self.maker.reader.read_batch(ids, self.memory)
        if self.maker.replaces_labels:
            batch["label"] = label_column(self.maker.labels(ids, batch.get("label"), batch["metadata"]))
        return _pinned(self.transforms(batch, self.maker.rngs(ids), ids), self.memory)

    make = read

    def join(self, ids: np.ndarray, made: Sequence[Any]) -> Any:
        """Return the batch, read once more: there is little other work in it."""
        return self.read(ids)


@dataclass(frozen=True, eq=False)
class CollatedBatch:
    """Plans → batches that a function makes of transformed samples.

    Attributes:
        maker: makes the samples.
        collate: the function; None: the batch is the list of them.
        fields: that every batch has, if only as a list of None.
        transforms: functions of a batch.
        memory: where page-locked batches are made.
    """

    reuses_memory: ClassVar[bool] = False
    maker: SampleMaker
    collate: Collate | None
    fields: Sequence[str]
    transforms: BatchTransforms
    memory: BatchMemory | None

    def read(self, ids: np.ndarray) -> Any:
        """Return the batch."""
        rngs = self.maker.rngs(ids)
        return self._batch(ids, self.maker.samples(ids, rngs), rngs)

    def make(self, ids: np.ndarray) -> tuple[Any, SampleRngs]:
        """Return a sample, and its random numbers, for functions that go on with them."""
        rngs = self.maker.rngs(ids)
        return self.maker.samples(ids, rngs)[0], rngs

    def join(self, ids: np.ndarray, made: Sequence[tuple[Any, SampleRngs]]) -> Any:
        """Return a batch of the samples that were made."""
        return self._batch(ids, [sample for sample, _ in made], SampleRngs.joined([rngs for _, rngs in made]))

    def _batch(self, ids: np.ndarray, samples: list[Any], rngs: SampleRngs) -> Any:
        return _pinned(self.transforms(self._collated(ids, samples), rngs, ids), self.memory)

    def _collated(self, ids: np.ndarray, samples: list[Any]) -> Any:
        if self.collate is None:
            return samples
        try:
            batch = self.collate(samples)
        except Exception as error:
            # Only now: a user's own collate_fn may take what is no dict.
            for sample_id, sample in zip(ids, samples, strict=True):
                if not isinstance(sample, Mapping):
                    raise return_error(self.maker.reader, "transform", "sample", sample, sample_id) from error
            raise
        return {**{name: [None] * len(samples) for name in self.fields}, **batch} if self.fields else batch


def _pinned(batch: Any, memory: BatchMemory | None) -> Any:
    return batch if memory is None else memory.pin(batch)
