"""Arrays, tensors and plain containers out of pickles and torch files, by an allow-list: nothing in them can run.

Both are interpreted in Python, so that each step can be refused before it is taken. torch's own ``weights_only`` is not
used: files that ran code or wrote outside their memory in spite of it are known for torch before 2.6 and before 2.10
(CVE-2025-32434, CVE-2026-24747). Knows bytes; knows nothing of tars, fields or loading.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import UnsafeDataError

if TYPE_CHECKING:
    import torch

    from .fields import Buffer

_MAX_REPEATED = 64 << 20  # bytes that a tensor may become which repeats what is stored (stride 0)
_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


# --- numpy ------------------------------------------------------------------------------------------------------------


def _dtype(name: object, *_: object) -> np.dtype[Any]:
    dtype = np.dtype(str(name), copy=True)  # a copy of its own: its state is set next
    if dtype.hasobject:
        raise UnsafeDataError("the pickle holds an array of Python objects")
    return dtype


def _set_dtype_state(dtype: np.dtype[Any], state: Any) -> None:
    """Give a dtype the state in a pickle, by way of numpy's checked constructors.

    numpy's own ``__setstate__`` believes any offset and any flag: such a dtype reads outside its array.
    """
    _, order, base, names, fields, itemsize, _, _, *unit = state
    if names:
        formats, offsets, titles = zip(*(((*fields[name], None)[:3]) for name in names), strict=True)
        columns = {"names": names, "formats": formats, "offsets": offsets, "titles": titles}
        about: Any = {**{key: list(values) for key, values in columns.items()}, "itemsize": itemsize}
        safe = np.dtype(about)
    elif base:
        safe = np.dtype((base[0], base[1]))
    elif unit and dtype.kind in "mM":
        name, count = unit[0][1][:2]
        safe = np.dtype(f"{dtype.kind}8[{count}{name.decode()}]").newbyteorder(order)
    else:
        safe = dtype.newbyteorder(order)
    if safe.hasobject or safe.itemsize != dtype.itemsize:
        raise UnsafeDataError("the pickle holds an array of Python objects, or of an impossible type")
    dtype.__setstate__(safe.__reduce__()[2])  # type: ignore[attr-defined]


def _set_array_state(array: np.ndarray, state: Any) -> None:
    shape, dtype, fortran, raw = state[-4:]
    if isinstance(raw, str):  # Python 2's bytes, which are read as latin1
        raw = raw.encode("latin1")
    if not (isinstance(raw, bytes) and min(shape, default=0) >= 0 and len(raw) == math.prod(shape) * dtype.itemsize):
        raise UnsafeDataError(f"the pickle holds an array of shape {shape} without the bytes for it")
    array.__setstate__((1, shape, dtype, fortran, raw))


def _reconstruct(kind: object, shape: object, _typecode: object) -> np.ndarray:
    if kind is not np.ndarray or shape != (0,):
        raise UnsafeDataError("the pickle builds an array in an unusual way")
    return np.empty((0,), "b")


def _frombuffer(buffer: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, *_: object) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order="F" if order == "F" else "C").copy(order="K")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise UnsafeDataError(f"the pickle uses the codec {encoding!r}")
    return text.encode("latin1")


# --- torch ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StorageType:
    """A name such as ``torch.FloatStorage``, which says how a storage's bytes are meant; None: the tensor says it."""

    dtype: torch.dtype | None

    @property
    def itemsize(self) -> int:
        return 1 if self.dtype is None else self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class _Storage:
    """The bytes that tensors share."""

    type: _StorageType
    data: bytearray


def _rebuild_tensor(
    storage: object,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: object = False,
    hooks: object = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A tensor on a storage, all of whose elements lie inside it."""
    if not isinstance(storage, _Storage) or hooks:
        raise UnsafeDataError("the pickle builds a tensor in an unusual way")
    dtype = storage.type.dtype if dtype is None else dtype
    numbers = [offset, *size, *stride]
    if dtype is None or len(size) != len(stride) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise UnsafeDataError(f"the pickle holds a tensor of an impossible shape, {size} by {stride}")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else -1
    if (last + 1) * dtype.itemsize > len(storage.data):
        raise UnsafeDataError(f"the pickle holds a tensor of shape {tuple(size)} without the bytes for it")
    if count * dtype.itemsize > max(_MAX_REPEATED, len(storage.data)):
        raise UnsafeDataError(f"the pickle holds a tensor of shape {tuple(size)} that repeats a few bytes")
    import torch

    if not count:
        return torch.empty(tuple(size), dtype=dtype)
    whole = len(storage.data) // dtype.itemsize * dtype.itemsize
    tensor = torch.frombuffer(storage.data, dtype=dtype, count=whole // dtype.itemsize)
    return tensor.as_strided(tuple(size), tuple(stride), offset).requires_grad_(bool(requires_grad))


def _rebuild_tensor_v2(
    storage: object, offset: int, size: Sequence[int], stride: Sequence[int], grad: object, hooks: object
) -> torch.Tensor:
    return _rebuild_tensor(storage, offset, size, stride, grad, hooks)


def _rebuild_parameter(data: object, requires_grad: object, hooks: object) -> torch.Tensor:
    import torch

    if not isinstance(data, torch.Tensor) or hooks:
        raise UnsafeDataError("the pickle builds a parameter in an unusual way")
    return data.requires_grad_(bool(requires_grad))


def _size(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sizes)


def _load_from_bytes(data: bytes) -> _Storage:
    storage = _decode_legacy(data)
    if not isinstance(storage, _Storage):
        raise UnsafeDataError("the pickle builds a tensor in an unusual way")
    return storage


@functools.cache
def _types_of_torch() -> dict[str, Any]:
    """torch's names for types; torch is imported only where a pickle has one."""
    import torch

    storages = {
        "Double": torch.double, "Float": torch.float, "Half": torch.half, "BFloat16": torch.bfloat16,
        "Long": torch.long, "Int": torch.int, "Short": torch.short, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexDouble": torch.cdouble, "ComplexFloat": torch.cfloat,
    }  # fmt: skip
    later = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")  # came after such storages
    types: dict[str, Any] = {f"{name}Storage": _StorageType(kind) for name, kind in storages.items()}
    return types | {name: getattr(torch, name) for name in later if hasattr(torch, name)}


# --- the interpreter --------------------------------------------------------------------------------------------------


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _size,
    ("torch.storage", "_load_from_bytes"): _load_from_bytes,
    ("torch.storage", "UntypedStorage"): _StorageType(None),
}
for _package in ("builtins", "__builtin__"):  # as protocols up to 2 call it
    _ALLOWED |= {(_package, "complex"): complex, (_package, "set"): set, (_package, "frozenset"): frozenset}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[_package + ".multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[_package + ".multiarray", "scalar"] = np.float64(0).__reduce__()[0]
    _ALLOWED[_package + ".numeric", "_frombuffer"] = _frombuffer
_REFUSED_OPCODES = (
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER),
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
)


class _ArrayUnpickler(pickle._Unpickler):
    """pickle's own interpreter in Python, with the opcodes gone that plain arrays and containers do not need."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _REFUSED_OPCODES
    }

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name)) or (_types_of_torch().get(name) if module == "torch" else None)
        if found is None:
            raise UnsafeDataError(f"the pickle asks for {module}.{name}, not a plain array or container")
        return found

    stack: list[Any]
    read: Callable[[int], bytes]

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if function is np.ndarray:  # a name only: called, it would allocate any shape
            raise UnsafeDataError("the pickle builds an array in an unusual way")
        self.stack[-1] = function(*args)

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, np.dtype):
            _set_dtype_state(target, state)
        elif isinstance(target, np.ndarray):
            _set_array_state(target, state)
        elif type(target) is OrderedDict and isinstance(state, dict) and list(state) == ["_metadata"]:
            target._metadata = state["_metadata"]  # type: ignore[attr-defined]  # of a module's state_dict()
        else:
            raise UnsafeDataError(f"the pickle gives a {type(target).__name__} a state of its own")

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.stack.append(bytearray(self.read(size)))  # pickle's own allocates whatever is claimed

    dispatch |= {pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build, pickle.BYTEARRAY8[0]: load_bytearray8}


_OBJECTS = object()  # stands for numpy's dtype of Python objects
_PLAIN = (str, bytes, int, float, type(None), np.generic)
_MAX_PARTS = 1000  # values in one object: a row of a table, a reference


def _any_dtype(name: object, *_: object) -> Any:
    return _OBJECTS if name in ("O", "O8") else _dtype(name)


class _ObjectsUnpickler(_ArrayUnpickler):
    """The same for one array of Python objects, as numcodecs pickles them, and hdmf-zarr's references in it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("hdmf_zarr.utils", "ZarrReference"):
            return dict
        return _any_dtype if (module, name) == ("numpy", "dtype") else super().find_class(module, name)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        if self.stack.pop() is not dict or args != ():
            raise UnsafeDataError("the pickle makes objects that are no references")
        self.stack.append({})

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        if target is _OBJECTS:
            self.stack.pop()
        elif isinstance(target, np.dtype) and any(each[0] is _OBJECTS for each in (state[4] or {}).values()):
            self.stack[-2:] = [_OBJECTS]  # of rows with objects, which come as tuples
        elif isinstance(target, np.ndarray) and isinstance(state, tuple) and len(state) == 5 and state[2] is _OBJECTS:
            _, shape, _, _, items = self.stack.pop()  # in C order, whatever the array's is
            if not isinstance(items, list) or min(shape, default=0) < 0 or len(items) != math.prod(shape):
                raise UnsafeDataError(f"the pickle holds an array of shape {shape} without the objects for it")
            self.stack[-1] = np.fromiter(items, object).reshape(shape)
        else:
            super().load_build()

    dispatch = _ArrayUnpickler.dispatch | {pickle.NEWOBJ[0]: load_newobj, pickle.BUILD[0]: load_build}


def _count(value: object, known: dict[int, float]) -> float:
    """How many values one is made of, however often each is repeated; endless, where it holds itself."""
    if type(value) not in (list, tuple, dict):
        if not isinstance(value, _PLAIN):
            raise UnsafeDataError(f"the pickle holds a {type(value).__name__} among plain objects")
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        parts: Any = (*value, *value.values()) if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]


def _decode_objects(data: bytes) -> np.ndarray:
    found = _ObjectsUnpickler(io.BytesIO(data)).load()
    if not isinstance(found, np.ndarray) or found.dtype != object:
        raise UnsafeDataError("the pickle holds no array of objects")
    known: dict[int, float] = {}
    if any(_count(each, known) > _MAX_PARTS for each in found.flat):
        raise UnsafeDataError(f"the pickle holds an object of more than {_MAX_PARTS} values")
    return found


def decode_objects(data: Buffer) -> np.ndarray:
    """An array of strings, numbers, None, and lists, tuples and dicts of a few of these, out of a pickle.

    A row of an array of rows with objects in them is a tuple.

    Raises:
        UnsafeDataError: the pickle holds anything else, or is damaged.
    """
    return _named(_decode_objects, "pickle", data)


class _TorchUnpickler(_ArrayUnpickler):
    """The same for the pickles inside torch's files, which point to storages.

    Args:
        stream: where the pickle begins.
        storage: gives the storage of a type, name and size in bytes.
    """

    def __init__(self, stream: io.BytesIO, storage: Callable[[_StorageType, str, int], _Storage]) -> None:
        super().__init__(stream)
        self.storage = storage

    def load_binpersid(self) -> None:
        kind, storage_type, name, _, count, *view = self.stack.pop()
        sound = kind == "storage" and isinstance(storage_type, _StorageType) and isinstance(name, str)
        if not sound or type(count) is not int or count < 0 or any(view):
            raise UnsafeDataError("the torch file points to something that is no storage")
        self.stack.append(self.storage(storage_type, name, count * storage_type.itemsize))

    dispatch = _ArrayUnpickler.dispatch | {pickle.BINPERSID[0]: load_binpersid}


def _named(decode: Callable[[bytes], Any], what: str, data: Buffer) -> Any:
    """What `decode` makes of the data; whatever it raises becomes a named error."""
    try:
        value = decode(bytes(data))
    except UnsafeDataError:
        raise
    except KeyError as error:
        raise UnsafeDataError(f"the {what} uses an opcode or memo that plain arrays do not need: {error}") from error
    except Exception as error:  # damage can raise anything
        raise UnsafeDataError(f"not a readable {what}: {type(error).__name__}: {error}") from error
    if isinstance(value, (_Storage, _StorageType)):
        raise UnsafeDataError(f"the {what} holds a storage, not a tensor")
    return value


def decode_pickle(data: Buffer, encoding: str = "ASCII") -> Any:
    """Arrays, tensors and plain containers out of a pickle; anything else is refused before it is built.

    Args:
        data: the pickle.
        encoding: how the strings of Python 2 are read; its arrays need ``"latin1"``.

    Raises:
        UnsafeDataError: the pickle names anything but numpy/torch array types, or is damaged.
    """
    return _named(lambda raw: _ArrayUnpickler(io.BytesIO(raw), encoding=encoding).load(), "pickle", data)


def decode_torch(data: Buffer) -> Any:
    """The same out of a file that ``torch.save`` wrote, in its zip format or the one before it.

    Raises:
        UnsafeDataError: it holds anything else, or is damaged.
    """
    is_zip = bytes(data[:4]) == b"PK\x03\x04"
    return _named(_decode_zip if is_zip else _decode_legacy, "torch file", data)


def _decode_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
        if packed or sum(info.file_size for info in archive.infolist()) > len(data):
            raise UnsafeDataError("the torch file is packed, which torch's never are")
        if "byteorder" in records and archive.read(records["byteorder"]).decode() != sys.byteorder:
            raise UnsafeDataError("the torch file is in another machine's byte order")
        storages: dict[str, _Storage] = {}

        def storage(kind: _StorageType, name: str, n_bytes: int) -> _Storage:
            if name not in storages:
                storages[name] = _Storage(kind, bytearray(archive.read(records[f"data/{name}"])))
            if storages[name].type != kind or len(storages[name].data) != n_bytes:
                raise UnsafeDataError(f"the torch file's storage {name!r} is not of the size or type that it says")
            return storages[name]

        return _TorchUnpickler(io.BytesIO(archive.read(records["data.pkl"])), storage).load()


def _decode_legacy(data: bytes) -> Any:
    stream = io.BytesIO(data)
    storages: dict[str, _Storage] = {}
    room = len(data)

    def storage(kind: _StorageType, name: str, n_bytes: int) -> _Storage:
        nonlocal room
        if name not in storages:
            room -= n_bytes
            if room < 0:
                raise UnsafeDataError(f"the torch file's storage {name!r} is larger than the file")
            storages[name] = _Storage(kind, bytearray(n_bytes))
        if storages[name].type != kind or len(storages[name].data) != n_bytes:
            raise UnsafeDataError(f"the torch file's storage {name!r} is not of the size or type that it says")
        return storages[name]

    for expected in (_TORCH_MAGIC, _TORCH_PROTOCOL):
        if _ArrayUnpickler(stream).load() != expected:
            raise UnsafeDataError("not a torch file: its magic number is missing")
    if not _ArrayUnpickler(stream).load().get("little_endian", False) == (sys.byteorder == "little"):
        raise UnsafeDataError("the torch file is in another machine's byte order")
    value = _TorchUnpickler(stream, storage).load()
    for name in _ArrayUnpickler(stream).load():
        target = storages.pop(name)
        count = int.from_bytes(stream.read(8), "little")
        if count * target.type.itemsize != len(target.data) or stream.readinto(target.data) != len(target.data):
            raise UnsafeDataError(f"the torch file is cut short in its storage {name!r}")
    if storages:
        raise UnsafeDataError(f"the torch file lacks its storage {next(iter(storages))!r}")
    return value
