"""One shard in use: its open tar, and where each sample's fields, key and metadata are.

Knows an index and a tar; knows nothing of other shards, order or batches.
"""

from __future__ import annotations

import functools
import itertools
import math
import mmap
import sys
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import INDEX_SHARDS, RESTORE, NeurofmxError, ShardError
from ..format.columns import Column
from ..format.decoding import decode
from ..format.index import ShardIndex
from ..format.names import field_of
from ..format.npy import layout_of
from ..format.shards import ShardSet
from ..storage.cache import is_compressed
from ..storage.checksums import crc32_of
from .collate import torch_dtype
from .copying import MAPPED, PREAD
from .memory import Rows
from .page_in import is_cached
from .ragged import Ragged

_MAPPING: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}  # keep no file handle of its own
_RESTORE = f"{RESTORE}, or skip the sample with handler="


@dataclass(frozen=True)
class ShardOpener:
    """Opens the shards of a dataset for reading.

    Attributes:
        shards: the dataset.
        modalities: the fields to read; None: all that a shard has.
        fields: fields that every batch has, also where the shard lacks them.
        mapped: map shards into memory, instead of reading them with system calls.
        checksums: compare payloads with the checksums in the index; None: where it has them, True: it must.
    """

    shards: ShardSet
    modalities: Sequence[str] | None
    fields: Sequence[str]
    mapped: bool
    checksums: bool | None

    def __call__(self, i: int) -> OpenShard:
        """Open the i-th shard.

        Raises:
            ShardError: it is missing, damaged or not what its index describes, or its index lacks checksums.
            OSError: it cannot be opened.
        """
        index = self.shards.index(i)
        if self.checksums and not index.has_checksums:
            raise ShardError("the index has no checksums", file=self.shards.paths[i], remedy=INDEX_SHARDS)
        if self.modalities is None:
            index.columns.check_all(self.shards.paths[i])
        here = index.columns if self.modalities is None else ()
        return OpenShard(self.shards, i, dict.fromkeys([*here, *self.fields]), self.mapped, self.checksums is not False)


class OpenShard:
    """A shard in use.

    Attributes:
        source: its tar: a memoryview of the mapped file, or the open file.
        access: how bytes get out of `source`.
        signature: what its fields are. Shards that are alike have the very same object.
        records: for each sample where the data of its first field begin and the field's checksum (-1: none to compare),
            likewise for the other fields, then its key and its metadata: one look-up returns all.
        is_cached: whether the system seems to have all of a mapped tar in memory already.
        to_check: whether there may be samples whose copied fields have not been compared with their checksums yet.
    """

    def __init__(self, shards: ShardSet, i: int, names: Iterable[str], mapped: bool, checksums: bool) -> None:
        self.index = shards.index(i)
        self.path = shards.paths[i]
        stream = shards.open(i)
        self.source: Any = stream
        self.access = MAPPED if mapped else PREAD
        self.is_cached = False
        self._remedy = _RESTORE
        if is_compressed(self.path):  # whose own checksum was compared when it was unpacked
            self._remedy = f"remove its unpacked copy, {shards.copy_of(i)}; else {_RESTORE}"
        if mapped:
            with stream:
                self.is_cached = is_cached(stream.fileno(), self.index.tar_size)
                mapped_file = mmap.mmap(stream.fileno(), self.index.tar_size, access=mmap.ACCESS_READ, **_MAPPING)
                self.source = memoryview(mapped_file)
        else:
            weakref.finalize(self, stream.close)
        here = _columns(self.index, names)
        self._columns = [column for _, column in here]
        self.signature = _same(tuple(_described(name, column) for name, column in here))
        self._checksums = checksums
        self._ragged: dict[str, Ragged | None] = {}
        self._arrays: dict[tuple[str, int], np.ndarray] = {}
        self.to_check = checksums and self.index.has_checksums and any(field.dtype for field in self.signature)
        absent = [-1] * self.index.n_samples
        starts = [column.data_starts if column else absent for column in self._columns]
        crc32s = [column.crc32 if column and self.to_check else None for column in self._columns]
        sums = [absent if crc32 is None else crc32.tolist() for crc32 in crc32s]
        numbers = itertools.chain.from_iterable(zip(starts, sums, strict=True))
        self.records = list(zip(*numbers, self.index.sample_keys, self.index.sample_metadata, strict=True))

    @property
    def n_bytes(self) -> int:
        """Memory that it takes, roughly, in bytes."""
        return len(self.records) * (250 + 80 * len(self.signature)) + self.index.n_bytes

    @property
    def n_read_bytes(self) -> int:
        """About how many bytes of its tar are read, of all samples."""
        return sum(int(column.size[:1].sum()) for column in self._columns if column) * len(self.records)

    def decode(self, name: str, row: int) -> Any:
        """Return the value of one field of one sample; None where the sample lacks it.

        Raises:
            ShardError: the payload is not what was written, or cannot be decoded.
        """
        column = self.index.columns.get(name)
        if column is None or column.offset[row] < 0:
            return None
        payload = bytearray(int(column.size[row]))
        if payload:
            self.access.copy([self.source], [int(column.offset[row])], Rows(memoryview(payload)))
        if self._checksums and column.crc32 is not None and crc32_of([payload]) != column.crc32[row]:
            raise self.error_if_changed(column, row)
        suffix = self.index.suffixes[column.suffix_id[row]]
        try:
            return decode(suffix, payload)
        except NeurofmxError as error:
            raise type(error)(
                error.problem,
                file=self.path,
                sample=self.index.sample_keys[row],
                member=suffix,
                remedy=error.remedy or _RESTORE,
            ) from error

    def array(self, name: str, row: int) -> np.ndarray:
        """Return one array of a sample, read-only: of a mapped shard a view, made and checked once, else a copy.

        Raises:
            ShardError: the payload is not what was written, or is not a plain array.
        """
        found = self._arrays.get((name, row))
        if found is None:
            column = self.index.columns.get(name)
            layout = None
            if column is not None and column.offset[row] >= 0 and isinstance(self.source, memoryview):
                start, size = int(column.offset[row]), int(column.size[row])
                payload = self.source[start : start + size]
                layout = layout_of(self.index.suffixes[column.suffix_id[row]], payload)
            if column is None or layout is None:
                return self._decoded_array(name, row)
            if self._checksums and column.crc32 is not None and crc32_of([payload]) != column.crc32[row]:
                raise self.error_if_changed(column, row)
            found = np.frombuffer(payload, layout.dtype, math.prod(layout.shape), layout.header_size)
            found = self._arrays[name, row] = found.reshape(layout.shape)
        return found

    def _decoded_array(self, name: str, row: int) -> np.ndarray:
        found = self.decode(name, row)
        if isinstance(found, np.ndarray):
            return found
        key = self.index.sample_keys[row]
        raise ShardError("there is no array where one was written", file=self.path, sample=key, member=name)

    def ragged(self, name: str) -> Ragged | None:
        """Return a field whose arrays differ at most in their first dimension; None where it must be decoded."""
        if name not in self._ragged:
            self._ragged[name] = Ragged.of(self.index, self.index.columns.get(name), self._checksums)
        return self._ragged[name]

    def changed(self, f: int, row: int) -> ShardError:
        """Return the error for a sample whose field at place `f` of `signature` is not what was written."""
        column = self._columns[f]
        assert column is not None
        return self.error_if_changed(column, row)

    def error_if_changed(self, column: Column, row: int) -> ShardError:
        """Return the error for a payload that is not what was written."""
        return ShardError(
            "the bytes have changed since they were written: their checksum differs",
            file=self.path,
            sample=self.index.sample_keys[row],
            member=self.index.suffixes[column.suffix_id[row]],
            remedy=self._remedy,
        )


class Field(NamedTuple):
    """One field of a shard.

    Attributes:
        name: its name.
        dtype: of its arrays, if they can be copied as they are; None: each must be decoded.
        shape: of each sample's array.
        header_size: bytes before an array's data.
    """

    name: str
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()
    header_size: int = 0


Signature = tuple[Field, ...]


def _columns(index: ShardIndex, names: Iterable[str]) -> list[tuple[str, Column | None]]:
    """Return the fields with these names, None for those of other shards; without those that are in several columns."""
    held = {field_of(suffix) for suffix in index.suffixes} - set(index.columns) | {"metadata"}
    return [(name, index.columns.get(name)) for name in names if name not in held]


@functools.lru_cache(maxsize=1024)
def _same(signature: Signature) -> Signature:
    return signature


def _described(name: str, column: Column | None) -> Field:
    """Describe a field. It can be copied if each payload is a header, some bytes of one kind of array, and no more."""
    layout = column.layout if column else None
    if column is None or layout is None or not layout.n_bytes:
        return Field(name)
    if (column.size != layout.header_size + layout.n_bytes).any():
        return Field(name)
    return Field(name, torch_dtype(layout.dtype), layout.shape, layout.header_size)
