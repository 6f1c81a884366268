"""One shard in use: its open tar, and where each sample's fields, key and metadata are.

Knows an index and a tar; knows nothing of other shards, order or batches.
"""

from __future__ import annotations

import functools
import mmap
import sys
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import INDEX_SHARDS, RESTORE, NeurofmxError, ShardError
from ..format.decoding import decode
from ..format.index import Column, ShardIndex
from ..format.limits import Buffer
from ..format.names import field_of
from ..format.shards import ShardSet
from ..storage.cache import is_compressed
from ..storage.checksums import crc32_of
from .copying import copy_mapped, copy_pread, pieces
from .memory import Rows

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
        here = index.columns if self.modalities is None else ()
        return OpenShard(self.shards, i, dict.fromkeys([*here, *self.fields]), self.mapped, self.checksums is not False)


class OpenShard:
    """A shard in use.

    Attributes:
        source: its tar: a memoryview of the mapped file, or the open file.
        copy: the function that copies payloads out of `source`.
        signature: name, dtype (None where the samples differ or are not plain arrays) and shape of each field. Shards
            that are alike have the very same object.
        records: for each sample where its fields' data begin, its key and its metadata: one look-up returns all.
        to_check: whether there may be samples whose plain arrays have not been compared with their checksums yet.
    """

    def __init__(self, shards: ShardSet, i: int, names: Iterable[str], mapped: bool, checksums: bool) -> None:
        self.index = shards.index(i)
        self.path = shards.paths[i]
        stream = shards.open(i)
        self.source: Any = stream
        self.copy = copy_mapped if mapped else copy_pread
        self._remedy = _RESTORE
        if is_compressed(self.path):  # whose own checksum was compared when it was unpacked
            self._remedy = f"remove its unpacked copy, {shards.cache.copy_of(self.path)}; else {_RESTORE}"
        if mapped:
            with stream:
                mapped_file = mmap.mmap(stream.fileno(), self.index.tar_size, access=mmap.ACCESS_READ, **_MAPPING)
                self.source = memoryview(mapped_file)
        else:
            weakref.finalize(self, stream.close)
        here = _columns(self.index, names)
        self.signature = _same(tuple((name, *_plain_array(column)) for name, column in here))
        starts = [column.data_starts if column else [-1] * self.index.n_samples for _, column in here]
        self.records = list(zip(*starts, self.index.sample_keys, self.index.sample_metadata, strict=True))
        self._checksums = checksums
        self._copied = [column for _, column in here if column and column.layout]
        self.to_check = checksums and self.index.has_checksums and bool(self._copied)

    @property
    def n_bytes(self) -> int:
        """Memory that it takes, roughly, in bytes."""
        return len(self.records) * (250 + 40 * len(self.signature)) + self.index.n_bytes

    def decode(self, name: str, row: int) -> Any:
        """Return the value of one field of one sample; None where the sample lacks it.

        Raises:
            ShardError: the payload is not what was written, or cannot be decoded.
        """
        column = self.index.columns.get(name)
        if column is None or column.offset[row] < 0:
            return None
        suffix = self.index.suffixes[column.suffix_id[row]]
        payload = bytearray(int(column.size[row]))
        if payload:
            self.copy([self.source], [int(column.offset[row])], Rows(memoryview(payload)))
        self._compare(column, row, [payload])
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

    def check(self, row: int) -> None:
        """Compare a sample's plain arrays with their checksums.

        Raises:
            ShardError: they are not what was written.
        """
        for column in self._copied:
            start = int(column.offset[row])
            self._compare(column, row, pieces(self.source, start, start + int(column.size[row])))

    def _compare(self, column: Column, row: int, payload: Iterable[Buffer]) -> None:
        if self._checksums and column.crc32 is not None and crc32_of(payload) != column.crc32[row]:
            raise ShardError(
                "the bytes have changed since they were written: their checksum differs",
                file=self.path,
                sample=self.index.sample_keys[row],
                member=self.index.suffixes[column.suffix_id[row]],
                remedy=self._remedy,
            )


Signature = tuple[tuple[str, torch.dtype | None, tuple[int, ...]], ...]


def _columns(index: ShardIndex, names: Iterable[str]) -> list[tuple[str, Column | None]]:
    """Return the fields with these names, None for those of other shards; without those that are in several columns."""
    held = {field_of(suffix) for suffix in index.suffixes} - set(index.columns) | {"metadata"}
    return [(name, index.columns.get(name)) for name in names if name not in held]


@functools.lru_cache(maxsize=1024)
def _same(signature: Signature) -> Signature:
    return signature


def _plain_array(column: Column | None) -> tuple[torch.dtype | None, tuple[int, ...]]:
    if column is None or column.layout is None:
        return None, ()
    return torch_dtype(column.layout.dtype), column.layout.shape


@functools.lru_cache(maxsize=256)
def torch_dtype(dtype: str) -> torch.dtype | None:
    """Return torch's dtype for a numpy dtype; None where torch has none, or the byte order is foreign.

    Example:
        >>> torch_dtype("<f4"), torch_dtype(">f4"), torch_dtype("<U3")
        (torch.float32, None, None)
    """
    if not np.dtype(dtype).isnative:
        return None
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError:
        return None
