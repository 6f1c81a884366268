"""Memory of batches, used again and again: fresh memory costs as much in page faults as copying a batch into it.

Knows tensors; knows nothing of shards or order.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.utils.data

_KEPT_PER_KIND, _KEPT_KINDS = 8, 256
KEPT = 1.5  # times the most that was lent at once: an epoch's last batch, often smaller, then keeps memory of its own
ALIGNMENT = 64
_HUGE = 4 << 20  # bytes from which numpy does so


class Memory(Protocol):
    """Where a batch's tensors are made."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of this shape, its content undefined."""

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
    """Return an array like this (untouched) one, for which numpy asks the system for pages of 2 MiB."""
    raw = np.empty(like.nbytes + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
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
        """Return a tensor of this shape, its content undefined."""
        if self.pinned or dtype not in _NUMPY_HAS or not (shape and shape[0]):
            return torch.empty(*shape, dtype=dtype, pin_memory=self.pinned)
        return self._lend(shape, dtype)[0]

    def with_rows(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, Rows]:
        """Such a tensor, of a dtype that numpy has and with at least one row, and its bytes."""
        if not self.pinned:
            return self._lend(shape, dtype)
        tensor = self.empty(shape, dtype)
        return tensor, rows_of(tensor.numpy())

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
            rows = rows_of(base)
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
        """Return the batch with its tensors in page-locked memory, if used; anything but a dict stays as it is."""
        if not self.pinned or not isinstance(batch, dict):
            return batch
        return {
            name: self.empty(value.shape, value.dtype).copy_(value)
            if is_plain(value) and not value.is_pinned()
            else value
            for name, value in batch.items()
        }

    def __reduce__(self) -> tuple[type[BatchMemory], tuple[bool]]:
        return BatchMemory, (self.pinned,)


def rows_of(array: np.ndarray) -> Rows:
    """Return the bytes of an array that is contiguous and has at least one row."""
    return Rows(array.reshape(-1).view(np.uint8).data, len(array))


def is_plain(value: object) -> bool:
    """Return whether a value is an ordinary tensor in this machine's memory, without a gradient."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.requires_grad
        and type(value) is torch.Tensor
    )
