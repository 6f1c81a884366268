"""Shared memory in which workers put batches, and out of which the trainer copies them.

Knows tensors and bundles of batches; knows nothing of shards, order or processes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.data

from .memory import ALIGNMENT, BatchMemory, Rows, is_plain, rows_of

BUNDLE, BUNDLE_BYTES = 16, 8 << 20  # batches, and their bytes, that a worker hands over at once

Place = tuple[int, torch.dtype, tuple[int, ...]]


@dataclass
class Parcel:
    """A batch on its way from a worker: its tensors lie in a shared slot.

    Attributes:
        batch: the batch, without them.
        tensors: field → where in the slot it begins, dtype and shape.
        worker, slot: whose slot it is.
        memory: the slot itself, the first time.
    """

    batch: dict[str, Any]
    tensors: dict[str, Place]
    worker: int
    slot: int
    memory: torch.Tensor | None


class Slots:
    """Worker's side: bundles of batches are put into a few shared slots, in turn; a pipeline stage.

    A DataLoader asks a worker for at most ``prefetch_factor`` bundles before it takes one, so with one slot's set more
    none is written while the trainer still copies from it.

    Args:
        depth: ``prefetch_factor``.
        bundle: batches handed over at once: each hop from process to process takes longer than reading a small one.
    """

    def __init__(self, depth: int, bundle: int = 1) -> None:
        self._size = depth, bundle
        self._slots = [torch.empty(0, dtype=torch.uint8)] * ((depth + 1) * bundle)
        self._current = 0
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in the current slot, or outside it while that is too small."""
        place = self._reserve(shape, dtype)
        return torch.empty(*shape, dtype=dtype) if place is None else _tensor_in(self._slots[self._current], place)

    def with_rows(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, Rows]:
        """Such a tensor, of a dtype that numpy has and with at least one row, and its bytes."""
        tensor = self.empty(shape, dtype)
        return tensor, rows_of(tensor.numpy())

    def _reserve(self, shape: Sequence[int], dtype: torch.dtype) -> Place | None:
        start, end = self._used, self._used + _aligned(shape, dtype)
        if end > len(self._slots[self._current]):
            return None
        self._used = end
        return start, dtype, tuple(shape)

    def __call__(self, batches: Iterable[Any]) -> Iterator[list[Any]]:
        """Stage: batches → bundles of parcels; whatever is no dict of tensors goes as it is."""
        parcels = self._packed(batches)
        while bundle := list(itertools.islice(parcels, self._size[1])):
            yield bundle

    def _packed(self, batches: Iterable[Any]) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        worker = info.id if info else 0
        known: set[int] = set()
        self._current, self._used = 0, 0
        for batch in batches:
            if isinstance(batch, dict):
                yield self._pack(batch, worker, known)
                self._current = (self._current + 1) % len(self._slots)
                self._used = 0
            else:
                yield batch

    def _pack(self, batch: dict[str, Any], worker: int, known: set[int]) -> Parcel:
        tensors = {name: value for name, value in batch.items() if is_plain(value)}
        slot = self._slots[self._current]
        places: dict[str, Place | None] = {}
        for name, tensor in tensors.items():
            if tensor.untyped_storage().data_ptr() == slot.untyped_storage().data_ptr() and len(slot):
                places[name] = (tensor.data_ptr() - slot.data_ptr(), tensor.dtype, tuple(tensor.shape))
            else:
                places[name] = self._reserve(tensor.shape, tensor.dtype)
        if None in places.values():  # the slot is too small: a new one for this batch and those to come
            self._used = 0
            size = sum(_aligned(tensor.shape, tensor.dtype) for tensor in tensors.values())
            slot = torch.empty(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
            self._slots[self._current] = slot
            known.discard(self._current)
            places = {name: self._reserve(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        found = {name: place for name, place in places.items() if place is not None}
        for name, place in found.items():
            target = _tensor_in(slot, place)
            if target.data_ptr() != tensors[name].data_ptr():
                target.copy_(tensors[name])
        rest = {name: None if name in found else value for name, value in batch.items()}
        memory = None if self._current in known or not found else slot
        known.add(self._current)
        return Parcel(rest, found, worker, self._current, memory)

    def __reduce__(self) -> tuple[type[Slots], tuple[int, int]]:
        return Slots, self._size


def unpack(bundles: Iterable[list[Any]], memory: BatchMemory) -> Iterator[Any]:
    """Trainer's side: copy each batch out of its slot, when it is asked for."""
    slots: dict[tuple[int, int], torch.Tensor] = {}
    for parcel in itertools.chain.from_iterable(bundles):
        if not isinstance(parcel, Parcel):
            yield parcel
            continue
        if parcel.memory is not None:
            slots[parcel.worker, parcel.slot] = parcel.memory
        batch, parcel.batch = parcel.batch, {}  # the bundle holds the parcel until it is all handed on
        for name, place in parcel.tensors.items():
            source = _tensor_in(slots[parcel.worker, parcel.slot], place)
            batch[name] = memory.empty(source.shape, source.dtype).copy_(source)
        yield batch
        del batch


def _aligned(shape: Sequence[int], dtype: torch.dtype) -> int:
    return -(-dtype.itemsize * math.prod(shape) // ALIGNMENT) * ALIGNMENT


def _tensor_in(slot: torch.Tensor, place: Place) -> torch.Tensor:
    start, dtype, shape = place
    return slot[start : start + dtype.itemsize * math.prod(shape)].view(dtype).view(shape)
