"""The bytes of a tar member → the value of a field, in which nothing can run.

Knows nothing of tars, shards or loading.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from isal import isal_zlib

from ..errors import UnsafeDataError
from .limits import Buffer, most_unpacked
from .npy import data_size, decode_npy
from .pickles import decode_pickle, decode_torch

_PICKLE_EXTENSIONS = ("pyd", "pkl", "pickle")
_NPY_MAGIC = b"\x93NUMPY"
_GZIP = 31  # window bits that mean: with a header and a checksum


def decode(suffix: str, data: Buffer) -> Any:
    """Decode a member by webdataset's rules for its extension, except that nothing can run.

    Extensions that webdataset does not decode by itself (images, sound, video) stay bytes. Work and memory are
    proportional to the payload's size; what is compressed may become 100 times as large, or 64 MiB.

    Args:
        suffix: the member's name after the key, such as ``spikes.npy``.
        data: the payload.

    Raises:
        UnsafeDataError: the payload is damaged or asks for more than plain data.

    Example:
        >>> decode("label.json", b'{"trial": 7}'), decode("note.txt", b"left"), decode("eye.jpg", b"...")
        ({'trial': 7}, 'left', b'...')
    """
    extension = suffix.rpartition(".")[2].lower()
    try:
        if extension in ("gz", "npz"):
            return _decode_packed(suffix.lower(), data)
        return _decoder(extension)(data)
    except UnsafeDataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UnsafeDataError(f"cannot be decoded as {extension!r}: {reason}") from error


def _decode_packed(suffix: str, data: Buffer) -> Any:
    most = most_unpacked(len(data))
    while suffix.endswith(".gz"):
        data = _gunzip(data, most)
        most -= len(data)
        suffix = suffix[: -len(".gz")]
    return _decode_npz(data, most) if suffix.endswith(".npz") else _decoder(suffix.rpartition(".")[2])(data)


def decode_json(data: Buffer) -> Any:
    """Decode a JSON value.

    Raises:
        UnsafeDataError: not UTF-8, not JSON, or nested too deep.
    """
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise UnsafeDataError(f"not valid JSON: {error}") from error


def _gunzip(data: Buffer, most: int) -> bytes:
    """Unpack one gzip stream, or several one after the other.

    Raises:
        UnsafeDataError: it is damaged or cut off, or unpacks to more than `most` bytes.
    """
    parts: list[bytes] = []
    rest = bytes(data)
    while rest.strip(b"\0") or not parts:
        stream = isal_zlib.decompressobj(_GZIP)
        part = stream.decompress(rest, most + 1)
        most -= len(part)
        if most < 0:
            raise UnsafeDataError(f"unpacks to more than {sum(map(len, parts)) + len(part) + most:,} bytes")
        if not stream.eof:
            raise UnsafeDataError("the gzip stream is cut off")
        parts.append(part)
        rest = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decode_npz(data: Buffer, most: int) -> dict[str, np.ndarray | bytes]:
    """Return the arrays of an .npz file by name, and, as numpy does, the bytes of what is no array in it."""
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        members = archive.infolist()
        packed = unpacked = 0
        for member in members:
            packed += member.compress_size
            unpacked += member.file_size
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnsafeDataError("the .npz file is compressed in a way that numpy does not use")
        if packed > len(data):
            raise UnsafeDataError("the .npz file claims more bytes than it has")
        if unpacked > most:
            raise UnsafeDataError(f"unpacks to more than {most:,} bytes, from {len(data):,}")
        return {member.filename.removesuffix(".npy"): _decode_npz_member(archive.read(member)) for member in members}


def _decode_npz_member(raw: bytes) -> np.ndarray | bytes:
    return decode_npy(raw) if raw.startswith(_NPY_MAGIC) else raw


def _decode_tenbin(data: Buffer) -> Any:
    """Return webdataset's tensors; its own decoder follows a chunk of negative size back, for ever."""
    raw, place = bytes(data), 0
    while place < len(raw):
        size = int.from_bytes(raw[place + 8 : place + 16], "little", signed=True)
        if not 0 <= size <= len(raw) - place - 16:
            raise UnsafeDataError(f"a chunk claims {size} bytes, the member has {len(raw) - place - 16}")
        place += 16 + -(-size // 64) * 64
    from webdataset import autodecode

    arrays = autodecode.decoders["ten"](raw)
    for array in arrays:
        data_size(array.shape, array.dtype)
    return arrays


_DECODERS: dict[str, Callable[[Buffer], Any]] = {
    "npy": decode_npy,
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
