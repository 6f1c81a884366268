"""What is changed of batches while they are read, such as which units they hold; and a reader of changed batches.

Knows batches and the recordings that samples are of; knows nothing of files, order or transforms.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import available_hint
from .collate import stack, to_array
from .interfaces import Reader
from .memory import BatchMemory, Memory

Batch = dict[str, Any]
AsDtypes = Any
"""A dtype of ``spikes``, or field → dtype, each as torch, numpy or a name says it."""


class View(Protocol):
    """A change of batches that is a function of each sample alone: what else is in the batch has no influence."""

    def fields(self, names: Sequence[str]) -> list[str]:
        """Return the fields that batches have after it, of those that they had before."""

    def __call__(self, batch: Batch, sources: np.ndarray, memory: Memory) -> Batch:
        """Return the changed batch.

        Args:
            batch: field → tensor of shape (B, …), or a list of B.
            sources: number of each sample's source in the manifest, int64 (B,).
            memory: where new tensors are made.
        """


class SourcedReader(Reader, Protocol):
    """A reader that knows of which recording a sample is."""

    def sources(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each sample's source in the manifest, int64 (B,)."""


@dataclass(eq=False)
class ViewedReader:
    """Reads samples and batches of another reader, changed.

    Attributes:
        reader: the other one.
        views: the changes, in the order in which they are made.
    """

    reader: SourcedReader
    views: Sequence[View]
    _memory: BatchMemory = field(default_factory=BatchMemory)

    @property
    def where(self) -> str:
        """Where the samples are, for people."""
        return self.reader.where

    @property
    def fields(self) -> Sequence[str]:
        """Fields that every batch has."""
        names: Sequence[str] = self.reader.fields
        for view in self.views:
            names = view.fields(names)
        return names

    @property
    def sample_bytes(self) -> int | None:
        """About how many bytes are copied for a sample."""
        return self.reader.sample_bytes

    @property
    def open_bytes(self) -> int:
        """Bytes of memory that everything kept open for reading takes, roughly."""
        return self.reader.open_bytes

    def expect_share(self, share: float) -> None:
        """Prepare for reading this share of the samples in this process."""
        self.reader.expect_share(share)

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> Batch:
        """Read samples as a batch, and change it."""
        memory = memory or self._memory
        batch = self.reader.read_batch(ids, memory)
        return self._changed(batch, self.reader.sources(ids), memory) if len(ids) else batch

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Read samples, and change each."""
        samples, sources = self.reader.read_samples(ids), self.reader.sources(ids)
        return [self._changed_alone(sample, sources[i : i + 1]) for i, sample in enumerate(samples)]

    def _changed(self, batch: Batch, sources: np.ndarray, memory: Memory) -> Batch:
        for view in self.views:
            batch = view(batch, sources, memory)
        return batch

    def _changed_alone(self, sample: dict[str, Any], source: np.ndarray) -> dict[str, Any]:
        whole = {name: stack([value]) for name, value in sample.items()}
        changed = self._changed(whole, source, self._memory)
        alone = {name: values[0] for name, values in changed.items()}
        return {name: _single(value) for name, value in alone.items() if value is not None}

    def of_epoch(self, seed: int, epoch: int) -> ViewedReader:
        """Return the reader of an epoch."""
        reader: Any = self.reader.of_epoch(seed, epoch)
        return replace(self, reader=reader)

    def sources(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each sample's source in the manifest, int64 (B,)."""
        return self.reader.sources(ids)

    @property
    def prefetch_bytes(self) -> int:
        """How much is requested ahead from a remote place, in bytes."""
        return int(getattr(self.reader, "prefetch_bytes", 0))

    @property
    def expect(self) -> Any:
        """The function that requests samples ahead; None where nothing is requested ahead."""
        return getattr(self.reader, "expect", None)

    def __copy__(self) -> ViewedReader:
        return replace(self, reader=copy.copy(self.reader), _memory=BatchMemory())

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return numbers that stay with the samples whatever is selected."""
        return self.reader.dataset_ids(ids)

    def file(self, sample_id: int) -> Path | None:
        """Return the file that holds a sample; None where no single file does."""
        return self.reader.file(sample_id)

    def name(self, sample_id: int) -> tuple[Path | None, str]:
        """Return the file and the key of a sample, for error messages."""
        return self.reader.name(sample_id)


@dataclass(frozen=True)
class FromSource:
    """A change of batches of one dataset of a mixture, whose sources are counted on from those of the datasets before.

    Attributes:
        view: the change.
        first: sources in the datasets before.
    """

    view: View
    first: int

    def fields(self, names: Sequence[str]) -> list[str]:
        """Return the fields that batches have after it."""
        return self.view.fields(names)

    def __call__(self, batch: Batch, sources: np.ndarray, memory: Memory) -> Batch:
        """Return the changed batch."""
        return self.view(batch, sources + self.first, memory)


def _single(value: Any) -> Any:
    return to_array(value) if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class TakeUnits:
    """Keeps some of the units of stored windows.

    Attributes:
        rows: of each source, the units to keep, in this order; None: all.
    """

    rows: tuple[tuple[int, ...] | None, ...]

    def fields(self, names: Sequence[str]) -> list[str]:
        """Return the same fields."""
        return list(names)

    def __call__(self, batch: Batch, sources: np.ndarray, memory: Memory) -> Batch:
        """Return the batch with the chosen columns of spikes and their mask, and the chosen units' spike times."""
        rows = [self.rows[source] for source in sources.tolist()]
        if not any(each is not None for each in rows):
            return batch
        dense: list[str] = [name for name in ("spikes", "spikes_mask") if name in batch]
        changed = {name: _columns(batch[name], rows, memory) for name in dense}
        if "spike_units" in batch:
            changed |= _events(batch, rows)
        return {**batch, **changed}


_Rows = Sequence[tuple[int, ...] | None]


def _columns(values: Any, rows: _Rows, memory: Memory) -> Any:
    first = rows[0]
    if isinstance(values, torch.Tensor) and first is not None and len(set(rows)) == 1:
        taken = memory.empty((*values.shape[:-1], len(first)), values.dtype)
        return torch.index_select(values, -1, torch.tensor(first, dtype=torch.int64), out=taken)
    pairs = zip(values, rows, strict=True)
    return stack([v if v is None or taken is None else to_array(v)[..., list(taken)] for v, taken in pairs])


def _events(batch: Batch, rows: _Rows) -> Batch:
    kept: dict[str, list[Any]] = {"spike_times": [], "spike_units": []}
    for times, units, taken in zip(batch["spike_times"], batch["spike_units"], rows, strict=True):
        if units is not None and taken is not None:
            number = np.full(1 + max((*taken, int(units.max()) if len(units) else 0)), -1, np.int64)
            number[list(taken)] = np.arange(len(taken))
            new = number[np.asarray(units)]
            times, units = np.asarray(times)[new >= 0], new[new >= 0].astype(np.asarray(units).dtype)
        kept["spike_times"].append(times)
        kept["spike_units"].append(units)
    return {name: stack(values) for name, values in kept.items()}


@dataclass(frozen=True)
class AsDtype:
    """Turns arrays of numbers into another dtype, such as counts that are stored as uint8 into float32.

    Attributes:
        dtypes: field → its dtype.
    """

    dtypes: Mapping[str, torch.dtype]

    def fields(self, names: Sequence[str]) -> list[str]:
        """Return the same fields."""
        return list(names)

    def __call__(self, batch: Batch, sources: np.ndarray, memory: Memory) -> Batch:
        """Return the batch with the fields in their dtype."""
        changed = {name: _turned(batch[name], dtype, memory) for name, dtype in self.dtypes.items() if name in batch}
        return {**batch, **changed}


def _turned(values: Any, dtype: torch.dtype, memory: Memory) -> Any:
    if isinstance(values, torch.Tensor):
        return values if values.dtype == dtype else memory.empty(values.shape, dtype).copy_(values)
    return [value.to(dtype) if isinstance(value, torch.Tensor) else value for value in values]


def dtypes_of(given: AsDtypes, fields: Sequence[str]) -> dict[str, torch.dtype]:
    """Return what ``as_dtype=`` means for the fields of a dataset.

    Raises:
        ValueError: there is no such field.
    """
    if not isinstance(given, Mapping):
        names = [name for name in fields if name == "spikes"]
        if not names:
            raise ValueError(f"as_dtype={given!r} is about spikes, and there are none; name fields: {{field: dtype}}")
        return dict.fromkeys(names, torch_dtype_of(given))
    for name in given:
        if name not in fields:
            raise ValueError(f"as_dtype: no field {name!r}; {available_hint(sorted(fields), name)}")
    return {name: torch_dtype_of(dtype) for name, dtype in given.items()}


def torch_dtype_of(given: Any) -> torch.dtype:
    """Return a dtype of torch by its name, or as numpy or torch call it.

    Raises:
        ValueError: it is none of numbers.
    """
    found = given if isinstance(given, torch.dtype) else None
    if found is None:
        try:
            found = torch.from_numpy(np.empty(0, np.dtype(given))).dtype
        except TypeError:
            found = getattr(torch, str(given), None)
    if not isinstance(found, torch.dtype) or found == torch.bool:
        raise ValueError(f"as_dtype: {given!r} is no dtype of numbers, such as float32")
    return found
