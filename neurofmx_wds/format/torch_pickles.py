"""Tensors in pickles, and the files that ``torch.save`` writes, read without torch.load.

torch's own ``weights_only`` is not used: files that ran code or wrote outside their memory in spite of it are known for
torch before 2.6 and before 2.10 (CVE-2025-32434, CVE-2026-24747). Knows nothing of tars or fields.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UnsafeDataError
from .limits import Budget
from .numpy_pickles import NUMPY, SCALARS, NumpyUnpickler
from .unpickler import Made, Unpickler

if TYPE_CHECKING:
    import torch

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DIMENSIONS = 64


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


def _refuse(what: str) -> UnsafeDataError:
    return UnsafeDataError(f"the pickle builds a {what} in an unusual way")


def _are_sizes(sizes: object) -> bool:
    if not isinstance(sizes, tuple) or len(sizes) > _MAX_DIMENSIONS:
        return False
    return all(type(n) is int and 0 <= n < 1 << 62 for n in sizes)


def _rebuild_tensor(
    unpickler: Unpickler,
    storage: object,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: object = False,
    hooks: object = None,
    dtype: Any = None,
) -> torch.Tensor:
    """Return a tensor on a storage, all of whose elements lie inside it."""
    import torch

    if not isinstance(storage, _Storage) or hooks:
        raise _refuse("tensor")
    dtype = storage.type.dtype if dtype is None else dtype
    if (
        not isinstance(dtype, torch.dtype)
        or not _are_sizes((offset,))
        or not _are_sizes(size)
        or not _are_sizes(stride)
    ):
        raise UnsafeDataError("the pickle holds a tensor of an impossible shape or dtype")
    if len(size) != len(stride):
        raise UnsafeDataError(f"the pickle holds a tensor of an impossible shape, {size} by {stride}")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else -1
    if (last + 1) * dtype.itemsize > len(storage.data):
        raise UnsafeDataError(f"the pickle holds a tensor of shape {tuple(size)} without the bytes for it")
    unpickler.budget.repeat(count * dtype.itemsize)
    if not count:
        return torch.empty(tuple(size), dtype=dtype)
    whole = len(storage.data) // dtype.itemsize
    tensor = torch.frombuffer(storage.data, dtype=dtype, count=whole)
    return tensor.as_strided(tuple(size), tuple(stride), offset).requires_grad_(bool(requires_grad))


def _rebuild_tensor_v2(
    unpickler: Unpickler, storage: object, offset: Any, size: Any, stride: Any, grad: object, hooks: object, *_: object
) -> torch.Tensor:
    return _rebuild_tensor(unpickler, storage, offset, size, stride, grad, hooks)


def _rebuild_parameter(unpickler: Unpickler, data: object, requires_grad: object, hooks: object) -> torch.Tensor:
    import torch

    if not isinstance(data, torch.Tensor) or hooks:
        raise _refuse("parameter")
    return data.requires_grad_(bool(requires_grad))


def _size(unpickler: Unpickler, sizes: object) -> tuple[int, ...]:
    if not _are_sizes(sizes):
        raise _refuse("shape")
    return tuple(sizes)  # type: ignore[arg-type]


def _load_from_bytes(unpickler: Unpickler, data: object) -> _Storage:
    if type(data) is not bytes:
        raise _refuse("tensor")
    unpickler.budget.spend(len(data))
    storage = _decode_legacy(data, unpickler.budget)
    if not isinstance(storage, _Storage):
        raise _refuse("tensor")
    return storage


_ALLOWED: dict[tuple[str, str], Any] = {
    **NUMPY,
    ("torch._utils", "_rebuild_tensor_v2"): Made(_rebuild_tensor_v2),
    ("torch._utils", "_rebuild_tensor_v3"): Made(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Made(_rebuild_parameter),
    ("torch", "Size"): Made(_size),
    ("torch.storage", "_load_from_bytes"): Made(_load_from_bytes),
    ("torch.storage", "UntypedStorage"): _StorageType(None),
}


@functools.cache
def _types() -> dict[str, Any]:
    """Return what torch's names for types stand for; torch is imported only where a pickle has one."""
    import torch

    storages = {
        "Double": torch.double, "Float": torch.float, "Half": torch.half, "BFloat16": torch.bfloat16,
        "Long": torch.long, "Int": torch.int, "Short": torch.short, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexDouble": torch.cdouble, "ComplexFloat": torch.cfloat,
    }  # fmt: skip
    later = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")  # came after such storages
    types: dict[str, Any] = {f"{name}Storage": _StorageType(kind) for name, kind in storages.items()}
    return types | {name: getattr(torch, name) for name in later if hasattr(torch, name)}


class TensorUnpickler(NumpyUnpickler):
    """Reads tensors too.

    Args:
        stream: where the pickle begins.
        budget: what it may cost.
        storage: gives the storage of a type, name and size in bytes; None where the pickle cannot point to one.
        encoding: how the strings of Python 2 are read.
    """

    def __init__(
        self,
        stream: io.BytesIO,
        budget: Budget,
        storage: Callable[[_StorageType, str, int], _Storage] | None = None,
        encoding: str = "ASCII",
    ) -> None:
        super().__init__(stream, _ALLOWED, budget, SCALARS, encoding)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        if module == "torch" and name != "Size" and name in _types():
            return _types()[name]
        return super().find_class(module, name)

    def _load_binpersid(self) -> None:
        about = self.stack.pop()
        if self.storage is None or type(about) is not tuple or len(about) < 5:
            raise UnsafeDataError("the pickle points to something outside it")
        kind, storage_type, name, _, count, *view = about
        sound = kind == "storage" and isinstance(storage_type, _StorageType) and type(name) is str
        if not sound or type(count) is not int or count < 0 or any(view):
            raise UnsafeDataError("the torch file points to something that is no storage")
        self.append(self.storage(storage_type, name, count * storage_type.itemsize))

    opcodes = NumpyUnpickler.opcodes | {pickle.BINPERSID: _load_binpersid}


def decode_torch_file(data: bytes, budget: Budget) -> Any:
    """Return what a file of torch.save holds, in its zip format or the one before it; not checked yet."""
    return (_decode_zip if data[:4] == b"PK\x03\x04" else _decode_legacy)(data, budget)


def _decode_zip(data: bytes, budget: Budget) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
        if packed or sum(info.file_size for info in archive.infolist()) > len(data):
            raise UnsafeDataError("the torch file is packed, which torch's never are")
        if "byteorder" in records and archive.read(records["byteorder"]).decode() != sys.byteorder:
            raise UnsafeDataError("the torch file is in another machine's byte order")
        read = functools.partial(_read_record, archive, records)
        storages = _Storages(lambda name, n_bytes: bytearray(read(f"data/{name}")))
        return TensorUnpickler(io.BytesIO(read("data.pkl")), budget, storages.get).load()


def _read_record(archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo], name: str) -> bytes:
    if name not in records:
        raise UnsafeDataError(f"the torch file lacks its record {name[:200]!r}")
    return archive.read(records[name])


class _Storages:
    """The storages of a torch file, by name.

    Args:
        make: gives the bytes of one, by its name and size.
    """

    def __init__(self, make: Callable[[str, int], bytearray]) -> None:
        self.make = make
        self.known: dict[str, _Storage] = {}

    def get(self, kind: _StorageType, name: str, n_bytes: int) -> _Storage:
        if name not in self.known:
            self.known[name] = _Storage(kind, self.make(name, n_bytes))
        if self.known[name].type != kind or len(self.known[name].data) != n_bytes:
            raise UnsafeDataError(f"the torch file's storage {name[:200]!r} is not of the size or type that it says")
        return self.known[name]


def _decode_legacy(data: bytes, budget: Budget) -> Any:
    stream = io.BytesIO(data)
    room = len(data)

    def make(name: str, n_bytes: int) -> bytearray:
        nonlocal room
        room -= n_bytes
        if room < 0:
            raise UnsafeDataError(f"the torch file's storage {name[:200]!r} is larger than the file")
        return bytearray(n_bytes)

    storages = _Storages(make)
    for expected in (_MAGIC, _PROTOCOL):
        if TensorUnpickler(stream, budget).load() != expected:
            raise UnsafeDataError("not a torch file: its magic number is missing")
    about = TensorUnpickler(stream, budget).load()
    if type(about) is not dict or about.get("little_endian", False) is not (sys.byteorder == "little"):
        raise UnsafeDataError("the torch file is in another machine's byte order")
    value = TensorUnpickler(stream, budget, storages.get).load()
    _fill_storages(stream, TensorUnpickler(stream, budget).load(), storages.known)
    return value


def _fill_storages(stream: io.BytesIO, names: object, storages: dict[str, _Storage]) -> None:
    """Read the storages behind the pickles of a legacy file, in the order of `names`."""
    if type(names) is not list or not all(type(name) is str for name in names) or set(names) != set(storages):
        raise UnsafeDataError("the torch file lacks a storage, or has one too many")
    for name in names:
        target = storages[name]
        count = int.from_bytes(stream.read(8), "little")
        if count * target.type.itemsize != len(target.data) or stream.readinto(target.data) != len(target.data):
            raise UnsafeDataError(f"the torch file is cut short in its storage {name[:200]!r}")
