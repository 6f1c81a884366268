"""One value of a sample ↔ the bytes of one tar member: names, encoding, and decoding that can run nothing.

Knows nothing of tars, shards or loading.
"""

from __future__ import annotations

import ast
import functools
import gzip
import io
import json
import math
import operator
import pickle
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import FieldError, UnsafeDataError

Buffer = bytes | bytearray | memoryview
FieldFormat = Literal["npy", "pyd"]

_NPY_MAX_HEADER = 10_000
_MAX_UNPACKED = 4 << 30  # bytes that one compressed member may become
_PICKLE_EXTENSIONS = frozenset({"pyd", "pkl", "pickle"})
# torch, and webdataset, which imports it, take longer to import than a small file takes to convert: they are imported
# on use here. A tensor can only be met where torch has been imported.


@functools.cache
def _known_extensions() -> frozenset[str]:
    """What webdataset's writer encodes or its readers decode by extension; images and the like are stored as given."""
    from webdataset import autodecode, writer

    known = frozenset({"bin", "gz", "mp4", "avi", "mov", "webm", "flac", "wav", "mp3", "nwb"})
    return known.union(writer.default_handlers, autodecode.decoders, autodecode.IMAGE_EXTENSIONS)


@dataclass(frozen=True)
class ArrayLayout:
    """How an ``.npy`` payload holds its array: enough to copy it without parsing anything.

    Attributes:
        dtype: numpy's type string, such as ``"<f4"``.
        shape: the array's shape.
        header_size: bytes before the array's data.
    """

    dtype: str
    shape: tuple[int, ...]
    header_size: int

    @functools.cached_property
    def n_bytes(self) -> int:
        """Size of the array's data in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Stored(bytes):
    """The payload of a member whose suffix is the field's whole name: written as it is, whatever the name ends in."""


@functools.lru_cache(maxsize=1024)
def check_field_name(name: object) -> None:
    """Refuse a field name that webdataset would change, cut or drop.

    Raises:
        FieldError: the name is not a string, is empty, starts with ``_``, or holds a capital, a slash or a control
            character.
    """
    if not isinstance(name, str) or not name:
        raise FieldError(f"a field name must be a non-empty string, not {name!r}", remedy="rename the field")
    reasons = [
        ("starts with '_', which webdataset keeps for itself", name.startswith("_")),
        ("starts or ends with a dot, or holds two in a row", "" in name.split(".")),
        ("holds a '/', which would make it part of the key", "/" in name),
        ("holds a capital, and webdataset lower-cases field names", name != name.lower()),
        ("holds a character that cannot be printed", not name.isprintable()),
    ]
    for reason, found in reasons:
        if found:
            raise FieldError(f"the field name {reason}", member=name, remedy="rename the field")


def check_key(key: object) -> None:
    """Refuse a sample key that webdataset would cut, skip or mix up.

    Raises:
        FieldError: the key is not a string, is empty, or holds a dot, a control character or an odd slash.
    """
    if isinstance(key, str) and key.isidentifier() and not key.startswith("__"):
        return  # quickly: most keys
    if not isinstance(key, str) or not key:
        raise FieldError(f"a sample's key must be a non-empty string, not {key!r}", remedy="name the sample")
    reasons = [
        ("holds a dot, and webdataset cuts a name at its first dot", "." in key),
        ("starts with '__', which webdataset skips", key.startswith("__")),
        ("has an empty part between slashes", "" in key.split("/")),
        ("holds a character that cannot be printed", not key.isprintable()),
    ]
    for reason, found in reasons:
        if found:
            raise FieldError(f"the sample's key {reason}", sample=key, remedy="rename the sample")


@functools.lru_cache(maxsize=1024)
def field_of(suffix: str) -> str:
    """The field that a member's suffix stands for: its last extension is stripped (``spikes.npy`` → ``spikes``)."""
    if suffix.endswith(".gz"):
        suffix = suffix[: -len(".gz")]
    return suffix.rpartition(".")[0] or suffix


def encode(name: str, value: Any, field_format: FieldFormat = "npy") -> tuple[str, list[Buffer], ArrayLayout | None]:
    """Turn a value into a tar member.

    Arrays and tensors become ``.npy`` (or ``.pyd``), numbers 0-d ``.npy``, dicts and lists ``.json``, strings
    ``.txt``, bytes ``.bin``. A name that ends in an extension webdataset knows goes through webdataset's own encoder.
    What is `Stored` is not encoded at all.

    Args:
        name: the field's name.
        value: what to store.
        field_format: how arrays are stored.

    Returns:
        The member's suffix, its payload as consecutive buffers, and the array's layout when it is a plain ``.npy``.

    Raises:
        FieldError: the name or the value cannot be stored.
    """
    check_field_name(name)
    if "." not in name and field_format == "npy" and isinstance(value, np.ndarray):
        return _encode_npy(name, value)
    if isinstance(value, Stored):
        return name, [value], layout_of(name, value)
    extension = name.rpartition(".")[2] if "." in name else ""
    if extension == "gz":  # webdataset's own gzip writes the time of day into the file
        suffix, buffers, _ = encode(name[: -len(".gz")], value)
        return f"{suffix}.gz", [gzip.compress(b"".join(buffers), mtime=0)], None
    if extension and extension != "npy" and extension in _known_extensions():
        return name, [_encode_by_extension(name, value)], None
    stem = name[: -len(".npy")] if extension == "npy" else name
    if isinstance(value, str) and extension != "npy":
        return f"{name}.txt", [_utf8(name, value)], None
    if isinstance(value, (bytes, bytearray, memoryview)) and extension != "npy":
        return f"{name}.bin", [bytes(value)], None
    if isinstance(value, (dict, list, tuple)) and extension != "npy":
        return f"{name}.json", [encode_json(value, name)], None
    if field_format == "pyd" and extension != "npy":
        return f"{name}.pyd", [pickle.dumps(_as_array(name, value), protocol=4)], None
    return _encode_npy(stem, _as_array(name, value))


def _encode_npy(name: str, array: np.ndarray) -> tuple[str, list[Buffer], ArrayLayout | None]:
    array = _storable(name, array)
    if array.dtype.fields or not array.dtype.itemsize:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array, allow_pickle=False)
        return f"{name}.npy", [stream.getvalue()], None
    header, layout = _npy_header_and_layout(array.dtype, array.shape)
    return f"{name}.npy", [header, array.reshape(-1).view(np.uint8).data if array.size else b""], layout


@functools.lru_cache(maxsize=4096)
def _npy_header_and_layout(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[bytes, ArrayLayout]:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    header = stream.getvalue()
    return header, ArrayLayout(dtype.str, shape, len(header))


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FieldError(
            f"cannot be stored as UTF-8: {error}", member=name, remedy="use plain text, or bytes"
        ) from error


def encode_json(value: Any, name: str = "metadata") -> bytes:
    """Compact UTF-8 JSON; numpy numbers, booleans and arrays become plain ones.

    Raises:
        FieldError: something in `value` has no JSON form.
    """
    try:
        return _JSON.encode(value).encode("utf-8")
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise FieldError(f"cannot be stored as JSON: {error}", member=name, remedy="use plain values") from error


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)) or _is_tensor(value):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


_JSON = json.JSONEncoder(default=_plain, separators=(",", ":"), ensure_ascii=False)


def _encode_by_extension(name: str, value: Any) -> Buffer:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    from webdataset import writer

    try:
        encoded = writer.encode_based_on_extension1(value, name, writer.default_handlers)
        decode(name, encoded)  # what cannot be read back is refused now
        return memoryview(encoded).cast("B")
    except Exception as error:  # webdataset asserts, raises ValueError, or whatever the encoder raises
        raise FieldError(
            f"webdataset's encoder for this extension refused a {type(value).__name__}: {error}",
            member=name,
            remedy="give it what the extension stands for, or bytes, or leave the extension out",
        ) from error


def _as_array(name: str, value: Any) -> np.ndarray:
    if _is_tensor(value):
        try:
            value = value.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            raise FieldError(f"the tensor has no numpy form: {error}", member=name, remedy="convert it") from error
    if not isinstance(value, (np.ndarray, np.generic, bool, int, float, complex)):
        raise FieldError(
            f"cannot store a {type(value).__name__}",
            member=name,
            remedy="use arrays, tensors, numbers, str, bytes, dict or list",
        )
    return _storable(name, value if isinstance(value, np.ndarray) else np.asarray(value))


def _storable(name: str, array: np.ndarray) -> np.ndarray:
    if type(array) is not np.ndarray and np.ma.is_masked(array):
        raise FieldError(
            "the array's mask would be lost", member=name, remedy="fill it, or store the mask as a field of its own"
        )
    if array.dtype.hasobject:
        raise FieldError(
            "an array of Python objects cannot be stored safely", member=name, remedy="use a numeric or string dtype"
        )
    return np.asarray(array, order="C")


@functools.lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (3, 0):  # numpy reads this one, with names in UTF-8, together with the data only
            shape, fortran, dtype = _parse_utf8_header(header[12:])
            stream.seek(len(header))
        else:
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
            shape, fortran, dtype = read(stream, max_header_size=_NPY_MAX_HEADER)
    except Exception as error:  # numpy parses the header as a Python literal: many things can go wrong
        raise UnsafeDataError(f"not a valid .npy header: {str(error)[:200]}") from error
    if dtype.hasobject:
        raise UnsafeDataError("the array holds pickled Python objects, which are never loaded")
    if any(n < 0 for n in shape):
        raise UnsafeDataError(f"the array's shape {shape} is negative")
    return dtype, shape, fortran, stream.tell()


def _parse_utf8_header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    about = ast.literal_eval(text.decode("utf-8"))
    shape = tuple(operator.index(n) for n in about["shape"])
    return shape, bool(about["fortran_order"]), np.lib.format.descr_to_dtype(about["descr"])


def _npy_header_size(data: Buffer) -> int:
    """Bytes of the .npy header, from its first 12."""
    start = bytes(data[:12])
    if len(start) < 10 or not start.startswith(b"\x93NUMPY"):
        raise UnsafeDataError("not an .npy array: its magic bytes are missing")
    width = 2 if start[6] == 1 else 4
    size = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    if size > len(data) or size > _NPY_MAX_HEADER:
        raise UnsafeDataError(f"the .npy header claims {size} bytes, the member has {len(data)}")
    return size


def npy_layout(data: Buffer) -> ArrayLayout | None:
    """The layout of an ``.npy`` payload, or None where it cannot be copied as it is (Fortran order, structured dtype).

    Raises:
        UnsafeDataError: the header is damaged, asks for Python objects, or for more bytes than there are.
    """
    dtype, shape, fortran, size = _parse_npy_header(bytes(data[: _npy_header_size(data)]))
    n_bytes = math.prod(shape) * dtype.itemsize
    if size + n_bytes > len(data):
        raise UnsafeDataError(f"the array needs {n_bytes} bytes, the member has {len(data) - size}")
    if dtype.fields or dtype.subdtype or not dtype.itemsize or (fortran and len(shape) > 1):
        return None
    return ArrayLayout(dtype.str, shape, size)


def layout_of(suffix: str, data: Buffer) -> ArrayLayout | None:
    """The layout of a member that can be copied as it is; None of any other, and of a damaged one."""
    if suffix.rpartition(".")[2] != "npy":
        return None
    try:
        return npy_layout(data)
    except UnsafeDataError:
        return None  # found again, and named, when the sample is read


def decode_npy(data: Buffer) -> np.ndarray:
    """A writable array from an ``.npy`` payload; sizes are checked before anything is allocated.

    Raises:
        UnsafeDataError: as :func:`npy_layout`.
    """
    dtype, shape, fortran, size = _parse_npy_header(bytes(data[: _npy_header_size(data)]))
    n_bytes = math.prod(shape) * dtype.itemsize
    if size + n_bytes > len(data):
        raise UnsafeDataError(f"the array needs {n_bytes} bytes, the member has {len(data) - size}")
    raw = bytearray(memoryview(data)[size : size + n_bytes])
    if not raw:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, buffer=raw, order="F" if fortran else "C")


def decode_json(data: Buffer) -> Any:
    """A JSON value.

    Raises:
        UnsafeDataError: not UTF-8, not JSON, or nested too deep.
    """
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise UnsafeDataError(f"not valid JSON: {error}") from error


def _decode_npz(data: Buffer) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        _check_unpacked_size(sum(member.file_size for member in archive.infolist()))
        return {member.filename.removesuffix(".npy"): decode_npy(archive.read(member)) for member in archive.infolist()}


def _gunzip(data: Buffer) -> bytes:
    raw = bytearray()
    with gzip.open(io.BytesIO(data)) as stream:
        while chunk := stream.read(1 << 20):
            raw += chunk
            _check_unpacked_size(len(raw))
    return bytes(raw)


def _check_unpacked_size(size: int) -> None:
    if size > _MAX_UNPACKED:
        raise UnsafeDataError(f"unpacks to more than {_MAX_UNPACKED} bytes")


def decode_pickle(data: Buffer, encoding: str = "ASCII") -> Any:
    """Decode plain containers, numbers, arrays and tensors from a pickle; see :mod:`neurofmx_wds.format.pickles`."""
    from . import pickles

    return pickles.decode_pickle(data, encoding)


def decode_torch(data: Buffer) -> Any:
    """The same out of a torch file; see :func:`neurofmx_wds.format.pickles.decode_torch`."""
    from . import pickles

    return pickles.decode_torch(data)


def _decode_tenbin(data: Buffer) -> Any:
    """webdataset's tensors; at a chunk of negative size its own decoder goes back, for ever."""
    raw, place = bytes(data), 0
    while place < len(raw):
        size = int.from_bytes(raw[place + 8 : place + 16], "little", signed=True)
        if not 0 <= size <= len(raw) - place - 16:
            raise UnsafeDataError(f"a chunk claims {size} bytes, the member has {len(raw) - place - 16}")
        place += 16 + -(-size // 64) * 64
    from webdataset import autodecode

    return autodecode.decoders["ten"](raw)


_DECODERS: dict[str, Callable[[Buffer], Any]] = {
    "npy": decode_npy,
    "npz": _decode_npz,
    "pth": decode_torch,
    "ten": _decode_tenbin,
    "tb": _decode_tenbin,
    "json": decode_json,
    "jsn": decode_json,
    **dict.fromkeys(_PICKLE_EXTENSIONS, decode_pickle),
}


def _decoder(extension: str) -> Callable[[Buffer], Any]:
    if extension in _DECODERS:
        return _DECODERS[extension]
    from webdataset import autodecode

    decoder = autodecode.decoders.get(extension, bytes)
    return lambda data: decoder(bytes(data))


def decode(suffix: str, data: Buffer) -> Any:
    """The value that a member holds, by webdataset's rules for its extension, except that nothing can run.

    Extensions that webdataset does not decode by itself (images, sound, video) stay bytes.

    Args:
        suffix: the member's name after the key, such as ``spikes.npy``.
        data: the payload.

    Raises:
        UnsafeDataError: the payload is damaged or asks for more than plain data.
    """
    extension = suffix.rpartition(".")[2].lower()
    try:
        if extension == "gz":
            return decode(suffix[:-3], _gunzip(data))
        return _decoder(extension)(data)
    except UnsafeDataError:
        raise
    except Exception as error:
        raise UnsafeDataError(f"cannot be decoded as {extension!r}: {type(error).__name__}: {error}") from error
