"""A dataset's shards, open for reading: their order, each one's index and its bytes.

Knows the format; knows nothing of order or batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import REBUILD_INDEX, RESTORE, ShardError, ShardIndexError
from ..storage.cache import DEFAULT_CACHE_SIZE, ShardCache, is_compressed
from .columns import Column
from .finding import DEFAULT_SHARD_PATTERN, ShardDir, find_shards
from .index import ShardIndex, index_path
from .manifest import Manifest, ShardRecord
from .plain import build_index, open_plain
from .tar import header_stands_at

_INDEX_MEMORY = 256 << 20
_HEADERS = 4096  # bytes before a payload in which its name stands
_REPLACED = f"it was cut or replaced: restore it, or {REBUILD_INDEX}"


@dataclass
class ShardSet:
    """The shards of a dataset, in order.

    Attributes:
        paths: the shard files.
        records: what the manifest (or the index) says of each.
        manifest: the manifest, or None where there is none.
        cache: where compressed shards are unpacked.
    """

    paths: list[Path]
    records: list[ShardRecord]
    manifest: Manifest | None
    cache: ShardCache
    _seen: dict[int, tuple[int, int, int]] = field(default_factory=dict, repr=False)
    _indexes: OrderedDict[int, ShardIndex] = field(default_factory=OrderedDict, repr=False)
    _index_bytes: int = 0

    @property
    def counts(self) -> np.ndarray:
        """Samples in each shard, shape (n_shards,), int64."""
        return np.array([record.n_samples for record in self.records], np.int64)

    @property
    def n_samples(self) -> int:
        """Samples in all shards."""
        return sum(record.n_samples for record in self.records)

    @property
    def sample_bytes(self) -> int:
        """About how many bytes a sample takes in its shard; 1 where that is not known."""
        return max(1, sum(record.n_bytes for record in self.records) // max(1, self.n_samples))

    @property
    def compressed(self) -> bool:
        """Whether any shard goes through the cache."""
        return any(is_compressed(path) for path in self.paths)

    def fingerprints(self) -> list[str]:
        """Return what tells this dataset from others: 32 hexadecimal digits, or twice as many.

        Returns:
            A digest of the shards' names, sample counts and checksums, where all checksums are known; and one of their
            names, sample counts and sizes, which is known even where manifest and indexes were lost.
        """
        by_size = [[record.shard_name, record.n_samples, record.n_bytes] for record in self.records]
        by_content = [[record.shard_name, record.n_samples, record.sha256] for record in self.records]
        known = [by_content] if all(record.sha256 for record in self.records) else []
        return [hashlib.sha256(json.dumps(each).encode()).hexdigest()[:32] for each in (*known, by_size)]

    def index(self, i: int) -> ShardIndex:
        """Return the index of shard i: read from its sidecar, or made from the tar if it has none.

        Raises:
            ShardIndexError: the sidecar is damaged or belongs to another shard.
            ShardError: the tar is damaged.
        """
        index = self._indexes.pop(i, None)
        if index is None:
            index = self._read_index(i)
            self._index_bytes += index.n_bytes
        return self._keep_index(i, index)

    def _keep_index(self, i: int, index: ShardIndex) -> ShardIndex:
        self._indexes[i] = index  # now the most recently used
        while self._index_bytes > _INDEX_MEMORY and len(self._indexes) > 1:
            self._index_bytes -= self._indexes.popitem(last=False)[1].n_bytes
        return index

    def _read_index(self, i: int) -> ShardIndex:
        return read_index(self.paths[i], self.cache, self.records[i])

    def expect_indexes(self, which: Iterable[int]) -> None:
        """Prepare for using the indexes of some shards soon."""

    def expect_field(self, i: int, column: Column) -> None:
        """Prepare for reading one field of all samples of shard i."""

    def copy_of(self, i: int) -> Path:
        """Return the place of a compressed shard's unpacked copy."""
        return self.cache.copy_of(self.paths[i])

    def open(self, i: int) -> IO[bytes]:
        """Open the tar of shard i, unpacked. Its size and its first and last member must be what its index says.

        Raises:
            ShardError: missing, of another size, or another shard.
        """
        path, index = self.paths[i], self.index(i)
        stream = self._open(path, index)
        try:
            self._check_identity(i, path)
        except (ShardError, OSError):
            stream.close()
            raise
        if not all(_has_member(stream, index, sample) for sample in {0, index.n_samples - 1} if index.n_samples):
            stream.close()
            raise ShardError("the shard does not hold what its index says", file=path, remedy=_REPLACED)
        return stream

    def _check_identity(self, i: int, path: Path) -> None:
        """Refuse a file that is not the one opened before."""
        stat = path.stat()
        identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._seen.setdefault(i, identity) != identity:
            raise ShardError("the shard was replaced while it was in use", file=path, remedy="start again")

    def _open(self, path: Path, index: ShardIndex) -> IO[bytes]:
        try:
            stream = open_plain(path, self.cache, index)
        except FileNotFoundError as error:
            raise ShardError("the shard is missing", file=path, remedy=RESTORE) from error
        size = os.fstat(stream.fileno()).st_size
        if size != index.tar_size:
            stream.close()
            problem = f"the shard has {size} bytes, its index says {index.tar_size}"
            raise ShardError(problem, file=path, remedy=_REPLACED)
        return stream

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_indexes": OrderedDict(), "_index_bytes": 0}


def _has_member(stream: IO[bytes], index: ShardIndex, sample: int) -> bool:
    """Whether the header of a sample's first member stands where the index says: by its size and name."""
    member = int(index.sample_start[sample])
    offset, size = int(index.member_offset[member]), int(index.member_size[member])
    name = f"{index.sample_keys[sample]}.{index.suffixes[index.member_suffix[member]]}"
    start = max(0, offset - len(name.encode("utf-8", "surrogateescape")) - _HEADERS)
    try:
        before = os.pread(stream.fileno(), offset - start, start)
    except (OSError, OverflowError):
        return False
    return header_stands_at(before, None if "linked" in index.traits else name, size)


def open_shards(
    shard_dir: ShardDir,
    shard_pattern: str = DEFAULT_SHARD_PATTERN,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int = DEFAULT_CACHE_SIZE,
) -> ShardSet:
    """Open a dataset's shards. With a manifest no tar and no index is read.

    Args:
        shard_dir: a directory, a shard, a pattern with braces or wildcards, or a list of these.
        shard_pattern: which files of a directory are shards. It also narrows what its manifest lists.
        cache_dir: where compressed shards are unpacked.
        cache_size: bytes that they may take there.

    Raises:
        FileNotFoundError: there is no such directory or shard.
        ShardError: no shards, a directory in a list, or a remote address.
        ManifestError: the manifest is damaged, or names shards that are missing.

    Example:
        >>> import numpy as np, tempfile
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"spikes": np.ones((5, 100, 96), "float32")}, shard_size=2)
        >>> shards = open_shards(out)
        >>> shards.counts, shards.index(0).sample_keys
        (array([2, 2, 1]), ['sample_000000000', 'sample_000000001'])
    """
    cache = ShardCache(cache_dir, cache_size)
    paths, records, manifest = find_shards(shard_dir, shard_pattern)
    if records is None:
        indexes = (read_index(path, cache) for path in paths)
        records = [ShardRecord(i.shard_name, i.n_samples, i.file_size, i.sha256) for i in indexes]
    return ShardSet(paths, records, manifest, cache)


def read_index(path: Path, cache: ShardCache, record: ShardRecord | None = None) -> ShardIndex:
    """Return a shard's index, from its index file or from the tar itself.

    An index made here is saved beside the shard if that directory can be written. If the manifest has the shard's
    checksum, the whole shard is compared with it first, so that no changed byte enters the checksums of the index.

    Args:
        path: the shard.
        cache: where it is unpacked if it is compressed.
        record: its entry in the manifest.

    Raises:
        ShardIndexError: the index file is damaged, or does not belong to this shard.
        ShardError: the tar is damaged.
    """
    sidecar = index_path(path)
    try:
        index = ShardIndex.beside(path)
    except FileNotFoundError:
        index = build_index(path, cache, checksum=record is not None and record.sha256 is not None)
        with contextlib.suppress(OSError):
            index.save(sidecar)
    check_index(index, path.name, record, sidecar)
    if record is None and index.file_size != path.stat().st_size:
        problem = f"the index tells of {index.file_size} bytes, {path.name} has {path.stat().st_size}"
        raise ShardIndexError(problem, file=sidecar, remedy=REBUILD_INDEX)
    return index


def check_index(index: ShardIndex, name: str, record: ShardRecord | None, sidecar: str | os.PathLike[str]) -> None:
    """Refuse an index that is not of the shard of this name that the manifest describes.

    Raises:
        ShardIndexError: naming the sidecar.
    """
    if index.shard_name != name:
        index_problem = f"the index is of {index.shard_name!r}"
    elif record is not None and (index.n_samples, index.file_size) != (record.n_samples, record.n_bytes):
        index_problem = (
            f"the index tells of {index.n_samples} samples in {index.file_size} bytes, "
            f"the manifest of {record.n_samples} in {record.n_bytes}"
        )
    elif record is not None and None not in (index.sha256, record.sha256) and index.sha256 != record.sha256:
        index_problem = "the index and the manifest have different checksums for the shard"
    else:
        return
    raise ShardIndexError(index_problem, file=sidecar, remedy=REBUILD_INDEX)
