"""Shards that cannot be mapped (compressed ones), unpacked once per machine into a bounded directory.

Knows files only; knows nothing of samples or order.
"""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import io
import lzma
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import RESTORE, OutputError, ShardError
from .atomic import ASIDE_SUFFIX
from .regular import is_out_of_files, open_regular

_open_gzip: Callable[..., Any]
_ZlibError: Any  # an exception's class
try:
    from isal.igzip import open as _open_gzip  # 2.8 times as fast (measured with 40 MB of spike counts)
    from isal.isal_zlib import error as _ZlibError
except ImportError:
    from gzip import open as _open_gzip
    from zlib import error as _ZlibError

DEFAULT_CACHE_SIZE = 64 << 30
_ABANDONED_AFTER = 3600.0  # seconds without a write, after which an unfinished copy belongs to a killed process
_VARIABLE = "NEUROFMX_CACHE"
_REMEDY = f"give a writable directory with enough space, by cache_dir= or the environment variable {_VARIABLE}"
_SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz")
_OPENERS: dict[bytes, Callable[..., Any]] = {  # by what such files begin with
    b"\x1f\x8b": _open_gzip,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}

Expand = Callable[[Path], Iterator[bytes]]


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Return whether a shard's name says that it must be unpacked before reading at random places.

    Example:
        >>> is_compressed("shard_000000.tar.gz"), is_compressed("shard_000000.tar")
        (True, False)
    """
    return Path(path).suffix in _SUFFIXES


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Return whether a shard is compressed, by its first bytes: webdataset ignores names, too.

    Raises:
        ShardError: it is not a regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        return _opener_of(stream.read(6)) is not None


def _opener_of(start: bytes) -> Callable[..., Any] | None:
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def default_cache_dir() -> Path:
    """Return ``$NEUROFMX_CACHE``, else ``neurofmx_wds`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        OutputError: neither variable is set and the user has no home directory, as in some containers.
    """
    if os.environ.get(_VARIABLE):
        return Path(os.environ[_VARIABLE])
    if os.path.isabs(os.environ.get("XDG_CACHE_HOME", "")):  # its specification says to ignore relative paths
        return Path(os.environ["XDG_CACHE_HOME"], "neurofmx_wds")
    try:
        return Path.home() / ".cache" / "neurofmx_wds"
    except RuntimeError as error:
        problem = "compressed shards are unpacked into a cache directory, but this user has no home directory"
        raise OutputError(problem, remedy=_REMEDY) from error


class ShardCache:
    """Unpacked copies of compressed shards. When the directory is full, the least recently used copies are deleted.

    Several processes may share it: one unpacks a shard while the others wait for it. The directory is made when the
    first shard is unpacked.

    Args:
        directory: where the copies are; by default :func:`default_cache_dir`.
        max_bytes: bytes of all copies together. The shard in use is always kept, even if it is larger, provided that
            its index gives its size: otherwise unpacking might never end.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, max_bytes: int = DEFAULT_CACHE_SIZE) -> None:
        self.given_directory = directory
        self._directory = None if directory is None else Path(os.path.abspath(directory))
        self.max_bytes = max_bytes

    @property
    def directory(self) -> Path:
        """Where the copies are.

        Raises:
            OutputError: none was given, and there is no default.
        """
        if self._directory is None:
            self._directory = Path(os.path.abspath(default_cache_dir()))
        return self._directory

    def copy_of(self, path: Path) -> Path:
        """Return the path of a shard's unpacked copy, which may not exist yet."""
        stat = path.stat()
        name = f"{os.path.abspath(path)}\n{stat.st_size}\n{stat.st_mtime_ns}"
        return self.directory / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.tar"

    def open(
        self, path: Path, expected_size: int | None = None, expand: Expand | None = None, name: str | None = None
    ) -> IO[bytes]:
        """Open the unpacked copy of a shard. It is made first if necessary.

        Args:
            path: the compressed shard.
            expected_size: bytes of the unpacked tar, if its index says so.
            expand: yields the unpacked bytes of a shard that is not a compressed file, but sparse or elsewhere.
            name: of the copy, if the shard is no file.

        Raises:
            ShardError: it cannot be unpacked, or not to the size expected.
            OutputError: the cache cannot be written.
            OSError: there is no such shard, or it cannot be read.
        """
        copy = self.copy_of(path) if name is None else self.directory / f"{name}.tar"
        while True:
            try:
                stream = open_regular(copy)
            except FileNotFoundError:
                self._unpack(path, copy, expected_size, expand)
                continue
            except (PermissionError, NotADirectoryError) as error:
                raise self._unwritable(error) from error
            if expected_size is None or os.fstat(stream.fileno()).st_size == expected_size:
                with contextlib.suppress(OSError):
                    os.utime(copy)  # marks it as used
                return stream
            stream.close()
            copy.unlink(missing_ok=True)

    def _unpack(self, path: Path, copy: Path, expected_size: int | None, expand: Expand | None) -> None:
        import filelock  # on use: importing it takes 40 ms, and few datasets are compressed

        lock = copy.with_suffix(".lock")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(lock):
                if not copy.exists():
                    self._write(path, copy, expected_size, expand or decompressed)
            lock.unlink(missing_ok=True)
        except (OSError, NotImplementedError) as error:  # the latter: the file system has no locks
            if is_out_of_files(error):
                raise
            raise self._unwritable(error) from error

    def _write(self, path: Path, copy: Path, expected_size: int | None, expand: Expand) -> None:
        aside = copy.with_name(f".{copy.name}.{os.getpid()}{ASIDE_SUFFIX}")
        try:
            with open(aside, "wb") as stream:
                for piece in self._unpacked(path, expected_size, expand):
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            self._make_room(aside.stat().st_size)
            os.replace(aside, copy)
        finally:
            aside.unlink(missing_ok=True)

    def _unpacked(self, path: Path, expected_size: int | None, expand: Expand) -> Iterator[bytes]:
        """Yield the shard's unpacked bytes in pieces; raise ShardError if they are damaged."""
        limit, remedy = expected_size, RESTORE
        if limit is None:
            limit, remedy = self.max_bytes, "it has no index with its size: increase cache_size if it is as large"
        size = 0
        try:
            for piece in expand(path):
                size += len(piece)
                if size > limit:
                    raise ShardError(f"unpacks to more than {limit} bytes", file=path, remedy=remedy)
                yield piece
        except (EOFError, OSError, lzma.LZMAError, _ZlibError) as error:
            if is_out_of_files(error):
                raise
            raise ShardError(f"cannot be unpacked: {_reason(error)}", file=path, remedy=RESTORE) from error
        if expected_size is not None and size != expected_size:
            raise ShardError(f"unpacks to {size} bytes, not {expected_size}", file=path, remedy=RESTORE)

    def _unwritable(self, error: Exception) -> OutputError:
        problem = f"compressed shards are unpacked here, but it cannot be written: {_reason(error)}"
        return OutputError(problem, file=self.directory, remedy=_REMEDY)

    def _make_room(self, needed: int) -> None:
        for part in self.directory.glob(f".*{ASIDE_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > _ABANDONED_AFTER:
                    part.unlink()
        entries = []
        for entry in self.directory.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, entry))
        total = needed + sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self.max_bytes:
                return
            entry.unlink(missing_ok=True)
            total -= size


def decompressed(path: Path) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file in pieces.

    Raises:
        ShardError: it is not compressed.
    """
    with io.BufferedReader(open_regular(path)) as packed:
        opener = _opener_of(packed.peek(6))
        if opener is None:
            raise ShardError("it is not compressed, but its index says so", file=path, remedy=RESTORE)
        with opener(packed, "rb") as stream:
            while piece := stream.read(1 << 20):
                yield piece


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
