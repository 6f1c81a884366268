"""Index a shard by reading its tar.

Knows tars, grouping and the index; knows nothing of datasets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
from pathlib import Path
from typing import IO

from ..errors import RESTORE, ShardError
from ..storage.checksums import crc32_of
from ..storage.regular import file_sha256, open_regular
from .decoding import decode_json
from .grouping import read_samples
from .index import METADATA_SUFFIX, ShardIndex
from .index_builder import IndexBuilder
from .npy import ArrayLayout, layout_of
from .tar import Member


class SparseShardError(ShardError):
    """A tar with sparse files, which must be unpacked before it can be read at random places."""


def index_tar(path: str | Path, checksum: bool = False, unpacked: IO[bytes] | None = None) -> ShardIndex:
    """Index a shard by reading its tar's headers, grouping members as webdataset does.

    Args:
        path: the shard.
        checksum: also read the whole file, for its SHA-256 and each payload's CRC-32.
        unpacked: the tar itself, if the shard is compressed or sparse.

    Raises:
        SparseShardError: sparse files must be unpacked first.
        ShardError: not a tar, cut short, or with samples that webdataset would read in part.
    """
    path = Path(path)
    builder = IndexBuilder()
    with contextlib.ExitStack() as stack:
        stream = unpacked or stack.enter_context(open_regular(path))
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            raise ShardError("the file is empty", file=path, remedy=RESTORE)
        tar = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        samples = read_samples(tar, path)
        crc32_at = _Checksums(tar) if checksum else None
        for key, members in samples:
            _add_sample(builder, tar, key, members, crc32_at)
    index = dataclasses.replace(
        builder.build(path.name, size, path.stat().st_size, file_sha256(path) if checksum else None),
        traits=("linked",) if any(member.link for _, members in samples for _, member in members) else (),
    )
    index.check()
    return index


class _Checksums(dict[tuple[int, int], int]):
    """The CRC-32 of payloads by offset and size; one that many links point to is read once.

    Args:
        tar: where the payloads lie.
    """

    def __init__(self, tar: mmap.mmap) -> None:
        super().__init__()
        self.tar = tar

    def __missing__(self, place: tuple[int, int]) -> int:
        with memoryview(self.tar)[place[0] : sum(place)] as payload:
            self[place] = crc32_of([payload])
        return self[place]


def _add_sample(
    builder: IndexBuilder, tar: mmap.mmap, key: str, members: list[tuple[str, Member]], crc32_at: _Checksums | None
) -> None:
    places: list[tuple[str, ArrayLayout | None, int, int, int | None]] = []
    metadata = b""
    for suffix, member in members:
        if member.pieces is not None:
            raise SparseShardError("a sparse file must be unpacked first", sample=key, member=suffix)
        place = member.offset, member.size
        with memoryview(tar)[place[0] : sum(place)] as payload:
            places.append((suffix, layout_of(suffix, payload), *place, None if crc32_at is None else crc32_at[place]))
            if suffix == METADATA_SUFFIX:
                metadata = _json_or_nothing(payload)
    builder.add(key, places, metadata)


def _json_or_nothing(payload: memoryview) -> bytes:
    try:
        decode_json(payload)
    except ShardError:
        return b""  # found again, and named, when the sample is read
    return bytes(payload)
