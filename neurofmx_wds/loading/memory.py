"""Where batches live: buffers that are used again, and slots that workers share with the trainer.

A batch in fresh memory costs as much in page faults as in copying. Knows tensors; knows nothing of shards or order.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.utils.data

_KEPT_PER_KIND, _KEPT_KINDS = 8, 256
KEPT = 1.5  # times the most that was lent at once: an epoch's last batch, often smaller, then keeps memory of its own
_ALIGNMENT = 64
_HUGE = 4 << 20  # bytes from which numpy does so
BUNDLE, BUNDLE_BYTES = 16, 8 << 20  # batches, and their bytes, that a worker hands over at once


class Memory(Protocol):
    """Where a batch's tensors are made."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of this shape, its content undefined."""

    def with_rows(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, Rows]:
        """Such a tensor, of a dtype that numpy has and with at least one row, and its bytes."""


class Rows:
    """The bytes of some memory, as so many rows; kept with it, as making a view takes as long as a small copy.

    Attributes:
        whole: all bytes.
        size: of a row.
    """

    def __init__(self, whole: memoryview, n: int = 1) -> None:
        self.whole = whole
        self.size = len(whole) // n

    @functools.cached_property
    def each(self) -> list[memoryview]:
        """The bytes of each row."""
        return [self.whole[begin : begin + self.size] for begin in range(0, len(self.whole), self.size)]


_Kind = tuple[tuple[int, ...], torch.dtype]
_NUMPY_HAS = frozenset(  # others, such as bfloat16, are rare enough to be made anew
    torch.from_numpy(np.empty(0, kind)).dtype for kind in "?bhilBefdFD"
)


class _Lease(weakref.ref[Any]):
    """Notices when memory that was given out is free again."""

    __slots__ = ("base", "kind", "rows")
    base: np.ndarray
    rows: Rows
    kind: _Kind


def _on_huge_pages(like: np.ndarray) -> np.ndarray:
    """An array like this one (untouched so far), which numpy asks the system to put on pages of 2 MiB."""
    raw = np.empty(like.nbytes + _ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % _ALIGNMENT
    return raw[begin : begin + like.nbytes].view(like.dtype).reshape(like.shape)


class BatchMemory:
    """Gives out tensors, and gives their memory out again once nobody holds them any more.

    Args:
        pinned: give out page-locked memory. torch looks after that itself, because a copy to the device may still be
            under way when the tensor is gone.
    """

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned
        self._free: OrderedDict[_Kind, list[tuple[np.ndarray, Rows]]] = OrderedDict()
        self._leases: dict[int, _Lease] = {}  # a weak reference must itself be held
        self._returned: deque[_Lease] = deque()
        self._most_lent = 0  # bytes at once

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of this shape, its content undefined."""
        if self.pinned or dtype not in _NUMPY_HAS or not (shape and shape[0]):
            return torch.empty(*shape, dtype=dtype, pin_memory=self.pinned)
        return self._lend(shape, dtype)[0]

    def with_rows(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, Rows]:
        """Such a tensor, of a dtype that numpy has and with at least one row, and its bytes."""
        if not self.pinned:
            return self._lend(shape, dtype)
        tensor = self.empty(shape, dtype)
        return tensor, _rows_of(tensor.numpy())

    def _lend(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, Rows]:
        if self._returned:
            self._take_back()
        kind = (tuple(shape), dtype)
        try:
            base, rows = self._free[kind].pop()
        except (KeyError, IndexError):  # not looked up before: another thread could take the last one meanwhile
            self._make_room(dtype.itemsize * math.prod(shape))
            base = torch.empty(*shape, dtype=dtype).numpy()
            if base.nbytes >= _HUGE:
                base = _on_huge_pages(base)
            rows = _rows_of(base)
        array = base.view()  # lives as long as the tensor's storage
        lease = _Lease(array, self._returned.append)  # no Python code: it would swallow a Ctrl-C that falls into it
        lease.base, lease.rows, lease.kind = base, rows, kind
        self._leases[id(lease)] = lease
        return torch.from_numpy(array), rows

    def _take_back(self) -> None:
        """Let what nobody holds any more be lent again."""
        while self._returned:
            with contextlib.suppress(IndexError, KeyError):  # another thread took the last one, or let go of its kind
                lease = self._returned.popleft()
                self._leases.pop(id(lease), None)  # not there if a Ctrl-C came just before it was noted
                free = self._free.setdefault(lease.kind, [])
                if len(free) < _KEPT_PER_KIND:
                    free.append((lease.base, lease.rows))
                self._free.move_to_end(lease.kind)

    def _make_room(self, size: int) -> None:
        """Let go of what was lent longest ago where, with `size` bytes that are to be made, too much would be kept."""
        lent = size + sum(lease.base.nbytes for lease in list(self._leases.values()))
        self._most_lent = max(self._most_lent, lent)
        free = sum(base.nbytes for kept in list(self._free.values()) for base, _ in list(kept))
        with contextlib.suppress(KeyError):  # another thread has let go of all
            while free and (lent + free > KEPT * self._most_lent or len(self._free) >= _KEPT_KINDS):
                free -= sum(base.nbytes for base, _ in self._free.popitem(last=False)[1])

    def pin(self, batch: Any) -> Any:
        """The batch with its tensors in page-locked memory, where that is given out; whatever is no dict stays."""
        if not self.pinned or not isinstance(batch, dict):
            return batch
        return {
            name: self.empty(value.shape, value.dtype).copy_(value)
            if _is_plain(value) and not value.is_pinned()
            else value
            for name, value in batch.items()
        }

    def __reduce__(self) -> tuple[type[BatchMemory], tuple[bool]]:
        return BatchMemory, (self.pinned,)


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
        return tensor, _rows_of(tensor.numpy())

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
        tensors = {name: value for name, value in batch.items() if _is_plain(value)}
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


def _rows_of(array: np.ndarray) -> Rows:
    return Rows(array.reshape(-1).view(np.uint8).data, len(array))


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.requires_grad
        and type(value) is torch.Tensor
    )


def _aligned(shape: Sequence[int], dtype: torch.dtype) -> int:
    return -(-dtype.itemsize * math.prod(shape) // _ALIGNMENT) * _ALIGNMENT


def _tensor_in(slot: torch.Tensor, place: Place) -> torch.Tensor:
    start, dtype, shape = place
    return slot[start : start + dtype.itemsize * math.prod(shape)].view(dtype).view(shape)
