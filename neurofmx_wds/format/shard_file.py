"""One shard being written: its tar, its checksum and its index.

Knows the format; knows nothing of datasets, manifests or loading.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import fcntl
import functools
import gzip
import hashlib
import lzma
import mmap
import operator
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import webdataset as wds

from ..errors import FieldError, OutputError
from ..storage.atomic import ASIDE_SUFFIX, fsync_path
from ..storage.checksums import crc32_of
from ..storage.mounts import is_local
from .encoding import FieldFormat, encode
from .index import METADATA_SUFFIX, ShardIndex, index_path
from .index_builder import IndexBuilder
from .limits import Buffer
from .names import check_key, field_of
from .npy import ArrayLayout
from .shard_settings import Compression

_BLOCK = 512
_PIECE, _PIECES = 4 << 20, 3  # bytes in one; how many there are
_OWNER = "bigdata"  # as webdataset's TarWriter


@functools.lru_cache(maxsize=4096)
def _header_tail(size: int) -> tuple[bytes, bytes, int]:
    """All of a member's header behind its name, before and after the checksum, and the sum of its bytes."""
    info = tarfile.TarInfo("")
    info.size, info.mode, info.mtime, info.uname, info.gname = size, 0o444, 0, _OWNER, _OWNER
    block = info.tobuf(tarfile.USTAR_FORMAT)
    before, after = block[100:148], block[156:]
    return before, after, sum(before) + sum(after) + 8 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """Return the header block(s) of a regular file, exactly as :mod:`tarfile` writes them with ``mtime=0``.

    Args:
        name: the member's name.
        size: the payload's size in bytes.
    """
    if len(name) > 100 or not name.isascii() or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uname, info.gname = size, 0o444, _OWNER, _OWNER
        return info.tobuf(tarfile.PAX_FORMAT)
    encoded = name.encode("ascii")
    before, after, total = _header_tail(size)
    return b"%b%b%06o\0 %b" % (encoded.ljust(100, b"\0"), before, total + sum(encoded), after)


class IndexedTarWriter(wds.TarWriter):  # type: ignore[misc]
    """webdataset's TarWriter, writing a whole sample at once and noting where each payload lies.

    Args:
        stream: where the tar goes.
        field_format: how arrays are stored.
    """

    def __init__(self, stream: BinaryIO, field_format: FieldFormat = "npy") -> None:
        super().__init__(stream, encoder=False, compress=False, mtime=0)
        self.index = IndexBuilder()
        self.field_format: FieldFormat = field_format
        self._keys: set[str] = set()

    def write(self, obj: Mapping[str, Any]) -> int:
        """Write a sample: ``__key__`` and its fields. A refused sample leaves the tar as it was.

        Returns:
            Bytes written to the tar.

        Raises:
            FieldError: the key, a field's name or a value cannot be stored.
        """
        key = obj.get("__key__")
        check_key(key)
        key = cast(str, key)
        if key in self._keys:
            raise FieldError("the shard already has a sample with this key", sample=key, remedy="use unique sample ids")
        values = [(name, value) for name, value in obj.items() if name != "__key__"]
        try:
            encoded = [encode(name, value, self.field_format) for name, value in values]
        except FieldError as error:
            raise FieldError(error.problem, sample=key, member=error.member, remedy=error.remedy) from error
        encoded.sort(key=operator.itemgetter(0))
        names = [field_of(suffix) for suffix, _, _ in encoded]
        if len(set(names)) < len(names) or not names:
            problem = f"two fields would be read back under one name: {sorted(names)}" if names else "has no fields"
            raise FieldError(problem, sample=key, remedy="rename one" if names else "give it data")
        return self._append(key, encoded)

    def _append(self, key: str, encoded: Sequence[tuple[str, list[Buffer], ArrayLayout | None]]) -> int:
        parts: list[Buffer] = []
        members = []
        metadata = b""
        place = self.offset
        for suffix, buffers, layout in encoded:
            size = sum(map(len, buffers))
            header = tar_header(f"{key}.{suffix}", size)
            place += len(header)
            members.append((suffix, layout, place, size, crc32_of(buffers)))
            padding = -size % _BLOCK
            place += size + padding
            parts += [header, *buffers, bytes(padding)]
            if suffix == METADATA_SUFFIX:
                metadata = b"".join(buffers)
        self.stream.writelines(parts)
        written = place - self.offset
        self.tarstream.offset = place  # tarfile pads the end of the tar by it
        self.index.add(key, members, metadata)
        self._keys.add(key)
        return written

    @property
    def offset(self) -> int:
        """Bytes in the tar so far."""
        return int(self.tarstream.offset)


_AROUND_CACHE = getattr(os, "O_DIRECT", 0)  # not every system has it
_spare_pieces: list[memoryview] = []  # of files that are finished: new memory is slow to touch


def _new_piece() -> memoryview:
    try:
        return _spare_pieces.pop()
    except IndexError:
        return memoryview(mmap.mmap(-1, _PIECE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))  # aligned as a disk wants it


class _HashedFile:
    """A file being written in large pieces: one thread writes them, another lets the checksum grow.

    Where it can, a disk of this machine takes whole pieces as they are: a copy in the page cache would cost more than
    all else here, and push out what somebody needs.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = open(path, "wb", buffering=0)
        self._can_go_around = bool(_AROUND_CACHE) and is_local(path)
        self._around_cache = False
        self._digest = hashlib.sha256()
        self._writer = ThreadPoolExecutor(1, "neurofmx_wds write")
        self._hasher = ThreadPoolExecutor(1, "neurofmx_wds checksum")
        self._under_way: deque[tuple[memoryview, Future[None], Future[None]]] = deque()
        self._piece = _new_piece()
        self._filled = 0
        self.size = 0

    def write(self, data: Buffer) -> int:
        """Take all of `data`."""
        self.writelines([data])
        return len(data)

    def writelines(self, parts: Iterable[Buffer]) -> None:
        """Take all of `parts`, one after the other."""
        for data in parts:
            end = self._filled + len(data)
            if end <= _PIECE:
                self._piece[self._filled : end] = data
                self._filled = end
                continue
            rest = memoryview(data)
            while len(rest):
                room = _PIECE - self._filled
                self._piece[self._filled : self._filled + len(rest[:room])] = rest[:room]
                self._filled += len(rest[:room])
                rest = rest[room:]
                if self._filled == _PIECE:
                    self.flush()

    def flush(self) -> None:
        """Hand what has been taken to the threads.

        Raises:
            OSError: something handed over earlier could not be written.
        """
        piece = self._piece[: self._filled]
        jobs = self._writer.submit(self._write_all, piece), self._hasher.submit(self._digest.update, piece)
        self._under_way.append((self._piece, *jobs))
        self.size += self._filled
        self._filled = 0
        self._piece = _new_piece() if len(self._under_way) < _PIECES else self._finished()

    def _write_all(self, piece: memoryview) -> None:
        self._go_around_cache(self._can_go_around and len(piece) == _PIECE)  # small files, and ends, are not worth it
        while len(piece):
            try:
                piece = piece[self._file.write(piece) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._around_cache:
                    raise
                self._can_go_around = False  # not so, after all
                self._go_around_cache(False)

    def _go_around_cache(self, wanted: bool) -> None:
        if wanted == self._around_cache:
            return
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, _AROUND_CACHE if wanted else 0)
        except OSError:
            if not wanted:
                raise
            self._can_go_around = False  # the file system cannot
        else:
            self._around_cache = wanted

    def _finished(self) -> memoryview:
        """Wait for the piece that is longest under way, and give back its memory."""
        piece, writing, hashing = self._under_way.popleft()
        writing.result()
        hashing.result()
        return piece

    def close(self) -> str:
        """Put the file on the disk and return its SHA-256.

        Raises:
            OSError: it could not be written.
        """
        self.flush()
        used = [self._piece, *(self._finished() for _ in range(len(self._under_way)))]
        _spare_pieces.extend(used[: _PIECES - len(_spare_pieces)])
        self._writer.shutdown()
        self._hasher.shutdown()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abort(self) -> None:
        """Stop writing."""
        self._writer.shutdown(cancel_futures=True)
        self._hasher.shutdown(cancel_futures=True)
        self._file.close()


def _compressor(raw: _HashedFile, compression: Compression) -> BinaryIO:
    stream = cast(BinaryIO, raw)
    if compression == "gz":
        return cast(BinaryIO, gzip.GzipFile("", "wb", 6, stream, mtime=0))
    if compression == "bz2":
        return cast(BinaryIO, bz2.BZ2File(stream, "wb"))
    return cast(BinaryIO, lzma.LZMAFile(stream, "wb"))


class ShardFile:
    """One shard being written into a staging directory, with its index; it appears there when it is whole.

    The shard's bytes reach the disk before it appears; its index and name may only when the directory is committed.

    Args:
        directory: where it shall stand.
        name: its file name.
        compression: how the whole tar is compressed.
        field_format: how arrays are stored.
    """

    def __init__(
        self,
        directory: str | Path,
        name: str,
        compression: Compression = "none",
        field_format: FieldFormat = "npy",
    ) -> None:
        self.path = Path(directory) / name
        self._aside = self.path.with_name(f".{name}{ASIDE_SUFFIX}")
        self._file = _HashedFile(self._aside)
        self._packer = None if compression == "none" else _compressor(self._file, compression)
        self._tar = IndexedTarWriter(self._packer or cast(BinaryIO, self._file), field_format)
        self.n_samples = 0
        self._broken = False

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add a sample: ``__key__`` and its fields.

        Raises:
            FieldError: it cannot be stored; the shard stays as it was.
        """
        try:
            self._tar.write(sample)
        except FieldError:
            raise
        except BaseException:
            self._broken = True  # nobody knows how much of the sample was written
            raise
        self.n_samples += 1

    def close(self) -> ShardIndex:
        """Finish the shard and put it and its index into the directory.

        Raises:
            OutputError: a sample was written in part only.
        """
        if self._broken:
            raise OutputError("a write was interrupted half way", file=self.path, remedy="abort, and start again")
        self._tar.close()
        if self._packer is not None:
            self._packer.close()
        sha256 = self._file.close()
        tar_size = -(-self._tar.offset // tarfile.RECORDSIZE) * tarfile.RECORDSIZE  # as tarfile pads it
        index = self._tar.index.build(self.path.name, tar_size, self._file.size, sha256)
        sidecar = index_path(self.path)  # before the shard: a shard that is there has its index
        sidecar.write_bytes(index.to_bytes())
        fsync_path(sidecar)
        os.replace(self._aside, self.path)
        return index

    def abort(self) -> None:
        """Remove what was written."""
        self._file.abort()
        with contextlib.suppress(OSError):
            self._aside.unlink()
