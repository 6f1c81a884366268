"""Arrays in .npz and .npy files as a source of samples: the first dimension counts them.

Reads rows, never whole arrays; knows nothing of time, bins or shards.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...errors import FieldError, NeurofmxError, SourceError, UnsafeDataError, did_you_mean
from ...format.names import check_field_name
from ...format.npy import read_header
from ...storage.location import is_url, name_of, open_binary
from .contract import SourceDescription
from .settings import ArrayConfig

BLOCK_BYTES = 8 << 20
_LOCAL_HEADER = 30  # of a zip member, before its name and extra field
_DAMAGED = "the file may be cut or damaged: save it again"


class PackedRows:
    """An array in a stream: behind a URL, or in a deflated zip member, which goes back only by way of its start.

    Args:
        stream: where it is.
        dtype, shape: of the array.
        offset: bytes before it.
    """

    def __init__(self, stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> None:
        self.shape = shape
        self.dtype = dtype
        self._stream = stream
        self._offset = offset

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        count, row_bytes = rows.stop - rows.start, math.prod(self.shape[1:]) * self.dtype.itemsize
        self._stream.seek(self._offset + rows.start * row_bytes)
        data = self._stream.read(count * row_bytes)
        if len(data) < count * row_bytes:
            raise EOFError("a member ends too early")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def ends_here(self) -> bool:
        """Whether the stream ends behind the row that was read last."""
        return not self._stream.read(1)


Rows = npt.NDArray[Any] | PackedRows


def mapped(
    path: str | Path, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, offset: int
) -> npt.NDArray[Any]:
    """Map an array that lies in a file as it is, `offset` bytes from its start."""
    if math.prod(shape) * dtype.itemsize == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


class ArraySource:
    """The rows of one .npz or .npy file.

    Args:
        path: the file. An .npz gives every array in it, an .npy the field ``config.field``.
        config: ``modalities`` picks fields; what is about time is ignored.
        kind: "npz" or "npy", which the file must be; None: either.

    Raises:
        SourceError: the file cannot be read, holds Python objects, no samples' dimension, unequal lengths, a field name
            that webdataset would change, or lacks a field that was asked for.
    """

    def __init__(self, path: str | os.PathLike[str], config: ArrayConfig, kind: str | None = None) -> None:
        self.path = os.fspath(path)
        self._name = name_of(self.path)
        self._closing = contextlib.ExitStack()
        try:
            self._arrays = dict(sorted(self._open(config, kind).items()))
            self._n = self._common_length()
        except BaseException as error:
            self._closing.close()
            if isinstance(error, SourceError) or not isinstance(error, Exception):
                raise
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> SourceError:
        if isinstance(error, NeurofmxError):
            return SourceError(error.problem, file=self.path, member=error.member, remedy=error.remedy)
        told = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return SourceError(f"cannot be read: {told}", file=self.path, remedy=_DAMAGED)

    def _open(self, config: ArrayConfig, kind: str | None) -> dict[str, Rows]:
        with open_binary(self.path) as stream:
            zipped = stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
        if kind == ("npy" if zipped else "npz"):
            raise SourceError(f"is not an {kind} file", file=self.path, remedy="leave the format to be found out")
        names = self._npz_names() if zipped else {config.field: ""}
        for name in names:
            self._check_name(name)
        missing = [name for name in config.modalities or () if name not in names]
        if missing or not names:
            close = [did_you_mean(name, names) for name in missing]
            raise SourceError(
                f"has no {', '.join(missing) or 'arrays'}; it has {', '.join(names) or 'none'}",
                file=self.path,
                remedy=" ".join([*filter(None, close), "ask for fields that it has"]),
            )
        wanted = {name: member for name, member in names.items() if name in (config.modalities or names)}
        if not zipped:
            return {name: self._npy(name) for name in wanted}
        return {name: self._member(name, member) for name, member in wanted.items()}

    def _npz_names(self) -> dict[str, str]:
        """Field → zip member."""
        self._zip = self._closing.enter_context(zipfile.ZipFile(self._closing.enter_context(open_binary(self.path))))
        members = self._zip.namelist()
        others = [member for member in members if not member.endswith(".npy")]
        if others or len(set(members)) < len(members):
            what = f"a member that is no array: {others[0]!r}" if others else "two arrays of one name"
            raise SourceError(f"holds {what}", file=self.path, remedy="save it with numpy.savez")
        return {member[: -len(".npy")]: member for member in members}

    def _check_name(self, name: str) -> None:
        try:
            check_field_name(name)
            if name == "metadata" or name.endswith(".npy"):
                raise FieldError("the field name has a meaning of its own", member=name, remedy="rename the field")
        except FieldError as error:
            raise SourceError(error.problem, file=self.path, member=error.member, remedy=error.remedy) from error

    def _npy(self, name: str) -> Rows:
        with open_binary(self.path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            header = self._header(name, stream, size)
        return self._stored(*header)

    def _member(self, name: str, member: str) -> Rows:
        """Open a member: a stored one is mapped where it lies, a deflated one is read forward."""
        info = self._zip.getinfo(member)
        with self._zip.open(info) as stream:
            dtype, shape, fortran, offset = self._header(name, stream, info.file_size)
        if info.compress_type == zipfile.ZIP_STORED:
            with open_binary(self.path) as file:
                file.seek(info.header_offset)
                local = file.read(_LOCAL_HEADER)
            offset += info.header_offset + _LOCAL_HEADER
            offset += int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
            return self._stored(dtype, shape, fortran, offset)
        if not fortran:
            return PackedRows(self._closing.enter_context(self._zip.open(info)), dtype, shape, offset)
        with self._zip.open(info) as stream:
            return self._spilled(stream, dtype, shape, offset)

    def _stored(self, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, offset: int) -> Rows:
        """Open an array that lies in the file as it is."""
        if not is_url(self.path) or math.prod(shape) * dtype.itemsize == 0:
            return mapped(self.path, dtype, shape, fortran, offset)
        stream = self._closing.enter_context(open_binary(self.path))
        return (self._spilled if fortran else PackedRows)(stream, dtype, shape, offset)

    def _spilled(self, stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> Rows:
        """Copy an array in Fortran order, whose rows lie all over the stream, to a file that can be mapped."""
        spill = self._closing.enter_context(tempfile.NamedTemporaryFile())
        stream.seek(offset)
        left = math.prod(shape) * dtype.itemsize
        while left and (piece := stream.read(min(left, BLOCK_BYTES))):
            left -= spill.write(piece)
        spill.flush()
        return mapped(spill.name, dtype, shape, True, 0)

    def _header(self, name: str, stream: IO[bytes], size: int) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
        """Return dtype, shape, whether in Fortran order, and where the data begins; they fit into `size` bytes."""
        try:
            dtype, shape, fortran, offset = read_header(stream)
        except UnsafeDataError as error:
            remedy = "save it with numpy.save, with a numeric or string dtype"
            raise self._refused(name, f"is not a plain array: {error.problem}", remedy) from error
        if not shape:
            raise self._refused(name, "is a single number: its first dimension must count samples", "leave it out")
        if offset + math.prod(shape) * dtype.itemsize > size:
            raise self._refused(name, f"is cut short: its {shape} {dtype} do not fit into {size} bytes", _DAMAGED)
        return dtype, shape, fortran and len(shape) > 1, offset

    def _refused(self, name: str, problem: str, remedy: str) -> SourceError:
        return SourceError(problem, file=self.path, member=name, remedy=remedy)

    def _common_length(self) -> int:
        lengths = {name: array.shape[0] for name, array in self._arrays.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise SourceError(
                f"its arrays differ in their first dimension, the samples: {told}",
                file=self.path,
                remedy="cut them to one length, or pick some with modalities",
            )
        return next(iter(lengths.values()))

    @property
    def arrays(self) -> dict[str, Rows]:
        """The arrays, by field: sliceable along their first dimension."""
        return self._arrays

    def describe(self) -> SourceDescription:
        """Describe how many rows there are, and of what."""
        fields = {
            name: {"dtype": array.dtype.name, "shape": list(array.shape[1:])} for name, array in self._arrays.items()
        }
        empty = "" if self._n else "there are no samples in it"
        report = {
            "path": self._name,
            "windows": {"emitted": self._n, "dropped": {}},
            "warnings": [empty] if empty else [],
        }
        return SourceDescription(self._n, fields, report, empty)

    def read(self, start: int, stop: int) -> Iterator[tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]]:
        """Yield the rows [start, stop) in order, in native byte order, with metadata ``source`` and ``sample_index``.

        Raises:
            IndexError: there are no such rows.
            SourceError: the file is damaged.
        """
        if not 0 <= start <= stop <= self._n:
            raise IndexError(f"rows [{start}, {stop}) of {self._n} in {self.path}")
        row_bytes = sum(math.prod(array.shape[1:]) * array.dtype.itemsize for array in self._arrays.values())
        block = max(1, BLOCK_BYTES // max(1, row_bytes))
        for first in range(start, stop, block):
            rows = self._block(slice(first, min(first + block, stop)))
            for i in range(first, min(first + block, stop)):
                yield (
                    {name: array[i - first, ...] for name, array in rows.items()},
                    {"source": self._name, "sample_index": i},
                )

    def _block(self, rows: slice) -> dict[str, npt.NDArray[Any]]:
        try:
            return {
                name: np.array(array[rows], array.dtype.newbyteorder("="), order="C")
                for name, array in self._arrays.items()
            }
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """Close the file."""
        self._arrays = {}
        self._closing.close()
