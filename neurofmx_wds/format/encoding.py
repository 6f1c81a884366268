"""The value of a field → the suffix and the bytes of a tar member.

Knows nothing of tars, shards or loading.
"""

from __future__ import annotations

import functools
import json
import pickle
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
from isal import igzip

from ..errors import FieldError
from .decoding import decode
from .limits import Buffer
from .names import check_field_name
from .npy import ArrayLayout, encode_npy, layout_of, storable

if TYPE_CHECKING:
    import torch

FieldFormat = Literal["npy", "pyd", "npy.gz"]
FIELD_FORMATS: tuple[FieldFormat, ...] = ("npy", "pyd", "npy.gz")
Member = tuple[str, list[Buffer], ArrayLayout | None]  # suffix, payload in pieces, and layout
_LEVEL = 2  # of 0 to 3; the highest is much slower and hardly smaller
# torch, and webdataset, which imports it, take longer to import than a small file takes to convert: they are imported
# on use here. A tensor can only be met where torch has been imported.


@functools.cache
def _known_extensions() -> frozenset[str]:
    """Return what webdataset encodes or decodes by extension; images and the like are stored as given."""
    from webdataset import autodecode, writer

    known = frozenset({"bin", "gz", "mp4", "avi", "mov", "webm", "flac", "wav", "mp3", "nwb"})
    return known.union(writer.default_handlers, autodecode.decoders, autodecode.IMAGE_EXTENSIONS)


class Stored(bytes):
    """The payload of a member whose suffix is the field's whole name: written as it is, whatever the name ends in."""


def encode(name: str, value: object, field_format: FieldFormat = "npy") -> Member:
    """Encode a value as a tar member.

    Arrays and tensors become ``.npy`` (or ``.pyd``, or ``.npy.gz`` unless 0-d; ``.pth`` if numpy has no such dtype, as
    of bfloat16), numbers 0-d ``.npy``, dicts and lists ``.json``, strings ``.txt``, bytes ``.bin``. A name that ends in
    an extension webdataset knows goes through webdataset's own encoder. A `Stored` is not encoded at all.

    Args:
        name: the field's name.
        value: what to store.
        field_format: how arrays are stored.

    Returns:
        The member's suffix, its payload as consecutive buffers, and the array's layout when it is a plain ``.npy``.

    Raises:
        FieldError: the name or the value cannot be stored.

    Example:
        >>> suffix, buffers, layout = encode("spikes", np.zeros((100, 96), np.float32))
        >>> suffix, sum(map(len, buffers)), layout.shape
        ('spikes.npy', 38528, (100, 96))
        >>> encode("label", {"trial": 7})[:2]
        ('label.json', [b'{"trial":7}'])
    """
    check_field_name(name)
    if "." not in name and field_format == "npy" and isinstance(value, np.ndarray):  # quickly: most values
        return encode_npy(name, value)
    if "." not in name:
        return _encode_by_type(name, value, field_format)
    if isinstance(value, Stored):
        return name, [value], layout_of(name, value)
    stem, _, extension = name.rpartition(".")
    if extension == "npy":
        return encode_npy(stem, _as_array(stem, value))
    if extension == "gz":  # webdataset's own gzip writes the time of day into the file
        suffix, buffers, _ = encode(stem, value)
        return f"{suffix}.gz", [_gzip(buffers)], None
    if extension in _known_extensions():
        return name, [_encode_by_extension(name, value)], None
    return _encode_by_type(name, value, field_format)


def _encode_by_type(name: str, value: object, field_format: FieldFormat) -> Member:
    if isinstance(value, Stored):
        return name, [value], layout_of(name, value)
    if isinstance(value, str):
        return f"{name}.txt", [_utf8(name, value)], None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{name}.bin", [bytes(value)], None
    if isinstance(value, (dict, list, tuple)):
        return f"{name}.json", [encode_json(value, name)], None
    if _is_tensor(value) and not _has_numpy_form(value):
        return f"{name}.pth", [_encode_by_extension(f"{name}.pth", value)], None
    array = _as_array(name, value)
    if field_format == "pyd":
        return f"{name}.pyd", [pickle.dumps(array, protocol=4)], None
    suffix, buffers, layout = encode_npy(name, array)
    if field_format == "npy.gz" and array.ndim:
        return f"{suffix}.gz", [_gzip(buffers)], None
    return suffix, buffers, layout


def _gzip(buffers: list[Buffer]) -> bytes:
    """Compress a payload; the same bytes whenever it is done."""
    return bytes(igzip.compress(b"".join(buffers), _LEVEL, mtime=0))


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FieldError(
            f"cannot be stored as UTF-8: {error}", member=name, remedy="use plain text, or bytes"
        ) from error


def encode_json(value: object, name: str = "metadata") -> bytes:
    """Encode a value as compact UTF-8 JSON; numpy numbers, booleans and arrays become plain ones.

    Raises:
        FieldError: something in `value` has no JSON form.

    Example:
        >>> encode_json({"trial": np.int64(7), "where": np.zeros(2)})
        b'{"trial":7,"where":[0.0,0.0]}'
    """
    try:
        return _JSON.encode(value).encode("utf-8")
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise FieldError(f"cannot be stored as JSON: {error}", member=name, remedy="use plain values") from error


def _plain(value: object) -> Any:
    if isinstance(value, (np.generic, np.ndarray)) or _is_tensor(value):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


_JSON = json.JSONEncoder(default=_plain, separators=(",", ":"), ensure_ascii=False)


def _encode_by_extension(name: str, value: object) -> Buffer:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    from webdataset import writer

    if _is_tensor(value):
        value = value.detach().cpu().clone()  # torch would store all that a view is a view of
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


def _has_numpy_form(tensor: torch.Tensor) -> bool:
    """Whether numpy has the tensor's dtype; sparse tensors, which no form of ours can hold, count as if it had."""
    try:
        return tensor.is_sparse or tensor.new_empty(0).detach().cpu().numpy() is not None
    except (TypeError, RuntimeError):
        return False


def _as_array(name: str, value: object) -> np.ndarray:
    if _is_tensor(value):
        try:
            value = value.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            remedy = "store tensor.float(), or tensor.to_dense(), or name the field with the extension .pth"
            raise FieldError(f"the tensor has no numpy form: {error}", member=name, remedy=remedy) from error
    if not isinstance(value, (np.ndarray, np.generic, bool, int, float, complex)):
        raise FieldError(
            f"cannot store a {type(value).__name__}",
            member=name,
            remedy="use arrays, tensors, numbers, str, bytes, dict or list",
        )
    return storable(name, value if isinstance(value, np.ndarray) else np.asarray(value))
