"""Shards that cannot be mapped (compressed ones), unpacked once per machine into a bounded directory.

Knows files only; nothing of samples or order.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..errors import ShardError
from .atomic import ASIDE_SUFFIX, locked_file

DEFAULT_CACHE_SIZE = 64 << 30
_ABANDONED_AFTER = 3600.0  # seconds without a write, after which an unfinished copy is taken for a killed process's
_OPENERS: dict[str, Callable[[str], Any]] = {
    ".gz": lambda path: gzip.open(path, "rb"),
    ".tgz": lambda path: gzip.open(path, "rb"),
    ".bz2": lambda path: bz2.open(path, "rb"),
    ".tbz2": lambda path: bz2.open(path, "rb"),
    ".xz": lambda path: lzma.open(path, "rb"),
    ".txz": lambda path: lzma.open(path, "rb"),
}


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Whether a shard must be unpacked before it can be read at random places."""
    return Path(path).suffix in _OPENERS


def default_cache_dir() -> Path:
    """``$NEUROFMX_CACHE``, else the user's cache directory."""
    if "NEUROFMX_CACHE" in os.environ:
        return Path(os.environ["NEUROFMX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "neurofmx_wds"


class ShardCache:
    """Unpacked copies of compressed shards; the least recently used leave when the directory is full.

    Several processes may share it: one unpacks a shard while the others wait for it.

    Args:
        directory: where the copies lie; by default :func:`default_cache_dir`.
        max_bytes: how much they may take together. The shard in use is always kept, even if it takes more; but then
            its index must say so: of a shard without one nobody knows where unpacking would end.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, max_bytes: int = DEFAULT_CACHE_SIZE) -> None:
        self.directory = Path(directory) if directory is not None else default_cache_dir()
        self.max_bytes = max_bytes

    def copy_of(self, path: Path) -> Path:
        """Where the unpacked copy of a shard lies, or will."""
        stat = path.stat()
        name = f"{os.path.abspath(path)}\n{stat.st_size}\n{stat.st_mtime_ns}"
        return self.directory / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.tar"

    def open(self, path: Path, expected_size: int | None = None) -> IO[bytes]:
        """Open the unpacked copy of a shard, making it first when there is none.

        Args:
            path: the compressed shard.
            expected_size: bytes of the unpacked tar, where its index says so.

        Raises:
            ShardError: it cannot be unpacked, or to another size than expected.
            OSError: the cache cannot be written.
        """
        copy = self.copy_of(path)
        while True:
            try:
                stream = open(copy, "rb", buffering=0)
            except FileNotFoundError:
                self._unpack(path, copy, expected_size)
                continue
            if expected_size is None or os.fstat(stream.fileno()).st_size == expected_size:
                with contextlib.suppress(OSError):
                    os.utime(copy)  # marks it as used
                return stream
            stream.close()
            copy.unlink(missing_ok=True)

    def _unpack(self, path: Path, copy: Path, expected_size: int | None) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = copy.with_suffix(".lock")
        with locked_file(lock):
            if not copy.exists():
                aside = copy.with_name(f".{copy.name}.{os.getpid()}{ASIDE_SUFFIX}")
                try:
                    self._write(path, aside, expected_size)
                    self._make_room(aside.stat().st_size)
                    os.replace(aside, copy)
                finally:
                    aside.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)

    def _write(self, path: Path, aside: Path, expected_size: int | None) -> None:
        limit = self.max_bytes if expected_size is None else expected_size
        remedy = "restore the shard from a copy, or convert again"
        larger = (
            "it has no index to say its size: raise cache_size if it is as large" if expected_size is None else remedy
        )
        written = 0
        try:
            with _OPENERS[path.suffix](str(path)) as packed, open(aside, "wb") as stream:
                while chunk := packed.read(1 << 20):
                    written += len(chunk)
                    if written > limit:
                        raise ShardError(f"unpacks to more than {limit} bytes", file=path, remedy=larger)
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the shard's
            raise ShardError(f"cannot be unpacked: {error}", file=path, remedy=remedy) from error
        if expected_size is not None and written != expected_size:
            raise ShardError(f"unpacks to {written} bytes, not {expected_size}", file=path, remedy=remedy)

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
