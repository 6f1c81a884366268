"""Arrays as ``.npy`` files hold them: headers read without believing them, layouts that allow plain copies.

Knows bytes; knows nothing of tars or samples.
"""

from __future__ import annotations

import ast
import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np

from ..errors import FieldError, UnsafeDataError
from .limits import Buffer

_MAX_HEADER = 10_000
_MAX_DIMENSIONS = 64  # of numpy and torch
_MAX_EMPTY = 1 << 24  # rows of an array that is empty
_MAX_WITHOUT_DATA = 64  # items of no size, in one array
_PARTS_PER_BYTE = 4  # columns may overlap, or be empty, but not all of them
_USUAL_HEADER = 256  # bytes; longer ones are not kept
_DEEPEST_DTYPE = 32


@dataclass(frozen=True)
class ArrayLayout:
    """How an ``.npy`` payload holds its array: enough to copy it without parsing anything.

    Attributes:
        dtype: numpy's type string, such as ``"<f4"``.
        shape: the array's shape.
        header_size: bytes before the array's data.

    Example:
        >>> layout_of("spikes.npy", b"".join(encode_npy("spikes", np.zeros((100, 96), np.float32))[1]))
        ArrayLayout(dtype='<f4', shape=(100, 96), header_size=128)
    """

    dtype: str
    shape: tuple[int, ...]
    header_size: int

    @functools.cached_property
    def n_bytes(self) -> int:
        """Size of the array's data in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def encode_npy(name: str, array: np.ndarray) -> tuple[str, list[Buffer], ArrayLayout | None]:
    """Encode an array as numpy saves it.

    Args:
        name: the field's name.
        array: any shape; a dtype without Python objects.

    Returns:
        The member's suffix, its payload as consecutive buffers, and its layout if it can be copied as it is.

    Raises:
        FieldError: the array cannot be stored.
    """
    array = storable(name, array)
    if array.dtype.fields or not array.dtype.itemsize:
        if not array.dtype.itemsize and array.size > _MAX_WITHOUT_DATA:  # which would not be read back
            raise FieldError("an array of items without size holds nothing", member=name, remedy="leave it out")
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array, allow_pickle=False)
        return f"{name}.npy", [stream.getvalue()], None
    header, layout = _header_and_layout(array.dtype, array.shape)
    return f"{name}.npy", [header, array.reshape(-1).view(np.uint8).data if array.size else b""], layout


@functools.lru_cache(maxsize=4096)
def _header_and_layout(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[bytes, ArrayLayout]:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    header = stream.getvalue()
    return header, ArrayLayout(dtype.str, shape, len(header))


def storable(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array as a plain one in C order.

    Raises:
        FieldError: it is masked, or holds Python objects.
    """
    if type(array) is not np.ndarray and np.ma.is_masked(array):
        raise FieldError(
            "the array's mask would be lost", member=name, remedy="fill it, or store the mask as a field of its own"
        )
    if array.dtype.hasobject:
        raise FieldError(
            "an array of Python objects cannot be stored safely", member=name, remedy="use a numeric or string dtype"
        )
    return np.asarray(array, order="C")


def npy_layout(data: Buffer) -> ArrayLayout | None:
    """Return the layout of an ``.npy`` payload; None if it cannot be copied as it is (Fortran order, structured dtype).

    Raises:
        UnsafeDataError: the header is damaged, asks for Python objects, or for more than there is.
    """
    dtype, shape, fortran, size = _header(data)
    if dtype.fields or dtype.subdtype or not dtype.itemsize or (fortran and len(shape) > 1):
        return None
    return ArrayLayout(dtype.str, shape, size)


def layout_of(suffix: str, data: Buffer) -> ArrayLayout | None:
    """Return the layout of a member that can be copied as it is; None of any other, and of a damaged one."""
    if suffix.rpartition(".")[2] != "npy":
        return None
    try:
        return npy_layout(data)
    except UnsafeDataError:
        return None  # found again, and named, when the sample is read


def decode_npy(data: Buffer) -> np.ndarray:
    """Return a writable array from an ``.npy`` payload; its size is checked before anything is allocated.

    Raises:
        UnsafeDataError: as :func:`npy_layout`.
    """
    dtype, shape, fortran, size = _header(data)
    raw = bytearray(memoryview(data)[size : size + math.prod(shape) * dtype.itemsize])
    return np.ndarray(shape, dtype, buffer=raw, order="F" if fortran else "C") if raw else np.zeros(shape, dtype)


def data_size(shape: Sequence[object], dtype: np.dtype[Any], spend: Callable[[int], None] | None = None) -> int:
    """Return the bytes that an array takes, unless it is more work than so many bytes should be.

    Args:
        shape: its shape, from a file.
        dtype: its dtype.
        spend: is told how much work it is to look at the dtype.

    Raises:
        UnsafeDataError: the shape is impossible, or the array has far more items than bytes.
    """
    for n in shape:
        if type(n) is not int or not 0 <= n < 1 << 62:
            raise UnsafeDataError("the array has an impossible shape")
    if len(shape) > _MAX_DIMENSIONS:
        raise UnsafeDataError(f"the array has {len(shape)} dimensions, more than {_MAX_DIMENSIONS}")
    sizes = cast("Sequence[int]", shape)
    n_bytes = math.prod(sizes) * dtype.itemsize
    if 0 in sizes:
        if math.prod(max(n, 1) for n in sizes) > _MAX_EMPTY:
            raise UnsafeDataError(f"the array is empty, and its shape {shape} is enormous")
    elif dtype.names is not None or dtype.subdtype or not dtype.itemsize:
        if count_parts(dtype, spend) * math.prod(sizes) > _PARTS_PER_BYTE * n_bytes + _MAX_WITHOUT_DATA:
            raise UnsafeDataError("the array has far more items than bytes")
    return n_bytes


def count_parts(dtype: np.dtype[Any], spend: Callable[[int], None] | None = None, depth: int = 0) -> int:
    """Return how many parts one item of a dtype has, at least 1; an empty part counts by its rows.

    Args:
        dtype: a dtype from a file.
        spend: is told how much work it is.
        depth: how deep the dtype lies in another.

    Raises:
        UnsafeDataError: it is nested too deep.
    """
    if depth > _DEEPEST_DTYPE:
        raise UnsafeDataError(f"the array's dtype is nested more than {_DEEPEST_DTYPE} deep")
    if spend:
        spend(1)
    if dtype.subdtype:
        base, shape = dtype.subdtype
        return math.prod(max(n, 1) for n in shape) * count_parts(base, spend, depth + 1)
    if dtype.names is not None:
        return 1 + sum(count_parts(dtype[name], spend, depth + 1) for name in dtype.names)
    return 1


def _header(data: Buffer) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Return dtype, shape, whether in Fortran order, and the size of the header in bytes, of an ``.npy`` payload."""
    size = _header_size(bytes(data[:12]))
    if size > len(data):
        raise UnsafeDataError(f"the .npy header claims {size} bytes, the member has {len(data)}")
    parse = _parse_header if size <= _USUAL_HEADER else _parse_header.__wrapped__
    dtype, shape, fortran, n_bytes = parse(bytes(data[:size]))
    if size + n_bytes > len(data):
        raise UnsafeDataError(f"the array needs {n_bytes} bytes, the member has {len(data) - size}")
    return dtype, shape, fortran, size


def read_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Read the header of an ``.npy`` file.

    Args:
        stream: the file, from its start.

    Returns:
        dtype, shape, whether in Fortran order, and the size of the header in bytes.

    Raises:
        UnsafeDataError: it is not a header of a plain array.
    """
    start = stream.read(12)
    size = _header_size(start)
    dtype, shape, fortran, _ = _parse_header.__wrapped__(start[:size] + stream.read(max(0, size - 12)))
    return dtype, shape, fortran, size


def _header_size(start: bytes) -> int:
    if len(start) < 10 or not start.startswith(b"\x93NUMPY"):
        raise UnsafeDataError("not an .npy array: its magic bytes are missing")
    width = 2 if start[6] == 1 else 4
    size = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    if size > _MAX_HEADER:
        raise UnsafeDataError(f"the .npy header claims {size} bytes, more than {_MAX_HEADER}")
    return size


@functools.lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (3, 0):  # numpy reads this one, with names in UTF-8, together with the data only
            shape, fortran, dtype = _parse_utf8_header(header[12:])
        else:
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
            shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # numpy parses the header as a Python literal: many things can go wrong
        raise UnsafeDataError(f"not a valid .npy header: {str(error)[:200]}") from error
    if dtype.hasobject:
        raise UnsafeDataError("the array holds pickled Python objects, which are never loaded")
    shape = tuple(map(int, shape))
    return dtype, shape, fortran, data_size(shape, dtype)


def _parse_utf8_header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    about = ast.literal_eval(text.decode("utf-8"))
    shape, fortran = about["shape"], about["fortran_order"]
    if set(about) != {"descr", "fortran_order", "shape"} or type(shape) is not tuple or type(fortran) is not bool:
        raise ValueError("its keys or their values are not numpy's")
    if not all(isinstance(n, int) for n in shape):
        raise ValueError("its shape is not of integers")
    return shape, fortran, np.lib.format.descr_to_dtype(about["descr"])
