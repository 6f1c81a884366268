"""The sidecar index of a shard: where every sample's every payload lies, so that reading parses nothing.

Knows tars and fields; knows nothing of datasets, order or loading.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import REBUILD_INDEX, ShardIndexError
from ..storage.atomic import write_atomic
from ..storage.cache import is_packed
from ..storage.checksums import crc32_of
from ..storage.regular import read_regular
from .names import field_of
from .npy import ArrayLayout

INDEX_SUFFIX = ".index"
INDEX_VERSION = 2
_READABLE_VERSIONS = (1, 2)  # 1 has no checksums of members
METADATA_SUFFIX = "metadata.json"
_MAX_BYTES = 1 << 32  # of an index that is read
_MAGIC = b"NFMXIDX\n"
_SECTIONS = {  # name → dtype, in the order in which they are stored
    "sample_start": "<i8",
    "member_suffix": "<i4",
    "member_layout": "<i4",
    "member_offset": "<i8",
    "member_size": "<i8",
    "member_crc32": "<u4",
    "key_end": "<i8",
    "keys": "|u1",
    "metadata_end": "<i8",
    "metadata": "|u1",
}


def index_path(shard: str | Path) -> Path:
    """Where a shard's sidecar lies: ``shard_000000.tar.gz`` → ``shard_000000.index``."""
    shard = Path(shard)
    return shard.with_name(re.sub(r"\.(tar(\.(gz|bz2|xz))?|tgz|tbz2|txz)$", "", shard.name) + INDEX_SUFFIX)


@dataclass(frozen=True)
class Column:
    """One field of a shard: for each sample that has it, where its payload lies.

    Attributes:
        suffix_id: for each sample the member's suffix, an index into the shard's `suffixes`; -1 where it has none.
        offset: payload offset in the (unpacked) tar, shape (n_samples,), int64; -1 where a sample lacks the field.
        size: payload size in bytes, shape (n_samples,), int64.
        crc32: checksum of each payload, shape (n_samples,), uint32; None where the index has none.
        layout_id: what each payload holds, an index into the shard's `layouts`; -1 where it is not a plain array.
        layout: what all payloads hold, if every sample has this field as an array of one dtype and shape.
    """

    suffix_id: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray | None
    layout_id: np.ndarray
    layout: ArrayLayout | None

    @functools.cached_property
    def data_starts(self) -> list[int]:
        """Where each array's data begins, behind its header, if all have one layout."""
        return (self.offset + (self.layout.header_size if self.layout else 0)).tolist()


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where every payload of one shard lies, with the samples' keys and metadata.

    Attributes:
        shard_name: file name of the shard.
        tar_size: bytes of the tar, unpacked.
        file_size: bytes of the shard file (differs where it is compressed).
        sha256: checksum of the shard file, or None where it was never read whole.
        suffixes: the member suffixes that occur.
        layouts: the array layouts that occur.
        sample_start: shape (n_samples + 1,): sample i owns members ``sample_start[i]`` to ``sample_start[i + 1]``.
        member_suffix: shape (n_members,): index into `suffixes`.
        member_layout: shape (n_members,): index into `layouts`, -1 for none.
        member_offset: shape (n_members,): payload offset in bytes.
        member_size: shape (n_members,): payload size in bytes.
        member_crc32: shape (n_members,): the payload's CRC-32; shape (0,) where the payloads were never read.
        key_end, keys: the samples' keys, UTF-8, one after the other; ``key_end`` is where each ends.
        metadata_end, metadata: likewise the samples' metadata JSON (empty where there is none).
        traits: what is unusual about the tar: ``"linked"``, payloads that several members share; ``"sparse"``, a tar
            that must be written out first. The index then describes the copy.
    """

    shard_name: str
    tar_size: int
    file_size: int
    sha256: str | None
    suffixes: tuple[str, ...]
    layouts: tuple[ArrayLayout, ...]
    sample_start: np.ndarray
    member_suffix: np.ndarray
    member_layout: np.ndarray
    member_offset: np.ndarray
    member_size: np.ndarray
    member_crc32: np.ndarray
    key_end: np.ndarray
    keys: np.ndarray
    metadata_end: np.ndarray
    metadata: np.ndarray
    traits: tuple[str, ...] = ()

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.sample_start) - 1

    @property
    def n_bytes(self) -> int:
        """Memory that the index takes, in bytes."""
        return sum(getattr(self, name).nbytes for name in _SECTIONS)

    @property
    def has_checksums(self) -> bool:
        """Whether the checksum of every payload is known."""
        return len(self.member_crc32) == len(self.member_size)

    @functools.cached_property
    def sample_keys(self) -> list[str]:
        """The keys, in shard order."""
        raw, ends = self.keys.tobytes(), self.key_end.tolist()
        if raw.isascii():  # the whole text at once: characters are bytes then
            text = raw.decode("ascii")
            return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return [raw[a:b].decode("utf-8", "surrogateescape") for a, b in zip([0, *ends], ends, strict=False)]

    @functools.cached_property
    def sample_metadata(self) -> list[bytes]:
        """Each sample's metadata as stored, in shard order; empty where it has none in readable JSON."""
        text, ends = self.metadata.tobytes(), self.metadata_end.tolist()
        return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    @functools.cached_property
    def columns(self) -> dict[str, Column]:
        """The fields, by name. Suffixes that would give a sample two values of one name keep their extensions."""
        by_name: dict[str, list[int]] = {}
        for i, suffix in enumerate(self.suffixes):
            by_name.setdefault(field_of(suffix), []).append(i)
        columns: dict[str, Column] = {}
        for name, suffix_ids in by_name.items():
            taken = name in self.suffixes and self.suffixes.index(name) not in suffix_ids
            column = None if taken else self._column(suffix_ids)
            apart = {self.suffixes[i]: self._column([i]) for i in suffix_ids} if column is None else {name: column}
            columns |= {name: column for name, column in apart.items() if column is not None}
        return columns

    def _column(self, suffix_ids: list[int]) -> Column | None:
        """The members with these suffixes as one field, unless a sample has several."""
        places = self._places(suffix_ids)
        if places is None:
            return None
        members, samples = places

        def spread(values: np.ndarray, absent: int) -> np.ndarray:
            if samples is None:
                return values[members]
            column = np.full(self.n_samples, absent, values.dtype)
            column[samples] = values[members]
            return column

        layouts = self.member_layout[members]
        layout = None
        if len(layouts) == self.n_samples > 0 and layouts[0] >= 0 and (layouts == layouts[0]).all():
            layout = self.layouts[layouts[0]]
        return Column(
            spread(self.member_suffix, -1),
            spread(self.member_offset, -1),
            spread(self.member_size, 0),
            spread(self.member_crc32, 0) if self.has_checksums else None,
            spread(self.member_layout, -1),
            layout,
        )

    def _places(self, suffix_ids: list[int]) -> tuple[Any, Any] | None:
        """Which members have these suffixes, and of which samples they are (None: one of each, in order).

        None where a sample has several.
        """
        of_each = [i for i, suffix in enumerate(self.member_suffix[: self._width].tolist()) if suffix in suffix_ids]
        if len(of_each) == 1:
            return slice(of_each[0], None, self._width), None
        members = np.flatnonzero(np.isin(self.member_suffix, suffix_ids))
        samples = np.searchsorted(self.sample_start, members, side="right") - 1
        return None if (np.diff(samples) == 0).any() else (members, samples)

    @functools.cached_property
    def _width(self) -> int:
        """How many members each sample has, if all have the same ones in the same order; else 0."""
        width, rest = divmod(len(self.member_suffix), max(1, self.n_samples))
        if not width or rest or not (self.sample_start == np.arange(self.n_samples + 1) * width).all():
            return 0
        table = self.member_suffix.reshape(self.n_samples, width)
        return width if (table == table[0]).all() else 0

    def to_bytes(self) -> bytes:
        """The sidecar file's content: a magic line, a JSON header, little-endian arrays and a CRC-32."""
        header = {
            "version": INDEX_VERSION,
            "shard_name": self.shard_name,
            "tar_size": self.tar_size,
            "file_size": self.file_size,
            "sha256": self.sha256,
            "suffixes": self.suffixes,
            "layouts": [[layout.dtype, layout.shape, layout.header_size] for layout in self.layouts],
            "sections": {name: len(getattr(self, name)) for name in _SECTIONS},
            **({"traits": self.traits} if self.traits else {}),
        }
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        text += b" " * (-(len(_MAGIC) + 4 + len(text)) % 8)
        body = b"".join(
            [_MAGIC, len(text).to_bytes(4, "little"), text]
            + [np.ascontiguousarray(getattr(self, name), dtype).tobytes() for name, dtype in _SECTIONS.items()]
        )
        return body + zlib.crc32(body).to_bytes(4, "little")

    def save(self, path: str | Path) -> None:
        """Write the sidecar, whole or not at all."""
        write_atomic(path, self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, path: str | Path) -> ShardIndex:
        """Read and check a sidecar file's content.

        Raises:
            ShardIndexError: damaged, of another version, or pointing outside the shard.
        """
        remedy = f"delete it, or {REBUILD_INDEX}"
        try:
            return cls._parse(data)
        except ShardIndexError as error:
            raise ShardIndexError(error.problem, file=path, remedy=remedy) from error
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, MemoryError) as error:
            raise ShardIndexError(f"the index is damaged: {error}", file=path, remedy=remedy) from error

    @classmethod
    def load(cls, path: str | Path) -> ShardIndex:
        """Read a sidecar file.

        Raises:
            OSError: it cannot be read.
            ShardIndexError: as :meth:`from_bytes`.
        """
        return cls.from_bytes(read_regular(path, _MAX_BYTES, ShardIndexError), path)

    @classmethod
    def beside(cls, shard: str | Path) -> ShardIndex:
        """Read the sidecar file of a shard.

        Raises:
            FileNotFoundError: it has none.
            OSError: it cannot be read.
            ShardIndexError: as :meth:`from_bytes`; or it is far larger than an index of that shard can be.
        """
        sidecar = index_path(shard)
        most = 8 * os.path.getsize(shard) + (1 << 16) if os.path.exists(shard) else _MAX_BYTES
        if os.path.getsize(sidecar) > most and is_packed(shard):
            most = _MAX_BYTES
        return cls.from_bytes(read_regular(sidecar, min(most, _MAX_BYTES), ShardIndexError), sidecar)

    @classmethod
    def _parse(cls, data: bytes) -> ShardIndex:
        start = len(_MAGIC) + 4
        if not data.startswith(_MAGIC) or len(data) < start + 4:
            raise ShardIndexError("not a shard index, or cut short")
        if crc32_of([memoryview(data)[:-4]]) != int.from_bytes(data[-4:], "little"):
            raise ShardIndexError("the index is damaged: its checksum does not match")
        place = start + int.from_bytes(data[len(_MAGIC) : start], "little")
        header = json.loads(data[start:place])
        if header["version"] not in _READABLE_VERSIONS:
            problem = f"the index has version {header['version']!r}, this program reads {_READABLE_VERSIONS}"
            raise ShardIndexError(problem)
        sections = {}
        for name, dtype in _SECTIONS.items():
            count = header["sections"].get(name, 0) if header["version"] == 1 else header["sections"][name]
            if not isinstance(count, int) or count < 0:
                raise ShardIndexError(f"the section {name} has a bad length {count!r}")
            if place + count * np.dtype(dtype).itemsize > len(data) - 4:
                raise ShardIndexError(f"the section {name} runs past the end of the index")
            sections[name] = np.frombuffer(data, dtype, count, place)
            place += sections[name].nbytes
        layouts = tuple(ArrayLayout(str(d), tuple(int(n) for n in s), int(h)) for d, s, h in header["layouts"])
        index = cls(
            shard_name=str(header["shard_name"]),
            tar_size=int(header["tar_size"]),
            file_size=int(header["file_size"]),
            sha256=header["sha256"],
            suffixes=tuple(str(s) for s in header["suffixes"]),
            layouts=layouts,
            traits=tuple(str(trait) for trait in header.get("traits", ())),
            **sections,
        )
        index.check()
        return index

    def check(self) -> None:
        """Refuse an index that contradicts itself or points outside its shard.

        Raises:
            ShardIndexError: what does not fit.
        """
        n_members, n_samples = len(self.member_suffix), self.n_samples
        for layout in self.layouts:
            dtype = np.dtype(layout.dtype)
            sound = not (dtype.hasobject or dtype.fields or dtype.subdtype) and dtype.itemsize > 0
            extent = math.prod(max(n, 1) for n in layout.shape) * dtype.itemsize
            if not sound or extent >= 1 << 62 or min(layout.shape, default=0) < 0 or layout.header_size < 0:
                raise ShardIndexError(f"the index describes an impossible array: {layout}")
        needed = np.array(
            [layout.header_size + layout.n_bytes for layout in self.layouts] + [0], np.int64
        )  # the last stands for "no layout", -1
        checks = {
            "sample_start is not increasing from 0 to the number of members": n_samples >= 0
            and self.sample_start[0] == 0
            and self.sample_start[-1] == n_members
            and bool((self.sample_start[1:] > self.sample_start[:-1]).all()),
            "the member arrays differ in length": all(
                len(getattr(self, name)) == n_members for name in ("member_layout", "member_offset", "member_size")
            )
            and len(self.member_crc32) in (0, n_members),
            "keys or metadata do not match the samples": all(
                len(end) == n_samples
                and bool((end[1:] >= end[:-1]).all())
                and (not n_samples or end[0] >= 0)
                and (end[-1] if n_samples else 0) == len(text)
                for end, text in ((self.key_end, self.keys), (self.metadata_end, self.metadata))
            ),
        }
        for problem, fine in checks.items():
            if not fine:
                raise ShardIndexError(f"the index is damaged: {problem}")
        if n_members and not (
            0 <= self.member_suffix.min()
            and self.member_suffix.max() < len(self.suffixes)
            and -1 <= self.member_layout.min()
            and self.member_layout.max() < len(self.layouts)
            and self.member_offset.min() >= 0
            and self.member_size.min() >= 0
            and bool((self.member_offset <= self.tar_size - self.member_size).all())
            and bool((needed[self.member_layout] <= self.member_size).all())
        ):
            raise ShardIndexError("the index points outside its shard")


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
        """The finished index."""
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
