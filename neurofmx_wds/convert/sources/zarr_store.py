"""A Zarr store on disk as a read-only NWB file: hdmf-zarr reads it, but gets only what was checked here first.

No codec is chosen by the store: chunks are unpacked here, each to the size that its array's metadata says and no more;
pickled objects go through an allow-list. No link or reference leads out of the store. Knows nothing of recordings.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import posixpath
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numcodecs
import numpy as np
from hdmf_zarr import NWBZarrIO
from zarr.storage import DirectoryStore

from ...errors import NeurofmxError, SourceError
from ...format.pickles import decode_objects
from .listing import Entry, Listing

#: A chunk may not become larger than this, nor a file of metadata.
MOST_CHUNK_BYTES = 1 << 30
MOST_METADATA_BYTES = 16 << 20
_COPY = "copy or download it again; where its writer left out chunks that are empty, let it write them all"
_EXPORT = "export it to one HDF5 file with hdmf-zarr: NWBHDF5IO(…).export(NWBZarrIO(…))"


def open_zarr(listing: Listing) -> NWBZarrIO:
    """Open a store for reading.

    Args:
        listing: all its files, hidden ones too.

    Raises:
        SourceError: it is no NWB 2 in Zarr's format 2, a chunk is missing, or it asks for a codec that is not allowed.
    """
    return _NWBZarrIO(path=_Store(listing), mode="r-")  # "r-": what .zmetadata repeats is not looked at


class _NWBZarrIO(NWBZarrIO):  # type: ignore[misc]
    """hdmf-zarr's reader, which would open whatever path or URL a link or reference names as its source."""

    def resolve_ref(self, zarr_ref: Any) -> tuple[str, Any]:
        source, path = (zarr_ref.get(name) for name in ("source", "path"))
        if source != "." or not isinstance(path, (str, type(None))):
            problem = f"a link or reference in it leads to {str(source)[:200]!r}, which is not looked for"
            raise SourceError(problem, file=self.source, remedy=_EXPORT)
        if not path:
            return "root", self._file
        if path not in self._file:
            raise SourceError(f"links to {path[:200]!r}, which is not there", file=self.source, remedy=_COPY)
        return posixpath.basename(path), self._file[path]


@dataclass(frozen=True)
class _Array:
    """How an array's chunks are unpacked.

    Attributes:
        n_bytes: of a chunk; the most that one of objects may take.
        objects: whether it holds objects, whose size only their own decoder finds out.
        steps: the configurations of the codecs that are undone, in this order.
        metadata: what zarr is told instead of the store's own .zarray.
        keys: its chunks' files.
    """

    n_bytes: int
    objects: bool
    steps: tuple[dict[str, Any], ...]
    metadata: bytes
    keys: tuple[str, ...]


class _Store(DirectoryStore):  # type: ignore[misc]
    """The files of a listing, metadata and chunks only, as zarr may see them."""

    def __init__(self, listing: Listing) -> None:
        super().__init__(listing.root)
        self.listing = listing
        self._files = {entry.path: entry for entry in listing.files}
        if "zarr.json" in self._files or ".zgroup" not in self._files:
            what = "format 3" if "zarr.json" in self._files else "no group"
            raise SourceError(f"is a Zarr store of {what}, not NWB in Zarr's format 2", file=self.path, remedy=_EXPORT)
        version = self._json(self._files[".zattrs"]).get("nwb_version") if ".zattrs" in self._files else None
        if not (isinstance(version, str) and version.removeprefix("NWB-").startswith("2.")):
            problem, remedy = (
                f"its nwb_version is {version!r}",
                "give the store of an NWB 2 file, as hdmf-zarr writes it",
            )
            raise SourceError(f"is a Zarr store but not NWB 2: {problem}", file=self.path, remedy=remedy)
        self._arrays = {path[: -len(".zarray")]: self._array(path) for path in self._files if _is(path, ".zarray")}
        self._array_of = {key: array for array in self._arrays.values() for key in array.keys}
        told = [path for path in self._files if _is(path, ".zarray") or _is(path, ".zgroup") or _is(path, ".zattrs")]
        self._children: dict[str, set[str]] = {}
        for path in told:
            parts = path.split("/")
            for i, part in enumerate(parts):
                self._children.setdefault("/".join(parts[:i]), set()).add(part)
        self._keys = {*told, *self._array_of}

    def _refused(self, what: str, problem: str, remedy: str = _EXPORT) -> SourceError:
        return SourceError(f"{what[:300]}: {problem}", file=self.path, remedy=remedy)

    def _json(self, entry: Entry) -> dict[str, Any]:
        """Read metadata.

        Raises:
            SourceError: it is too large, or no JSON object.
        """
        if entry.size > MOST_METADATA_BYTES:
            raise self._refused(entry.path, f"{entry.size} bytes of metadata are too many")
        try:
            found = json.loads(self.listing.read(entry))
        except (ValueError, RecursionError) as error:
            raise self._refused(entry.path, f"is no JSON: {str(error)[:200]}", _COPY) from None
        if not isinstance(found, dict):
            raise self._refused(entry.path, "is no JSON object", _COPY)
        return found

    def _array(self, path: str) -> _Array:
        about = self._json(self._files[path])
        try:
            return self._checked(path[: -len(".zarray")], about)
        except NeurofmxError:
            raise
        except Exception as error:  # any value may be of any type
            raise self._refused(path, f"is damaged: {type(error).__name__}: {str(error)[:200]}", _COPY) from None

    def _checked(self, folder: str, about: dict[str, Any]) -> _Array:
        shape, chunks, order = tuple(about["shape"]), tuple(about["chunks"]), about["order"]
        numbers = all(type(n) is int and n >= 0 for n in shape) and all(type(n) is int and n > 0 for n in chunks)
        separator = about.get("dimension_separator", ".")
        if not numbers or len(shape) != len(chunks) or order not in ("C", "F") or separator not in (".", "/"):
            raise ValueError(f"shape {shape}, chunks {chunks}, order {order!r}, separator {separator!r}")
        dtype = _dtype(about["dtype"])
        objects = dtype.hasobject
        n_bytes = math.prod(chunks) * dtype.itemsize
        if n_bytes > MOST_CHUNK_BYTES:
            raise self._refused(folder, f"chunks of {n_bytes} bytes are too large", "write it in smaller chunks")
        filters = list(about.get("filters") or ())
        told: list[dict[str, Any]] = []
        if objects:
            codec = filters.pop(0)["id"]
            if codec not in _Objects.kinds:
                raise self._refused(folder, f"its objects are stored with {codec!r}, which is not read")
            told = [{"id": _Objects.codec_id, "kind": codec, "count": math.prod(chunks), "dtype": _told(dtype)}]
        steps = [each for each in (about.get("compressor"), *reversed(filters)) if each]
        for step in steps:
            if step["id"] not in _UNPACK:
                problem = f"it is stored with the codec {step['id']!r}, which is not read; {', '.join(_UNPACK)} are"
                raise self._refused(folder, problem)
        grid = [-(-n // chunk) for n, chunk in zip(shape, chunks, strict=True)]
        if math.prod(grid) > len(self._files):
            raise self._refused(folder, "chunks of it are missing", _COPY)
        names = itertools.product(*map(range, grid)) if shape else [(0,)]
        keys = tuple(folder + separator.join(map(str, place)) for place in names)
        missing = sum(key not in self._files for key in keys)
        if missing:
            raise self._refused(folder, f"{missing} of its {len(keys)} chunks are missing", _COPY)
        clean = {"zarr_format": 2, "shape": shape, "chunks": chunks, "order": order, "dimension_separator": separator}
        clean |= {
            "dtype": _told(dtype),
            "compressor": None,
            "filters": told or None,
            "fill_value": None,
        }
        most = MOST_CHUNK_BYTES if objects else n_bytes
        return _Array(most, objects, tuple(steps), json.dumps(clean).encode(), keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __getitem__(self, key: str) -> bytes:
        if key not in self._keys:
            raise KeyError(key)
        if _is(key, ".zarray"):
            return self._arrays[key[: -len(".zarray")]].metadata
        if key not in self._array_of:
            return json.dumps(self._json(self._files[key])).encode()
        array, data = self._array_of[key], self.listing.read(self._files[key])
        try:
            for left, step in zip(range(len(array.steps), 0, -1), array.steps, strict=True):
                # what is packed twice may be a little larger in between
                most = array.n_bytes if left == 1 else array.n_bytes + array.n_bytes // 8 + 4096
                data = _UNPACK[step["id"]](data, most, step)
            if len(data) > array.n_bytes or (len(data) < array.n_bytes and not array.objects):
                raise ValueError(f"{len(data)} bytes in place of {array.n_bytes}")
        except Exception as error:  # damage can raise anything
            raise self._refused(key, f"is damaged: {type(error).__name__}: {str(error)[:200]}", _COPY) from None
        return data

    def keys(self) -> Iterator[str]:
        yield from sorted(self._keys)

    def listdir(self, path: str | None = None) -> list[str]:
        return sorted(self._children.get((path or "").strip("/"), ()))


class _Objects(numcodecs.abc.Codec):  # type: ignore[misc]
    """Objects out of unpacked chunks. The store's own codecs for them would run what is in a pickle."""

    codec_id = "neurofmx_wds.objects"
    kinds: ClassVar[dict[str, Callable[[bytes], np.ndarray]]] = {}

    def __init__(self, kind: str, count: int, dtype: Any) -> None:
        self.kind = kind
        self.count = count
        self.dtype = _dtype(dtype)

    def decode(self, buf: Any, out: Any = None) -> np.ndarray:
        found = self.kinds[self.kind](bytes(buf))
        if found.size != self.count:
            raise ValueError(f"a chunk holds {found.size} objects in place of {self.count}")
        return np.array(list(found.flat), self.dtype) if self.dtype.names else found

    def encode(self, buf: Any) -> Any:
        raise NotImplementedError("stores are only read")


def _is(path: str, name: str) -> bool:
    return path.rpartition("/")[2] == name


def _dtype(told: Any) -> np.dtype[Any]:
    """Return the type of an array of numbers, of text of one length, of objects, or of rows of these."""
    dtype = np.dtype([tuple(each) for each in told] if isinstance(told, list) else str(told))
    plain = [dtype[name] for name in dtype.names] if dtype.names else [dtype]
    if any(each.kind not in "biufcSUmMO" or not each.itemsize or each.subdtype for each in plain):
        raise ValueError(f"data of type {dtype}")
    return dtype


def _told(dtype: np.dtype[Any]) -> Any:
    return dtype.descr if dtype.names else dtype.str


def _json_values(data: bytes) -> np.ndarray:
    """Return the values of numcodecs' JSON: a list of them, with a type and a shape at its end."""
    return np.fromiter(json.loads(data)[:-2], object)


def _texts(data: bytes, is_text: bool = True) -> np.ndarray:
    """Return the strings of numcodecs' VLenUTF8 or VLenBytes: a count, then each behind its length, 4 bytes each."""
    count, at = int.from_bytes(data[:4], "little"), 4
    if at + 4 * count > len(data):
        raise ValueError("a chunk of strings is cut short")
    found: list[str | bytes] = []
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(data[start - 4 : start], "little")
        if at > len(data):
            raise ValueError("a chunk of strings is cut short")
        found.append(data[start:at].decode() if is_text else data[start:at])
    return np.fromiter(found, object)


_Objects.kinds |= {
    "pickle": decode_objects,
    "json2": _json_values,
    "vlen-utf8": _texts,
    "vlen-bytes": functools.partial(_texts, is_text=False),
}
numcodecs.registry.register_codec(_Objects)


def _inflate(wbits: int) -> Callable[[bytes, int, dict[str, Any]], bytes]:
    def unpack(data: bytes, most: int, _: dict[str, Any]) -> bytes:
        inflater = zlib.decompressobj(wbits)
        found = inflater.decompress(data, most + 1)
        if len(found) > most or not inflater.eof:
            raise ValueError(f"it is cut short, or more than {most} bytes")
        return found

    return unpack


def _sized(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"{size} bytes where at most {most} belong")


def _blosc(data: bytes, most: int, _: dict[str, Any]) -> bytes:
    _sized(int.from_bytes(data[4:8], "little"), most)
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):  # which Blosc believes
        raise ValueError("it is cut short")
    return bytes(numcodecs.blosc.decompress(data))


def _zstd(data: bytes, most: int, _: dict[str, Any]) -> bytes:
    about = data[4]  # RFC 8878, 3.1.1.1
    single, width = about >> 5 & 1, (1 if about >> 5 & 1 else 0, 2, 4, 8)[about >> 6]
    at = 6 - single + (0, 1, 2, 4)[about & 3]
    if width == 0:
        raise ValueError("its frame does not say its size")
    _sized(int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0), most)
    return bytes(numcodecs.zstd.decompress(data))


def _lz4(data: bytes, most: int, _: dict[str, Any]) -> bytes:
    _sized(int.from_bytes(data[:4], "little"), most)
    return bytes(numcodecs.lz4.decompress(data))


def _shuffle(data: bytes, _: int, about: dict[str, Any]) -> bytes:
    width = about["elementsize"]
    if type(width) is not int or width < 1 or len(data) % width:
        raise ValueError(f"{len(data)} bytes cannot be shuffled by {width!r}")
    return np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()


#: By codec, what undoes it: (data, most bytes that may come of it, the codec's configuration) → data.
_UNPACK: dict[str, Callable[[bytes, int, dict[str, Any]], bytes]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "zlib": _inflate(15),
    "gzip": _inflate(31),
    "shuffle": _shuffle,
}
