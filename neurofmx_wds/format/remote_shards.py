"""A dataset's shards in an object store or on a web server: as on disk, but each part is fetched when it is needed.

Knows the format and the node's cache; knows nothing of order or batches.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from ..errors import CONVERT_FIRST, ManifestError, NeurofmxError, OutputError, ShardError, ShardIndexError
from ..storage.atomic import write_atomic
from ..storage.blocks import BLOCK, joined
from ..storage.cache import DEFAULT_CACHE_SIZE, ShardCache, decompressed, is_compressed, is_packed
from ..storage.fork_lock import ForkLock
from ..storage.node_cache import CachedObject, NodeCache, drop, fetch
from ..storage.objects import ObjectPath, Objects, StorageOptions, is_object_url, read_all
from ..storage.progress import progress_bar
from .columns import Column
from .finding import DEFAULT_SHARD_PATTERN, ShardDir
from .index import INDEX_SUFFIX, ShardIndex, index_path
from .manifest import MANIFEST_NAME, Manifest, ShardRecord
from .plain import build_index, expand
from .shards import ShardSet, check_index, open_shards

_LISTING_REMEDY = f"give a list of shards, or a pattern such as …/shard_{{000000..000009}}.tar, or {CONVERT_FIRST}"
_INDEXES_AT_ONCE = 64
_index_lock = ForkLock()  # of all datasets: two threads read ahead
_NO_INDEX = "no index"


@dataclass(frozen=True)
class _Parts:
    """Where what is fetched is kept: parts of shards, and unpacked ones."""

    node: NodeCache
    cache: ShardCache


class CachedFile(io.FileIO):
    """An open copy of a shard of which only parts are there.

    Attributes:
        entry: says which, and brings others.
    """

    entry: CachedObject


@dataclass
class RemoteShardSet(ShardSet):
    """The shards of a dataset behind a URL.

    Attributes:
        addresses: where the shards are; `paths` has the same, as far as messages need it.
        node: where the parts that were fetched are.
    """

    addresses: list[ObjectPath] = field(kw_only=True)
    node: NodeCache = field(kw_only=True)

    @classmethod
    def of(
        cls, addresses: list[ObjectPath], records: list[ShardRecord], manifest: Manifest | None, parts: _Parts
    ) -> RemoteShardSet:
        """Return the shards at some addresses."""
        paths = cast("list[Path]", addresses)
        return cls(paths, records, manifest, parts.cache, addresses=addresses, node=parts.node)

    def index(self, i: int) -> ShardIndex:
        """Return the index of shard i, fetched where it is not in the cache.

        Raises:
            ShardIndexError, ShardError: as :meth:`ShardSet.index`, or it cannot be fetched.
        """
        with _index_lock:
            return super().index(i)

    def _read_index(self, i: int) -> ShardIndex:
        return self._read_indexes([i])[i]

    def expect_indexes(self, which: Iterable[int]) -> None:
        """Fetch the indexes of some shards at once.

        Raises:
            ShardIndexError, ShardError: as :meth:`index`.
        """
        with _index_lock:
            missing = [i for i in dict.fromkeys(which) if i not in self._indexes]
            for first in range(0, len(missing), _INDEXES_AT_ONCE):
                for i, index in self._read_indexes(missing[first : first + _INDEXES_AT_ONCE]).items():
                    self._index_bytes += index.n_bytes
                    self._keep_index(i, index)

    def _read_indexes(self, which: Sequence[int]) -> dict[int, ShardIndex]:
        found = {i: index for i in which if (index := self._index_on_disk(i)) is not None}
        absent = [i for i in which if i not in found]
        sidecars = [_sidecar(self.addresses[i]) for i in absent]
        answers = read_all(self.node.objects, sidecars) if absent else []
        return found | {i: self._index_fetched(i, data) for i, data in zip(absent, answers, strict=True)}

    def _index_fetched(self, i: int, data: bytes | Exception) -> ShardIndex:
        if isinstance(data, FileNotFoundError):
            return self._index_of_tar(i)
        if isinstance(data, Exception):
            raise data
        sidecar = _sidecar(self.addresses[i])
        try:
            index = ShardIndex.from_bytes(data, sidecar)
        except ShardIndexError:  # perhaps not all of it came
            data = self.node.objects.read(sidecar)[0]
            index = ShardIndex.from_bytes(data, sidecar)
        self._checked(i, index)
        self._save_index(i, data)
        return index

    def _checked(self, i: int, index: ShardIndex) -> ShardIndex:
        record = self.records[i] if i < len(self.records) else None
        check_index(index, self.addresses[i].name, record, _sidecar(self.addresses[i]))
        return index

    def _index_file(self, i: int) -> Path | None:
        if self.node.directory is None or i >= len(self.records):
            return None
        record = self.records[i]
        name = self.node.name(self.addresses[i], record.n_bytes, record.sha256 or _NO_INDEX)
        return self.node.directory / f"{name}{INDEX_SUFFIX}"

    def _index_on_disk(self, i: int) -> ShardIndex | None:
        file = self._index_file(i)
        try:
            return None if file is None else self._checked(i, ShardIndex.load(file))
        except (ShardIndexError, OSError):
            return None

    def _save_index(self, i: int, data: bytes) -> None:
        file = self._index_file(i)
        if file is not None and self.records[i].sha256 is not None:
            with contextlib.suppress(OSError):
                write_atomic(file, data)

    def _index_of_tar(self, i: int) -> ShardIndex:
        """Fetch a shard that has no index beside it, and make one."""
        entry = self._entry(i)
        with self._as_file(i, entry) as file:
            try:
                index = build_index(file, ShardCache(file.parent, 1 << 62), checksum=True)
            except NeurofmxError as error:
                problem, where = error.problem, self.addresses[i]
                raise ShardError(problem, file=where, sample=error.sample, remedy=error.remedy) from error
        self._save_index(i, index.to_bytes())
        return index

    @contextlib.contextmanager
    def _as_file(self, i: int, entry: CachedObject) -> Iterator[Path]:
        """Fetch a shard as a whole, and lend it as a file of its own name."""
        fetch([(entry, (0, entry.blocks.n))])
        with tempfile.TemporaryDirectory(dir=self.node.directory) as directory, entry.blocks.open() as stream:
            file = Path(directory, self.addresses[i].name)
            file.symlink_to(f"/proc/self/fd/{stream.fileno()}" if entry.blocks.file is None else entry.blocks.file)
            yield file

    def entry(self, i: int) -> CachedObject | None:
        """Return what is here of shard i; None where it must be unpacked as a whole."""
        return None if self._is_unpacked(i) else self._entry(i)

    def _is_unpacked(self, i: int) -> bool:
        return is_compressed(self.addresses[i]) or "sparse" in self.index(i).traits

    def _entry(self, i: int) -> CachedObject:
        """Return what is here of shard i, as it is stored."""
        path = self.addresses[i]
        record = self.records[i] if i < len(self.records) else None
        if record is not None and record.sha256:
            return self.node.entry(path, record.n_bytes, record.sha256)
        version = self.node.objects.head(path)
        if record is not None and record.n_bytes != version.size:
            problem = f"the object has {version.size} bytes, its index says {record.n_bytes}"
            raise ShardError(problem, file=path, remedy="restore it, or start again if it was replaced")
        entry = self.node.entry(path, version.size, f"{version.tag} {_boot()}")
        entry.version = entry.version or version
        return entry

    def open(self, i: int) -> IO[bytes]:
        """Open the tar of shard i, unpacked; parts that are not there yet are 0.

        Raises:
            ShardError: it cannot be fetched or unpacked.
        """
        if self._is_unpacked(i):
            return self._unpacked(i)
        entry = self._entry(i)
        with entry.blocks.open() as stream:
            file = CachedFile(os.dup(stream.fileno()))
        file.entry = entry
        return file

    def _unpacked(self, i: int) -> IO[bytes]:
        def unpack(path: Path) -> Iterator[bytes]:
            entry = self._entry(i)
            with self._as_file(i, entry) as file:
                yield from (decompressed(file) if is_packed(file) else expand(file))
            drop([(entry, (0, entry.blocks.n))])

        return self.cache.open(self.paths[i], self.index(i).tar_size, unpack, self._name_of_copy(i))

    def _name_of_copy(self, i: int) -> str:
        path = self.addresses[i]
        return self.node.name(path, 0, self.records[i].sha256 or self.node.objects.head(path).tag)

    def expect_field(self, i: int, column: Column) -> None:
        """Fetch one field of all samples of shard i."""
        entry = self.entry(i)
        if entry is not None:
            there = column.offset >= 0
            starts, stops = column.offset[there] // BLOCK, -(-(column.offset + column.size)[there] // BLOCK)
            runs = joined(list(zip(starts.tolist(), stops.tolist(), strict=True)), gap=0)
            fetch([(entry, run) for run in runs])

    def peek_index(self, i: int) -> ShardIndex | None:
        """Return the index of shard i if it is on this machine."""
        return self._indexes.get(i) or self._index_on_disk(i)

    @functools.cached_property
    def cached_names(self) -> dict[str, int]:
        """What shards that are read by range are called in the cache → their numbers."""
        known = [(i, path, self.records[i]) for i, path in enumerate(self.addresses) if not is_compressed(path)]
        return {self.node.name(path, r.n_bytes, r.sha256): i for i, path, r in known if r.sha256}

    def copy_of(self, i: int) -> Path:
        """Return the place of a compressed shard's unpacked copy."""
        return self.cache.directory / f"{self._name_of_copy(i)}.tar"


def _sidecar(path: ObjectPath) -> ObjectPath:
    return path.with_name(index_path(path.name).name)


def _boot() -> str:
    """Return what tells this run of the system from others: after a crash, files may hold less than they seem to."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def urls_in(shard_dir: ShardDir) -> list[str]:
    """Return the URLs of object stores in what was given as a dataset; none where it is on this machine.

    Raises:
        ShardError: it is a list of both.
    """
    given = [shard_dir] if isinstance(shard_dir, (str, os.PathLike)) else list(shard_dir)
    urls = [os.fspath(each) for each in given if is_object_url(os.fspath(each))]
    if urls and len(urls) < len(given):
        raise ShardError("a dataset is a list of URLs or of files, not of both", remedy="copy the files there")
    return urls


def open_shards_anywhere(
    shard_dir: ShardDir,
    shard_pattern: str = DEFAULT_SHARD_PATTERN,
    cache: ShardCache | None = None,
    options: StorageOptions | None = None,
) -> ShardSet:
    """Open a dataset's shards, on this machine or behind URLs.

    Raises:
        FileNotFoundError, ShardError, ManifestError: as :func:`~neurofmx_wds.format.shards.open_shards` and
            :func:`open_remote_shards`.
    """
    cache = cache or ShardCache()
    urls = urls_in(shard_dir)
    if urls:
        return open_remote_shards(urls, shard_pattern, cache, options)
    return open_shards(shard_dir, shard_pattern, cache.given_directory, cache.max_bytes)


def fetch_dataset(url: str, cache_dir: str | None = None, cache_size: int = DEFAULT_CACHE_SIZE) -> tuple[int, int]:
    """Fetch a dataset into the cache as a whole.

    Returns:
        How many shards it has, and their bytes.

    Raises:
        OutputError: it is larger than the cache, or the cache cannot be written.
        ShardError, ManifestError: it cannot be fetched.
    """
    cache = ShardCache(cache_dir, cache_size)
    shards = open_shards_anywhere(url, cache=cache)
    if not isinstance(shards, RemoteShardSet):
        raise ShardError("it is on this machine already", file=url, remedy="load it as it is")
    n_bytes = sum(record.n_bytes for record in shards.records)
    if n_bytes > cache_size or shards.node.directory is None:
        problem = f"the dataset has {n_bytes} bytes, and the cache may take {cache_size}"
        raise OutputError(problem, file=cache.directory, remedy="raise cache_size; or let jobs fetch what they need")
    for i in progress_bar(range(len(shards.paths)), len(shards.paths), "shard", show=True):
        entry = shards.entry(i)
        if entry is None:
            shards.open(i).close()
        else:
            fetch([(entry, (0, entry.blocks.n))])
    return len(shards.paths), n_bytes


def open_remote_shards(
    urls: Sequence[str], shard_pattern: str, cache: ShardCache, options: StorageOptions | None
) -> RemoteShardSet:
    """Open a dataset's shards behind URLs. With a manifest, nothing else is read.

    Args:
        urls: a directory; or shards, also as patterns with braces.
        shard_pattern: which objects of a directory are shards.
        cache: where parts are kept.
        options: of the object store, see :class:`~neurofmx_wds.storage.objects.Objects`.

    Raises:
        ShardError, ManifestError: it cannot be read, or holds no shards.
    """
    objects = Objects(options)
    node = NodeCache(objects, cache.directory / "objects" if cache.max_bytes else None, cache.max_bytes)
    parts = _Parts(node, cache)
    named = [ObjectPath(name) for url in urls for name in _expand(url)]
    if not all(_is_shard_name(path.name) for path in named):
        if len(named) > 1:
            raise ShardError("a list of URLs is one of shards", file=named[0], remedy="give one directory alone")
        return _open_directory(named[0], shard_pattern, parts)
    return _indexed(named, parts)


def _open_directory(directory: ObjectPath, shard_pattern: str, parts: _Parts) -> RemoteShardSet:
    where = directory / MANIFEST_NAME
    try:
        try:
            manifest = Manifest.from_bytes(parts.node.objects.read(where)[0], where)
        except ManifestError:  # perhaps not all of it came
            manifest = Manifest.from_bytes(parts.node.objects.read(where)[0], where)
    except FileNotFoundError:
        return _indexed(_listed(directory, shard_pattern, parts.node.objects), parts)
    records = [r for r in manifest.shards if fnmatch.fnmatch(r.shard_name, shard_pattern)]
    if not records and shard_pattern == DEFAULT_SHARD_PATTERN:
        records = manifest.shards
    if not records and manifest.shards:
        raise ShardError(f"No shards found: the manifest lists none that match {shard_pattern!r}", file=directory)
    return RemoteShardSet.of([directory / r.shard_name for r in records], records, manifest, parts)


def _listed(directory: ObjectPath, shard_pattern: str, objects: Objects) -> list[ObjectPath]:
    problem = f"No shards found: there is no {MANIFEST_NAME}"
    try:
        names = objects.sizes(directory)
    except (ShardError, FileNotFoundError) as error:
        raise ShardError(f"{problem}, and it cannot be listed", file=directory, remedy=_LISTING_REMEDY) from error
    paths = [directory / name for name in names if fnmatch.fnmatch(name, shard_pattern) and _is_shard_name(name)]
    if not paths:
        raise ShardError(f"{problem} and no object matches {shard_pattern!r}", file=directory, remedy="check the URL")
    return paths


def _is_shard_name(name: str) -> bool:
    return index_path(name).stem != name and not name.startswith(".")


def _expand(url: str) -> list[str]:
    from webdataset.shardlists import expand_urls  # on use: it takes a second

    if "?" in url or "#" in url:
        raise ShardError("URLs with a query cannot be read", file=url.partition("?")[0], remedy="give the plain URL")
    try:
        return list(expand_urls(url)) if "{" in url else [url]
    except ValueError as error:
        raise ShardError(f"not a pattern: {error}", file=url, remedy="check the braces") from error


def _indexed(paths: list[ObjectPath], parts: _Parts) -> RemoteShardSet:
    """Open shards of which no manifest tells: their indexes do."""
    shards = RemoteShardSet.of(paths, [], None, parts)
    shards.expect_indexes(range(len(paths)))
    indexes = (shards.index(i) for i in range(len(paths)))
    shards.records = [ShardRecord(i.shard_name, i.n_samples, i.file_size, i.sha256) for i in indexes]
    return shards
