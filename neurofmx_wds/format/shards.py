"""Which shards make up a dataset, and each shard's index: from a directory, a pattern or a list of paths.

Knows the format; knows nothing of order or batches.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

import numpy as np

from ..errors import CONVERT_FIRST, MERGE_DATASETS, REBUILD_INDEX, ManifestError, ShardError, ShardIndexError, join_some
from ..storage.atomic import ASIDE_SUFFIX
from ..storage.cache import DEFAULT_CACHE_SIZE, ShardCache, is_compressed
from .index import SOURCE_SUFFIXES, ShardIndex, index_path, index_tar
from .manifest import MANIFEST_NAME, Manifest, ShardRecord

DEFAULT_SHARD_PATTERN = "shard_*.tar*"
_INDEX_MEMORY = 256 << 20
_REPLACED = f"it was cut or replaced: restore it, or {REBUILD_INDEX}"

ShardDir = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


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

    def fingerprint(self) -> str:
        """32 hexadecimal digits that tell this dataset from another: shard names, counts, and checksums or sizes."""
        known = self.manifest is not None  # a checksum that `index` adds later must not make another dataset of it
        records = [[r.shard_name, r.n_samples, (known and r.sha256) or r.n_bytes] for r in self.records]
        return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:32]

    def index(self, i: int) -> ShardIndex:
        """The index of shard i: read from its sidecar, or made from the tar where there is none.

        Raises:
            ShardIndexError: the sidecar is damaged or belongs to another shard.
            ShardError: the tar is damaged.
        """
        index = self._indexes.pop(i, None)
        if index is None:
            index = read_index(self.paths[i], self.cache, self.records[i])
            self._index_bytes += index.n_bytes
        self._indexes[i] = index  # now the most recently used
        while self._index_bytes > _INDEX_MEMORY and len(self._indexes) > 1:
            self._index_bytes -= self._indexes.popitem(last=False)[1].n_bytes
        return index

    def open(self, i: int) -> IO[bytes]:
        """Open the tar of shard i, unpacked; its size and its first and last member are what its index says.

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
        if is_compressed(path):
            return self.cache.open(path, index.tar_size)
        try:
            stream = open(path, "rb", buffering=0)
        except FileNotFoundError as error:
            raise ShardError("the shard is missing", file=path, remedy="restore it, or convert again") from error
        size = os.fstat(stream.fileno()).st_size
        if size != index.tar_size:
            stream.close()
            raise ShardError(
                f"the shard has {size} bytes, its index says {index.tar_size}",
                file=path,
                remedy=_REPLACED,
            )
        return stream

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_indexes": OrderedDict(), "_index_bytes": 0}


def _has_member(stream: IO[bytes], index: ShardIndex, sample: int) -> bool:
    """Whether the header of a sample's first member stands where the index says: by its size and, if short, name."""
    member = int(index.sample_start[sample])
    offset, size = int(index.member_offset[member]), int(index.member_size[member])
    name = f"{index.sample_keys[sample]}.{index.suffixes[index.member_suffix[member]]}"
    try:
        header = os.pread(stream.fileno(), tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.TarError, OSError, ValueError):
        return False
    long_size, long_name = size >= 8**11, len(name) >= 100 or not name.isascii()  # told in a header of their own
    return (long_size or info.size == size) and (long_name or info.name.lower() == name.lower())


def open_shards(
    shard_dir: ShardDir,
    shard_pattern: str = DEFAULT_SHARD_PATTERN,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int = DEFAULT_CACHE_SIZE,
) -> ShardSet:
    """Find a dataset's shards. With a manifest no tar and no index is read.

    Args:
        shard_dir: a directory, a shard, a pattern with braces or wildcards, or a list of shards.
        shard_pattern: which files of a directory are shards; also narrows what its manifest lists.
        cache_dir: where compressed shards are unpacked.
        cache_size: bytes that they may take there.

    Raises:
        FileNotFoundError: there is no such directory or shard.
        ShardError: no shards, a directory in a list, or a remote address.
        ManifestError: the manifest is damaged, or names shards that are missing.
    """
    cache = ShardCache(cache_dir, cache_size)
    if isinstance(shard_dir, (str, os.PathLike)) and os.path.isdir(shard_dir):
        directory = Path(shard_dir)
        if (directory / MANIFEST_NAME).exists():
            return _from_manifest(directory, shard_pattern, cache)
        paths = sorted(path for path in directory.glob(shard_pattern) if _is_shard(path))
        if not paths:
            raise _no_shards(directory, shard_pattern)
    else:
        paths = _expand(shard_dir)
    records = []
    for path in paths:
        index = read_index(path, cache)
        records.append(ShardRecord(path.name, index.n_samples, index.file_size, index.sha256))
    return ShardSet(paths, records, None, cache)


def _is_shard(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and not path.name.endswith((".index", ASIDE_SUFFIX))


def _from_manifest(directory: Path, shard_pattern: str, cache: ShardCache) -> ShardSet:
    inode = os.stat(directory).st_ino
    manifest = Manifest.load(directory)
    present = set(os.listdir(directory))
    missing = [r.shard_name for r in manifest.shards if r.shard_name not in present]
    if missing and os.stat(directory).st_ino != inode:  # replaced in this very moment: look at the new one
        return _from_manifest(directory, shard_pattern, cache)
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        problem = f"shards that the manifest lists are missing: {names}"
        raise ManifestError(problem, file=directory, remedy="restore them, or convert again")
    records = [r for r in manifest.shards if fnmatch.fnmatch(r.shard_name, shard_pattern)]
    if not records and manifest.shards and shard_pattern == DEFAULT_SHARD_PATTERN:
        records = manifest.shards  # made with a shard_name_pattern of its own
    if not records and manifest.shards:
        raise _no_shards(directory, shard_pattern)
    return ShardSet([directory / r.shard_name for r in records], records, manifest, cache)


def _no_shards(directory: Path, shard_pattern: str) -> ShardError:
    place = Path(os.path.abspath(directory))  # "." has no name
    if (place.parent / f".{place.name}.partial").exists():
        return ShardError("the dataset is not finished yet", file=directory, remedy="wait, or run the conversion again")
    return ShardError(f"no shards match {shard_pattern!r}", file=directory, remedy=_perhaps_meant(directory))


def _perhaps_meant(directory: Path) -> str:
    """What helps where a directory has no shards, by what else it has."""
    names = sorted(os.listdir(directory))
    tars = [name for name in names if index_path(name).stem != name and _is_shard(directory / name)]
    if tars:
        pattern = "*" + tars[0].removeprefix(index_path(tars[0]).stem)
        return f"{tars[0]} is there: give shard_pattern={pattern!r}, or as the directory '{directory / pattern}'"
    datasets = [name for name in names if _has_shards(directory / name)]
    if datasets:
        return f"datasets lie below it: give one of {join_some(datasets)}, or {MERGE_DATASETS}"
    source = next((name for name in names if name.endswith(SOURCE_SUFFIXES)), None)
    return f"{source} is no shard: {CONVERT_FIRST}" if source else "check directory and shard_pattern"


def _has_shards(directory: Path) -> bool:
    return os.path.exists(directory / MANIFEST_NAME) or any(directory.glob(DEFAULT_SHARD_PATTERN))


def _expand(spec: ShardDir) -> list[Path]:
    """Paths from what webdataset takes: a brace pattern, a list; and wildcards."""
    from webdataset.shardlists import expand_urls  # on use: it takes a second, and few need it

    given: Iterable[str | os.PathLike[str]] = [spec] if isinstance(spec, (str, os.PathLike)) else spec
    paths = []
    for url in (url for item in given for url in expand_urls(os.fspath(item))):
        parsed = urlparse(url)
        if parsed.scheme == "file":
            url = parsed.path
        elif url.startswith("pipe:") or parsed.scheme:
            raise ShardError("only local files can be read", file=url, remedy="copy the shards to a local directory")
        found = sorted(glob.glob(url)) if glob.has_magic(url) else [url]
        paths += [Path(name) for name in found if not name.endswith(".index")]
    if not paths:
        raise ShardError(f"no shards match {spec!r}", remedy="check the path")
    for path in paths:
        if path.is_dir():
            remedy = f"give the directory alone, or {MERGE_DATASETS}"
            raise ShardError("it is a directory, and a list or pattern is of shards", file=path, remedy=remedy)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such shard or directory")
    return paths


def read_index(path: Path, cache: ShardCache, record: ShardRecord | None = None) -> ShardIndex:
    """A shard's index, from its sidecar or from the tar itself.

    An index made here is put beside the shard where that may be written, for the next time. Where the manifest knows
    the shard's checksum, the shard is then read whole, so that no byte that has changed becomes a checksum.

    Args:
        path: the shard.
        cache: where it is unpacked if it is compressed.
        record: what the manifest says of it.

    Raises:
        ShardIndexError: the sidecar is damaged, or does not belong to this shard.
        ShardError: the tar is damaged.
    """
    sidecar = index_path(path)
    try:
        index = ShardIndex.load(sidecar)
    except FileNotFoundError:
        index = build_index(path, cache, checksum=record is not None and record.sha256 is not None)
        with contextlib.suppress(OSError):
            index.save(sidecar)
    if index.shard_name != path.name:
        index_problem = f"the index is of {index.shard_name!r}"
    elif record is not None and (index.n_samples, index.file_size) != (record.n_samples, record.n_bytes):
        index_problem = (
            f"the index tells of {index.n_samples} samples in {index.file_size} bytes, "
            f"the manifest of {record.n_samples} in {record.n_bytes}"
        )
    elif record is not None and None not in (index.sha256, record.sha256) and index.sha256 != record.sha256:
        index_problem = "the index and the manifest have different checksums for the shard"
    elif record is None and index.file_size != path.stat().st_size:
        index_problem = f"the index tells of {index.file_size} bytes, {path.name} has {path.stat().st_size}"
    else:
        return index
    raise ShardIndexError(index_problem, file=sidecar, remedy=REBUILD_INDEX)


def build_index(path: Path, cache: ShardCache, checksum: bool = False) -> ShardIndex:
    """Make a shard's index by reading its tar.

    Args:
        path: the shard, compressed or not.
        cache: where it is unpacked if it is compressed.
        checksum: also read the shard whole, for its SHA-256 and each payload's CRC-32.

    Raises:
        ShardError: the tar is damaged.
    """
    if not is_compressed(path):
        return index_tar(path, checksum=checksum)
    with cache.open(path) as stream:
        return index_tar(path, checksum=checksum, unpacked=stream)
