"""The files below a directory: found, told from what they were, and read as they were when they were found.

Knows nothing of samples.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import SourceError
from ...storage.location import name_of

_CHANGED = "convert it when nothing changes any more"


class Entry(NamedTuple):
    """A file as it was found: its path below the directory, with slashes; its size in bytes; when it was changed."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """The regular files below a directory.

    Attributes:
        root: the directory.
        files: its files, in the order of their paths.
        hidden: how many files and folders begin with a dot; they and all that is in them are left out.
    """

    root: str
    files: tuple[Entry, ...]
    hidden: int

    @property
    def name(self) -> str:
        """The directory's own name."""
        return name_of(os.path.abspath(self.root))

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(entry.size for entry in self.files)

    @property
    def mtime_ns(self) -> int:
        """When a file was last changed."""
        return max((entry.mtime_ns for entry in self.files), default=0)

    def sha256(self) -> str:
        """Return a checksum of the files' paths, sizes and times; no file is read for it."""
        digest = hashlib.sha256()
        for path, size, mtime_ns in self.files:
            digest.update(b"%b\0%d %d\n" % (os.fsencode(path), size, mtime_ns))
        return digest.hexdigest()

    def find(self, *names: str) -> Entry:
        """Return the first of these files that is there.

        Raises:
            SourceError: there is none.
        """
        there = {entry.path: entry for entry in self.files}
        for name in names:
            if name in there:
                return there[name]
        remedy = "give the directory that holds it, unpacked from any tar, or choose a subset (--subset train or test)"
        raise SourceError(f"has no {' or '.join(names)}", file=self.root, remedy=remedy)

    def refused(self, problem: str, remedy: str) -> SourceError:
        """Return the error that something in the directory is wrong."""
        return SourceError(problem, file=self.root, remedy=remedy)

    def read(self, entry: Entry) -> bytes:
        """Return the content of a file.

        Raises:
            SourceError: it is gone, or not as it was found.
        """
        try:
            with open(os.path.join(self.root, entry.path), "rb", buffering=0) as file:
                if not _same(entry, os.fstat(file.fileno())):
                    raise self.changed(entry)
                data = file.readall()
        except OSError as error:
            raise self.refused(f"{entry.path!r} cannot be read: {error.strerror or error}", _CHANGED) from error
        if len(data) != entry.size:
            raise self.changed(entry)
        return data

    def changed(self, entry: Entry) -> SourceError:
        """Return the error that a file is not as it was found."""
        return self.refused(f"{entry.path!r} has changed since it was found", _CHANGED)


def list_files(root: str | os.PathLike[str], hidden: bool = False) -> Listing:
    """Find all files below a directory, without reading any.

    A link is followed where it leads to a file below the same directory.

    Args:
        root: the directory.
        hidden: take hidden files too, which are left out otherwise.

    Raises:
        SourceError: it is no directory or cannot be listed, or holds a link that leads elsewhere, to a directory or
            nowhere, or something that is no file (a pipe, a device).
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        what = "is no directory" if os.path.exists(root) else "there is no such directory"
        raise SourceError(what, file=root, remedy="give the directory that holds the files")
    files: list[Entry] = []
    n_hidden = 0
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for each in entries:
                    if each.name.startswith(".") and not hidden:
                        n_hidden += 1
                    elif each.is_dir(follow_symlinks=False):
                        waiting.append(f"{folder}{each.name}/")
                    else:
                        files.append(_entry(root, f"{folder}{each.name}", each))
        except OSError as error:
            problem = f"{folder or '.'!r} cannot be listed: {error.strerror or error}"
            raise SourceError(problem, file=root, remedy="check the permissions") from error
    return Listing(root, tuple(sorted(files)), n_hidden)


def _entry(root: str, path: str, found: os.DirEntry[str]) -> Entry:
    remedy = "remove it, or give a copy of the directory that was made with `cp -rL`"
    if found.is_symlink():
        base, target = os.path.realpath(root), os.path.realpath(found.path)
        if os.path.commonpath([base, target]) != base or not os.path.isfile(target):
            raise SourceError(f"{path!r} is a link that leads to no file in this directory", file=root, remedy=remedy)
    about = found.stat()
    if not stat.S_ISREG(about.st_mode):
        raise SourceError(f"{path!r} is no file (a pipe, a socket or a device)", file=root, remedy=remedy)
    return Entry(path, about.st_size, about.st_mtime_ns)


def _same(entry: Entry, now: os.stat_result) -> bool:
    return stat.S_ISREG(now.st_mode) and (now.st_size, now.st_mtime_ns) == (entry.size, entry.mtime_ns)


def left_out_lines(counts: dict[str, int]) -> list[str]:
    """Describe what was left out, for a report: ``3 files left out: hidden``."""
    return [f"{n:,} file{'' if n == 1 else 's'} left out: {what}" for what, n in counts.items() if n]
