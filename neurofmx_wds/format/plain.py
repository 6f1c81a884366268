"""A shard as a plain tar that can be read at random places, whatever it is: plain, compressed, or with sparse files.

Knows tars and the cache; knows nothing of datasets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import ShardError
from ..storage.cache import ShardCache, is_packed
from ..storage.regular import open_regular
from .grouping import read_samples
from .index import ShardIndex
from .indexing import SparseShardError, index_tar
from .tar import BLOCK, Member

_STEP = 1 << 20


def open_plain(path: Path, cache: ShardCache, index: ShardIndex | None = None) -> IO[bytes]:
    """Open a shard's plain tar: the shard itself, or its copy in the cache, which is made first if necessary.

    Args:
        path: the shard.
        cache: where copies are.
        index: the shard's index, if it is known.

    Raises:
        ShardError: it cannot be unpacked, or not to the size that the index says.
        OSError: there is no such shard, or it cannot be read.
    """
    if is_packed(path):
        return cache.open(path, None if index is None else index.tar_size)
    if index is not None and "sparse" in index.traits:
        return cache.open(path, index.tar_size, expand)
    return open_regular(path)


@contextlib.contextmanager
def open_tar(path: Path, cache: ShardCache, index: ShardIndex) -> Iterator[mmap.mmap]:
    """Hold a shard's plain tar mapped into memory."""
    with open_plain(path, cache, index) as stream:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as tar:
            yield tar


def members(index: ShardIndex, tar: mmap.mmap, samples: range | None = None) -> Iterator[tuple[str, str, bytes]]:
    """Yield the payloads of a shard's samples.

    Args:
        index: the shard's index.
        tar: its bytes, unpacked.
        samples: which of its samples; by default all.

    Yields:
        key, suffix, payload.
    """
    for i in range(index.n_samples) if samples is None else samples:
        for m in range(index.sample_start[i], index.sample_start[i + 1]):
            offset, size = int(index.member_offset[m]), int(index.member_size[m])
            yield index.sample_keys[i], index.suffixes[index.member_suffix[m]], tar[offset : offset + size]


def build_index(path: Path, cache: ShardCache, checksum: bool = False) -> ShardIndex:
    """Make a shard's index by reading its tar.

    Args:
        path: the shard, plain or not.
        cache: where it is unpacked if it is compressed, or has sparse files.
        checksum: also read the shard whole, for its SHA-256 and each payload's CRC-32.

    Raises:
        ShardError: the tar is damaged.
    """
    if is_packed(path):
        with cache.open(path) as stream:
            try:
                return index_tar(path, checksum, stream)
            except SparseShardError as error:
                problem = "a compressed tar with sparse files cannot be read"
                remedy = "decompress it, or pack its files again without tar's --sparse"
                raise ShardError(problem, file=path, sample=error.sample, remedy=remedy) from error
    try:
        return index_tar(path, checksum)
    except SparseShardError:
        with cache.open(path, None, expand) as stream:
            return dataclasses.replace(index_tar(path, checksum, stream), traits=("sparse",))


def expand(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a plain tar of a shard's samples, in which sparse files and links are written out.

    Raises:
        ShardError: the tar is damaged.
    """
    from .shard_file import tar_header  # on use: it imports webdataset, and few tars have sparse files

    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open_regular(path))
        tar = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        for key, members in read_samples(tar, path):
            for suffix, member in members:
                yield tar_header(f"{key}.{suffix}", member.size)
                yield from _payload(tar, member)
                yield bytes(-member.size % BLOCK)
    yield bytes(2 * BLOCK)


def _payload(tar: mmap.mmap, member: Member) -> Iterator[bytes]:
    pieces = ((0, member.offset, member.size),) if member.pieces is None else member.pieces
    place = 0
    for at, start, n_bytes in (*pieces, (member.size, 0, 0)):
        for begin in range(place, at, _STEP):
            yield bytes(min(_STEP, at - begin))
        for begin in range(start, start + n_bytes, _STEP):
            yield tar[begin : min(begin + _STEP, start + n_bytes)]
        place = at + n_bytes
