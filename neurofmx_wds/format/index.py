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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import REBUILD_INDEX, ShardIndexError
from ..storage.atomic import write_atomic
from ..storage.cache import is_packed
from ..storage.checksums import crc32_of
from ..storage.regular import read_regular
from .columns import Columns
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
    """Return where a shard's sidecar is.

    Example:
        >>> index_path("shards/shard_000000.tar.gz").name
        'shard_000000.index'
    """
    shard = Path(shard)
    return shard.with_name(re.sub(r"\.(tar(\.(gz|bz2|xz))?|tgz|tbz2|txz)$", "", shard.name) + INDEX_SUFFIX)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where every payload of one shard lies, with the samples' keys and metadata.

    Example:
        >>> from neurofmx_wds.format.index_builder import IndexBuilder
        >>> builder = IndexBuilder()
        >>> layout = ArrayLayout("<f4", (100, 96), 128)
        >>> builder.add("trial0", [("spikes.npy", layout, 512, 38528, None)], b'{"i":0}')
        >>> builder.add("trial1", [("spikes.npy", layout, 39936, 38528, None)], b'{"i":1}')
        >>> index = builder.build("shard_000000.tar", 81920, 81920, None)
        >>> index.sample_keys, index.sample_metadata
        (['trial0', 'trial1'], [b'{"i":0}', b'{"i":1}'])
        >>> index.columns["spikes"].offset, index.columns["spikes"].layout.shape
        (array([  512, 39936]), (100, 96))
        >>> ShardIndex.from_bytes(index.to_bytes(), "shard_000000.index").n_samples
        2

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
    def columns(self) -> Columns:
        """The fields, by name. Suffixes that would give a sample two values of one name keep their extensions."""
        return Columns(self)

    def to_bytes(self) -> bytes:
        """Return the sidecar file's content: a magic line, a JSON header, little-endian arrays and a CRC-32."""
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
    def from_bytes(cls, data: bytes, path: str | os.PathLike[str]) -> ShardIndex:
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
        for layout in self.layouts:
            _check_layout(layout)
        problems = {
            "sample_start is not increasing from 0 to the number of members": self._has_samples_in_order(),
            "the member arrays differ in length": self._has_arrays_of_one_length(),
            "keys or metadata do not match the samples": self._has_texts_of(self.key_end, self.keys)
            and self._has_texts_of(self.metadata_end, self.metadata),
        }
        for problem, fine in problems.items():
            if not fine:
                raise ShardIndexError(f"the index is damaged: {problem}")
        if len(self.member_suffix) and not self._points_inside():
            raise ShardIndexError("the index points outside its shard")

    def _has_samples_in_order(self) -> bool:
        """Whether each sample has members, and each member a sample."""
        start = self.sample_start
        ends = self.n_samples >= 0 and start[0] == 0 and start[-1] == len(self.member_suffix)
        return bool(ends and (start[1:] > start[:-1]).all())

    def _has_arrays_of_one_length(self) -> bool:
        n_members = len(self.member_suffix)
        arrays = (self.member_layout, self.member_offset, self.member_size)
        return all(len(array) == n_members for array in arrays) and len(self.member_crc32) in (0, n_members)

    def _has_texts_of(self, end: np.ndarray, text: np.ndarray) -> bool:
        """Whether a text ends for each sample, in order, the last one at the end of all texts."""
        if len(end) != self.n_samples:
            return False
        if not len(end):
            return not len(text)
        return bool(end[0] >= 0 and end[-1] == len(text) and (end[1:] >= end[:-1]).all())

    def _points_inside(self) -> bool:
        """Whether all members have a suffix and a layout of the index, and room for it in the tar."""
        needed = np.array([layout.header_size + layout.n_bytes for layout in self.layouts] + [0], np.int64)
        return bool(
            0 <= self.member_suffix.min()
            and self.member_suffix.max() < len(self.suffixes)
            and -1 <= self.member_layout.min()  # -1, the last of `needed`, stands for none
            and self.member_layout.max() < len(self.layouts)
            and self.member_offset.min() >= 0
            and self.member_size.min() >= 0
            and (self.member_offset <= self.tar_size - self.member_size).all()
            and (needed[self.member_layout] <= self.member_size).all()
        )


def _check_layout(layout: ArrayLayout) -> None:
    dtype = np.dtype(layout.dtype)
    sound = not (dtype.hasobject or dtype.fields or dtype.subdtype) and dtype.itemsize > 0
    extent = math.prod(max(n, 1) for n in layout.shape) * dtype.itemsize
    if not sound or extent >= 1 << 62 or min(layout.shape, default=0) < 0 or layout.header_size < 0:
        raise ShardIndexError(f"the index describes an impossible array: {layout}")
