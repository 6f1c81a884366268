"""The index of a shard, while it is written or read: one sample after the other.

Knows the index; knows nothing of tars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .index import ShardIndex
from .npy import ArrayLayout


@dataclass
class IndexBuilder:
    """Collects what :class:`ShardIndex` holds, one sample after the other."""

    suffixes: dict[str, int] = field(default_factory=dict)
    layouts: dict[ArrayLayout, int] = field(default_factory=dict)
    sample_start: list[int] = field(default_factory=lambda: [0])
    members: list[tuple[int, int, int, int, int | None]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    metadata: list[bytes] = field(default_factory=list)

    def add(
        self, key: str, members: Sequence[tuple[str, ArrayLayout | None, int, int, int | None]], metadata: bytes = b""
    ) -> None:
        """Add a sample.

        Args:
            key: its key.
            members: suffix, layout (None for all but plain arrays), payload offset, size and CRC-32 of each member;
                None for the last where it is not known, in all of them.
            metadata: its metadata as JSON.
        """
        for suffix, layout, offset, size, crc32 in members:
            layout_id = -1 if layout is None else self.layouts.setdefault(layout, len(self.layouts))
            suffix_id = self.suffixes.setdefault(suffix, len(self.suffixes))
            self.members.append((suffix_id, layout_id, offset, size, crc32))
        self.sample_start.append(len(self.members))
        self.keys.append(key.encode("utf-8", "surrogateescape"))  # tarfile's way with names in another encoding
        self.metadata.append(metadata)

    def build(self, shard_name: str, tar_size: int, file_size: int, sha256: str | None) -> ShardIndex:
        """Return the finished index."""
        suffix_id, layout_id, offset, size, crc32 = zip(*self.members, strict=True) if self.members else ((),) * 5
        return ShardIndex(
            shard_name=shard_name,
            tar_size=tar_size,
            file_size=file_size,
            sha256=sha256,
            suffixes=tuple(self.suffixes),
            layouts=tuple(self.layouts),
            sample_start=np.array(self.sample_start, np.int64),
            member_suffix=np.array(suffix_id, np.int32),
            member_layout=np.array(layout_id, np.int32),
            member_offset=np.array(offset, np.int64),
            member_size=np.array(size, np.int64),
            member_crc32=np.array([] if None in crc32 else crc32, np.uint32),
            key_end=np.cumsum([len(k) for k in self.keys], dtype=np.int64),
            keys=np.frombuffer(b"".join(self.keys), np.uint8),
            metadata_end=np.cumsum([len(m) for m in self.metadata], dtype=np.int64),
            metadata=np.frombuffer(b"".join(self.metadata), np.uint8),
        )
