"""Arrays, tensors and plain containers out of pickles and torch files, by an allow-list: nothing in them can run.

Knows bytes; knows nothing of tars, fields or loading.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnsafeDataError
from .limits import Budget, Buffer, Walk
from .npy import data_size
from .numpy_pickles import LEAVES, NUMPY, SCALARS, NumpyUnpickler, make_dtype
from .torch_pickles import TensorUnpickler, decode_torch_file
from .unpickler import Made, Unpickler


def _leaves() -> tuple[type, ...]:
    torch = sys.modules.get("torch")
    return LEAVES if torch is None else (*LEAVES, torch.Tensor, torch.dtype)


def _decode(read: Callable[[bytes, Budget], Any], what: str, data: Buffer) -> Any:
    """Return what `read` makes of the data; whatever it raises becomes a named error."""
    budget = Budget(len(data))
    try:
        value = read(bytes(data), budget)
        if Walk(_leaves()).count(value) > budget.most_values:
            raise UnsafeDataError(f"the {what} repeats its parts too often")
    except UnsafeDataError:
        raise
    except Exception as error:  # damage can raise anything
        raise UnsafeDataError(f"not a readable {what}: {type(error).__name__}: {str(error)[:200]}") from error
    return value


def decode_pickle(data: Buffer, encoding: str = "ASCII") -> Any:
    """Return the arrays, tensors and plain containers in a pickle; anything else is refused before it is built.

    Work and memory are bounded by the payload's size, whatever its opcodes are.

    Args:
        data: the pickle.
        encoding: how the strings of Python 2 are read; its arrays need ``"latin1"``.

    Raises:
        UnsafeDataError: the pickle names anything but numpy/torch array types, asks for more work than its size
            allows, or is damaged.

    Example:
        >>> decode_pickle(pickle.dumps({"spikes": np.zeros((100, 96))}))["spikes"].shape
        (100, 96)
        >>> decode_pickle(pickle.dumps(print))
        Traceback (most recent call last):
        neurofmx_wds.errors.UnsafeDataError: the pickle asks for builtins.print, not a plain array or container
    """
    return _decode(lambda raw, budget: TensorUnpickler(io.BytesIO(raw), budget, None, encoding).load(), "pickle", data)


def decode_torch(data: Buffer) -> Any:
    """Return the same out of a file that ``torch.save`` wrote, in its zip format or the one before it.

    Raises:
        UnsafeDataError: as :func:`decode_pickle`.
    """
    return _decode(decode_torch_file, "torch file", data)


_OBJECTS = object()  # stands for numpy's dtype of Python objects
_MAX_PARTS = 1000  # values in one object: a row of a table, a reference


def _any_dtype(unpickler: Unpickler, name: object, *_: object) -> Any:
    return _OBJECTS if name in ("O", "O8") else make_dtype(unpickler, name)


class _ObjectsUnpickler(NumpyUnpickler):
    """Reads one array of Python objects, as numcodecs pickles them, and hdmf-zarr's references in it."""

    def _load_newobj(self) -> None:
        args = self.stack.pop()
        if self.stack.pop() is not dict or args != ():
            raise UnsafeDataError("the pickle makes objects that are no references")
        self.append({})

    def _load_build(self) -> None:
        target, state = self.stack[-2:]
        if target is _OBJECTS:
            self.stack.pop()
        elif isinstance(target, np.dtype) and any(each[0] is _OBJECTS for each in (state[4] or {}).values()):
            self.stack[-2:] = [_OBJECTS]  # of rows with objects, which come as tuples
        elif isinstance(target, np.ndarray) and isinstance(state, tuple) and len(state) == 5 and state[2] is _OBJECTS:
            _, shape, _, _, items = state
            self.stack[-2:] = [self._objects(shape, items)]
        else:
            super()._load_build()

    def _objects(self, shape: Any, items: Any) -> np.ndarray:
        """Return an array of objects, which come in C order, whatever the array's is."""
        data_size(shape, np.dtype(object))
        if type(items) is not list or len(items) != math.prod(shape):
            raise UnsafeDataError(f"the pickle holds an array of shape {shape} without the objects for it")
        self.budget.spend(len(items))
        return np.fromiter(items, object).reshape(shape)

    opcodes = NumpyUnpickler.opcodes | {pickle.NEWOBJ: _load_newobj, pickle.BUILD: _load_build}


_ALLOWED = {**NUMPY, ("numpy", "dtype"): Made(_any_dtype), ("hdmf_zarr.utils", "ZarrReference"): dict}


def _decode_objects(data: bytes, budget: Budget) -> np.ndarray:
    found = _ObjectsUnpickler(io.BytesIO(data), _ALLOWED, budget, SCALARS).load()
    if not isinstance(found, np.ndarray) or found.dtype != object:
        raise UnsafeDataError("the pickle holds no array of objects")
    walk = Walk((np.generic,), (dict, list, tuple))
    if any(walk.count(each) > _MAX_PARTS for each in found.flat):
        raise UnsafeDataError(f"the pickle holds an object of more than {_MAX_PARTS} values")
    return found


def decode_objects(data: Buffer) -> np.ndarray:
    """Return an array of strings, numbers, None, and lists, tuples and dicts of a few of these, out of a pickle.

    A row of an array of rows with objects in them is a tuple.

    Raises:
        UnsafeDataError: the pickle holds anything else, or is damaged.
    """
    return _decode(_decode_objects, "pickle", data)
