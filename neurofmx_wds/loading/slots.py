"""Shared memory in which workers put tensors, and out of which the trainer copies them.

Knows tensors and files in memory; knows nothing of batches, shards or processes.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import torch

from .memory import ALIGNMENT, BatchMemory, Rows, rows_of

_MAPPING: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}  # keep no file handle of its own


class Place(NamedTuple):
    """Where a tensor lies in a slot.

    Attributes:
        start, stop: its first byte, and the one behind its last.
        dtype, shape: of the tensor.
    """

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Slot:
    """Memory shared by the trainer and a worker, as large as has been needed so far.

    It is a file that is in no directory: neither the size of ``/dev/shm`` bounds it, nor can it be left behind.
    """

    def __init__(self, handle: int | None = None) -> None:
        self._handle = _file_in_memory() if handle is None else handle
        weakref.finalize(self, os.close, self._handle)
        self._bytes = np.empty(0, np.uint8)

    def __len__(self) -> int:
        """Return how many bytes are mapped into this process."""
        return len(self._bytes)

    def grow(self, size: int) -> None:
        """Make it at least so large; called by the worker. What lies in it stays."""
        if size > len(self):
            size = 1 << (size - 1).bit_length()  # pages that are never written take no memory
            os.ftruncate(self._handle, size)
            self.map(size)

    def map(self, size: int) -> None:
        """Map it as large as a worker has made it; called by the trainer."""
        if size > len(self):
            self._bytes = np.frombuffer(mmap.mmap(self._handle, size, **_MAPPING), np.uint8)

    def tensor(self, place: Place) -> torch.Tensor:
        """Return the tensor at a place, without copying it."""
        if place.stop == place.start:
            return torch.empty(place.shape, dtype=place.dtype)
        return torch.from_numpy(self._bytes[place.start : place.stop]).view(place.dtype).view(place.shape)

    def copy(self, place: Place, memory: BatchMemory) -> torch.Tensor:
        """Return a copy of the tensor at a place."""
        tensor = memory.empty(place.shape, place.dtype)
        if place.stop > place.start:  # by numpy: torch would wake its threads, which takes longer than copying
            there = tensor.view(-1).view(torch.uint8).numpy()
            there[:] = self._bytes[place.start : place.stop]
        return tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return _slot_of, (DupFd(self._handle),)


def _file_in_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("neurofmx_wds")
    with tempfile.TemporaryFile() as file:  # not on Linux
        return os.dup(file.fileno())


def _slot_of(handle: Any) -> Slot:
    return Slot(handle.detach())


class SlotWriter:
    """Worker's side: puts tensors into its slots, all those of a bundle of batches into one; then into the next.

    A DataLoader asks a worker for at most ``prefetch_factor`` bundles before it takes one, so with one slot more none
    is written while the trainer still copies from it.

    Attributes:
        slots: the worker's; set before a tensor is made.
        current: which of them is being written.
    """

    def __init__(self) -> None:
        self.slots: Sequence[Slot] = ()
        self.current = -1
        self._used = 0
        self._made: dict[int, Place] = {}

    def next_slot(self) -> None:
        """Write into the next slot, from its start."""
        self.current = (self.current + 1) % len(self.slots)
        self._used = 0
        self._made.clear()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor in the current slot, its content undefined."""
        place = self._reserve(shape, dtype)
        tensor = self.slots[self.current].tensor(place)
        self._made[tensor.data_ptr()] = place
        return tensor

    def with_rows(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, Rows]:
        """Return such a tensor, of a dtype that numpy has and with at least one row, and its bytes."""
        tensor = self.empty(shape, dtype)
        return tensor, rows_of(tensor.numpy())

    def place(self, tensor: torch.Tensor) -> Place:
        """Return where an ordinary tensor lies in the current slot; it is copied there unless it was made there."""
        made = self._made.get(tensor.data_ptr())
        if made and tensor.is_contiguous() and (made.dtype, made.shape) == (tensor.dtype, tuple(tensor.shape)):
            return made
        place = self._reserve(tensor.shape, tensor.dtype)
        self.slots[self.current].tensor(place).copy_(tensor)
        return place

    def _reserve(self, shape: Sequence[int], dtype: torch.dtype) -> Place:
        place = Place(self._used, self._used + dtype.itemsize * math.prod(shape), dtype, tuple(shape))
        self.slots[self.current].grow(place.stop)
        self._used = -(-place.stop // ALIGNMENT) * ALIGNMENT
        return place
