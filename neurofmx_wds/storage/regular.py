"""Regular files only: what a dataset's directory contains may be a pipe, a device or endless, and is not to be trusted.

Knows files only; knows nothing of what they contain.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat

from ..errors import NeurofmxError, ShardError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}


def open_regular(path: str | os.PathLike[str], error: type[NeurofmxError] = ShardError) -> io.FileIO:
    """Open a regular file for reading, without a buffer. Nothing else is opened, so this never waits.

    Args:
        path: the file, or a link to it.
        error: what to raise if it is something else.

    Raises:
        NeurofmxError: of the kind `error`: it is a pipe, a device, a socket or a directory.
        OSError: there is no such file, or it cannot be opened.
    """
    _refuse_others(path, os.stat(path).st_mode, error)
    stream = io.FileIO(os.fspath(path), opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    try:
        _refuse_others(path, os.fstat(stream.fileno()).st_mode, error)  # it may have been replaced in between
    except NeurofmxError:
        stream.close()
        raise
    return stream


def _refuse_others(path: str | os.PathLike[str], mode: int, error: type[NeurofmxError]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise error(f"is {kind}, not a regular file", file=path, remedy="replace it by a file")


def is_out_of_files(error: Exception) -> bool:
    """Whether an error means that too many files are open, so that no file is at fault."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def read_regular(path: str | os.PathLike[str], max_bytes: int, error: type[NeurofmxError] = ShardError) -> bytes:
    """Read a whole regular file.

    Args:
        path: the file, or a link to it.
        max_bytes: a larger file is refused before anything is read.
        error: what to raise if it is larger or no regular file.

    Raises:
        NeurofmxError: of the kind `error`.
        OSError: it cannot be read.
    """
    with io.BufferedReader(open_regular(path, error)) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > max_bytes:
            problem = f"has {size} bytes, more than the {max_bytes} that are read"
            raise error(problem, file=path, remedy="check where it comes from")
        return stream.read(size)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open_regular(path) as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
