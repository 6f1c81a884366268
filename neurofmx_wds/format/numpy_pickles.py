"""What pickles may make of numpy: arrays, scalars and dtypes, each checked before numpy sees it.

Knows nothing of torch or files.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from ..errors import UnsafeDataError
from .npy import count_parts, data_size
from .unpickler import Made, Unpickler

SCALARS = (np.number, np.bool_, np.datetime64, np.character)  # whose hash is quick
LEAVES = (np.ndarray, np.generic, np.dtype)
_LONGEST_TYPE = 32  # characters
_ITEM = 16  # what an item of a set or dictionary is charged, which takes more memory than a byte
_numpy_scalar: Any = np.float64(0).__reduce__()[0]


def _refuse(what: str) -> UnsafeDataError:
    return UnsafeDataError(f"the pickle {what} in an unusual way")


def make_dtype(unpickler: Unpickler, name: object = None, *_: object) -> np.dtype[Any]:
    """Make what a dtype's name says."""
    if type(name) is not str or len(name) > _LONGEST_TYPE or not name.lstrip("<>=|").isalnum():
        raise _refuse("names a dtype")
    dtype = np.dtype(name, copy=True)  # a copy of its own: its state is set next
    if dtype.hasobject:
        raise UnsafeDataError("the pickle holds an array of Python objects")
    return dtype


def set_dtype_state(unpickler: Unpickler, dtype: np.dtype[Any], state: Any) -> None:
    """Give a dtype the state in a pickle, by way of numpy's checked constructors.

    numpy's own ``__setstate__`` believes any offset and any flag: such a dtype reads outside its array.
    """
    if type(state) is not tuple or len(state) < 8:
        raise _refuse("describes a dtype")
    _, order, base, names, fields, itemsize, _, _, *unit = state
    if order not in ("<", ">", "=", "|"):
        raise _refuse("describes a dtype")
    if names:
        safe = _structured(unpickler, names, fields, itemsize)
    elif base:
        safe = _subarray(base)
    elif unit and dtype.kind in "mM":
        safe = _with_unit(dtype.kind, unit[0]).newbyteorder(order)
    else:
        safe = dtype.newbyteorder(order)
    if safe.hasobject or safe.itemsize != dtype.itemsize:
        raise UnsafeDataError("the pickle holds an array of Python objects, or of an impossible type")
    count_parts(safe, unpickler.budget.spend)
    dtype.__setstate__(safe.__reduce__()[2])  # type: ignore[attr-defined]


def _structured(unpickler: Unpickler, names: Any, fields: Any, itemsize: Any) -> np.dtype[Any]:
    if type(names) is not tuple or not all(type(name) is str for name in names) or type(itemsize) is not int:
        raise _refuse("describes a dtype")
    unpickler.budget.spend(len(names))
    formats, offsets, titles = [], [], []
    for name in names:
        kind, offset, *title = fields[name]
        if not isinstance(kind, np.dtype) or type(offset) is not int or not all(type(each) is str for each in title):
            raise _refuse("describes a dtype")
        formats.append(kind)
        offsets.append(offset)
        titles.append(title[0] if title else None)
    about: Any = {"names": list(names), "formats": formats, "offsets": offsets, "titles": titles}
    about["itemsize"] = itemsize
    return np.dtype(about)


def _subarray(base: Any) -> np.dtype[Any]:
    kind, shape = base
    if not isinstance(kind, np.dtype) or not _is_shape(shape if type(shape) is tuple else (shape,)):
        raise _refuse("describes a dtype")
    return np.dtype((kind, shape))


def _with_unit(kind: str, about: Any) -> np.dtype[Any]:
    name, count = about[1][:2]
    if type(name) is not bytes or type(count) is not int:
        raise _refuse("describes a dtype")
    return np.dtype(f"{kind}8[{count}{name.decode()}]")


def _is_shape(shape: object) -> bool:
    return type(shape) is tuple and len(shape) <= 64 and all(type(n) is int and n >= 0 for n in shape)


def as_bytes(raw: object) -> bytes | bytearray:
    """Return the bytes of an array or scalar in a pickle; those of Python 2 are text, read as latin1."""
    if type(raw) is str:
        return raw.encode("latin1")
    if type(raw) is not bytes and type(raw) is not bytearray:
        raise _refuse("holds bytes")
    return raw


def _check_data(unpickler: Unpickler, shape: object, dtype: object, raw: bytes | bytearray) -> np.dtype[Any]:
    if not isinstance(dtype, np.dtype) or type(shape) is not tuple:
        raise _refuse("builds an array")
    if data_size(shape, dtype, unpickler.budget.spend) != len(raw):
        raise UnsafeDataError(f"the pickle holds an array of shape {shape} without the bytes for it")
    unpickler.budget.spend(len(raw))
    return dtype


def set_array_state(unpickler: Unpickler, array: np.ndarray, state: Any) -> None:
    """Give an array its shape, dtype and bytes."""
    if type(state) is not tuple:
        raise _refuse("builds an array")
    shape, dtype, fortran, data = state[-4:]
    raw = data if type(data) is bytes else bytes(as_bytes(data))
    whole: Any = 1, shape, _check_data(unpickler, shape, dtype, raw), bool(fortran), raw
    array.__setstate__(whole)


def _reconstruct(unpickler: Unpickler, kind: object, shape: object, _typecode: object) -> np.ndarray:
    if kind is not np.ndarray or shape != (0,):
        raise _refuse("builds an array")
    return np.empty((0,), "b")


def _frombuffer(
    unpickler: Unpickler, buffer: object, dtype: object, shape: object, order: object, axes: object = None
) -> np.ndarray:
    """Return what numpy's function of this name makes, which pickles of protocol 5 call."""
    raw = as_bytes(buffer)
    array: Any = np.frombuffer(raw, _check_data(unpickler, shape, dtype, raw))
    if not (axes is None or _is_shape(axes)) or order not in ("C", "F", "K"):
        raise _refuse("builds an array")
    array = array.reshape(shape, order="F" if order == "F" else "C")
    return (array if axes is None else array.transpose(axes)).copy(order="K")


def _scalar(unpickler: Unpickler, dtype: object, raw: object = b"") -> np.generic:
    data = bytes(as_bytes(raw))
    if _check_data(unpickler, (), dtype, data).subdtype:
        raise _refuse("builds a number")
    return _numpy_scalar(dtype, data)


def _encode_latin1(unpickler: Unpickler, text: object, encoding: object = "latin1") -> bytes:
    """Return bytes that Python 3 pickled as Python 2 would."""
    if type(text) is not str or encoding != "latin1":
        raise _refuse("encodes text")
    unpickler.budget.spend(len(text))
    return text.encode("latin1")


def _complex(unpickler: Unpickler, real: object, imag: object = 0.0) -> complex:
    if type(real) is not float or type(imag) is not float:
        raise _refuse("builds a number")
    return complex(real, imag)


def _set(unpickler: Unpickler, items: object = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise _refuse("builds a set")
    unpickler.budget.spend(_ITEM * len(items))  # type: ignore[arg-type]
    unpickler.check_keys(items, 0)  # type: ignore[arg-type]
    return set(items)  # type: ignore[call-overload]


def _frozenset(unpickler: Unpickler, items: object = ()) -> frozenset[Any]:
    return frozenset(_set(unpickler, items))


def _ordered(unpickler: Unpickler, items: object = None) -> OrderedDict[Any, Any]:
    """Return an ordered dictionary, which Python 2 pickled with its items as a list of pairs."""
    pairs = [] if items is None else items
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise _refuse("builds a dictionary")
    unpickler.budget.spend(_ITEM * len(pairs))
    unpickler.check_keys([key for key, _ in pairs], 0)
    return OrderedDict(pairs)


class NumpyUnpickler(Unpickler):
    """Reads arrays, numpy's scalars and dtypes, and plain containers."""

    def build(self, target: Any, state: Any) -> None:
        """Give a dtype or an array its state."""
        if isinstance(target, np.dtype):
            set_dtype_state(self, target, state)
        elif isinstance(target, np.ndarray):
            set_array_state(self, target, state)
        else:
            super().build(target, state)


def _allowed() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,  # a name only: called, it would allocate any shape
        ("numpy", "dtype"): Made(make_dtype),
        ("_codecs", "encode"): Made(_encode_latin1),
        ("collections", "OrderedDict"): Made(_ordered),
    }
    for package in ("builtins", "__builtin__"):  # as protocols up to 2 call it
        plain = {"complex": Made(_complex), "set": Made(_set), "frozenset": Made(_frozenset)}
        allowed |= {(package, name): made for name, made in plain.items()}
    for package in ("numpy.core", "numpy._core"):
        allowed[package + ".multiarray", "_reconstruct"] = Made(_reconstruct)
        allowed[package + ".multiarray", "scalar"] = Made(_scalar)
        allowed[package + ".numeric", "_frombuffer"] = Made(_frombuffer)
    return allowed


NUMPY = _allowed()
