"""Batches as bytes: made by a worker, where what cannot be sent raises an error, and undone by the trainer.

Ordinary tensors stay in the worker's slot, and the bytes say where. Knows pickling and slots; knows nothing of what
batches mean.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from ..errors import NeurofmxError
from .memory import BatchMemory, is_plain
from .slots import Place, Slot, SlotWriter

CONNECTION_ERRORS = (ConnectionError, EOFError, FileNotFoundError)
_DEEPEST = 10_000  # levels of containers within each other: the C stack of a process has room for them
_REMEDY = "let transform, collate_fn and batch_transform return what can be pickled, or use num_workers=0"


class _Pickler(ForkingPickler):  # torch has taught it about other tensors
    def __init__(self, file: io.BytesIO, writer: SlotWriter) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._writer = writer

    def reducer_override(self, value: Any) -> Any:
        """Put ordinary tensors into the slot."""
        if is_plain(value):
            return tensor_at, tuple(self._writer.place(value))
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, parcel: bytes, slot: Slot, memory: BatchMemory) -> None:
        super().__init__(io.BytesIO(parcel))
        self._take = functools.partial(_take, slot, memory)  # no method: what it has made would hold it in a cycle

    def find_class(self, module: str, name: str) -> Any:
        """Let tensors be taken out of the slot."""
        return self._take if (module, name) == (__name__, tensor_at.__name__) else super().find_class(module, name)


def _take(slot: Slot, memory: BatchMemory, *place: Any) -> torch.Tensor:
    return slot.copy(Place(*place), memory)


def tensor_at(*place: Any) -> torch.Tensor:
    """Stand for a tensor in a parcel; unpacking takes it out of the slot instead of calling this."""
    raise NotImplementedError(f"a parcel is undone by {__name__}.unpack")


def pack(item: Any, writer: SlotWriter) -> bytes:
    """Return what a worker sends of a batch (or of what is left of one).

    Raises:
        NeurofmxError: something in it cannot be pickled.
    """
    try:
        return _dumped(item, writer)
    except Exception as error:
        raise unsendable(item, error, lambda value: _dumped(value, writer)) from error


def _dumped(item: Any, writer: SlotWriter) -> bytes:
    file = io.BytesIO()
    try:
        _Pickler(file, writer).dump(item)
    except RecursionError:  # JSON nests as deep as Python's limit allows, with little of the stack in use
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _DEEPEST))
        try:
            file = io.BytesIO()
            _Pickler(file, writer).dump(item)
        finally:
            sys.setrecursionlimit(limit)
    return file.getvalue()


def unsendable(item: Any, error: Exception, dumps: Callable[[Any], object]) -> NeurofmxError:
    """Return the error for an item that cannot be pickled. It names the sample and the field, where there are any.

    Args:
        item: a batch, a sample, or a list or tuple that holds one.
        error: raised when the item was pickled.
        dumps: pickles a value, or raises.
    """
    is_mapping, member = isinstance(item, Mapping), None
    parts = item.items() if is_mapping else enumerate(item) if isinstance(item, (list, tuple)) else ()
    for name, value in parts:
        try:
            dumps(value)
        except Exception as cause:
            if not is_mapping:
                return unsendable(value, cause, dumps)
            error, member = cause, str(name)
            break
    keys = item.get("__key__") if is_mapping else None
    first = keys[0] if isinstance(keys, list) and keys else keys
    key = first if isinstance(first, str) else None
    which = "a batch" if key is None else "the batch that begins with this sample"
    problem = f"a worker cannot send {which} to the trainer: {type(error).__name__}: {error}"
    return NeurofmxError(problem, sample=key, member=member, remedy=_REMEDY)


def is_death(error: Exception) -> bool:
    """Return whether an error is torch's word that a worker has died; its signal handler may raise it anywhere."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def unpack(parcel: bytes, slot: Slot, memory: BatchMemory) -> Any:
    """Return the batch of a parcel, its tensors in memory of their own.

    Args:
        parcel: what :func:`pack` returned.
        slot: where its tensors lie.
        memory: where they are copied to.

    Raises:
        NeurofmxError: something in it cannot be made again in this process.
    """
    try:
        return _Unpickler(parcel, slot, memory).load()
    except Exception as error:
        if is_death(error) or isinstance(error, CONNECTION_ERRORS):  # tensors of other kinds are asked for
            raise
        problem = f"a batch that a worker sent cannot be unpacked: {type(error).__name__}: {error}"
        raise NeurofmxError(problem, remedy=_REMEDY) from error
