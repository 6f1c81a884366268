"""A source file as it was when it was planned, and what went wrong with it.

Knows files and their versions; knows nothing of samples or shards.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from ..errors import NeurofmxError, SourceError, hide_secrets, missing_package
from ..storage.location import Version, failure_of, is_url, is_zarr, name_of, version_of
from ..storage.regular import file_sha256
from .sources import Source, SourceConfig, open_source
from .sources.listing import Listing, list_files


@dataclass(frozen=True)
class FileState:
    """A source file, or directory of files, as it was when it was planned.

    Attributes:
        path: where it is, a path or a URL.
        size: bytes.
        mtime_ns: when it was last changed; 0 for a URL.
        sha256: its checksum; for a directory, that of its files' names, sizes and times, so that none is read twice;
            empty for a URL, which is not read whole.
        tag: the server's version of a URL's content; for a directory, its checksum again.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    tag: str = ""

    @classmethod
    def of(cls, path: str, seen: Version | None = None) -> FileState:
        """Return the state of a file now, or as it was when it was seen."""
        seen = seen or stamp(path)
        return cls(path, seen.size, seen.mtime_ns, "" if is_url(path) else seen.tag or file_sha256(path), seen.tag)

    @property
    def name(self) -> str:
        """The file's name."""
        return name_of(self.path)

    @property
    def place(self) -> str:
        """Its resolved path, or its URL without credentials: the same however it was given."""
        return hide_secrets(self.path) if is_url(self.path) else os.path.realpath(self.path)

    @property
    def identity(self) -> str:
        """What identifies its content: its checksum; for a URL the place, the size and the server's version."""
        return self.sha256 or f"{self.place}, {self.size} bytes, {self.tag or 'no ETag'}"

    def open(self, config: SourceConfig) -> Source:
        """Open the file as a source.

        Raises:
            SourceError: it cannot be read, or has changed.
        """
        source = open_source(self.path, config)
        try:
            self.check(getattr(source, "listing", None))
        except BaseException:
            source.close()
            raise
        return source

    def check(self, listing: Listing | None = None) -> None:
        """Refuse a file that has changed since; a directory only if its listing is given: its files check themselves.

        Raises:
            SourceError: it has changed.
        """
        if listing is None and os.path.isdir(self.path):
            return
        now = version_of(self.path) if listing is None else stamp_of(listing)
        if now != Version(self.size, self.mtime_ns, self.tag):
            raise SourceError("changed while it was converted", file=self.path, remedy="convert it when it is finished")


def stamp(path: str) -> Version:
    """Return what shows that a source has changed, without reading it; for a directory, the checksum of its listing."""
    return stamp_of(list_files(path, hidden=is_zarr(path))) if os.path.isdir(path) else version_of(path)


def stamp_of(listing: Listing) -> Version:
    """Return the same for a directory whose files are known."""
    return Version(listing.size, listing.mtime_ns, listing.sha256())


def what_went_wrong(error: Exception, file: FileState) -> SourceError:
    """Return the error of a source that was being read; if the server failed, or the file has changed, that one."""
    error = failure_of(file.path) or error
    with contextlib.suppress(OSError):
        try:
            file.check()
        except SourceError as changed:
            error = changed
    return as_source_error(error, file.path)


def as_source_error(error: Exception, path: str) -> SourceError:
    """Return an error as one of the source, which names the file exactly as it was given."""
    error = missing_package(error) or error
    if isinstance(error, NeurofmxError):
        about = {key: getattr(error, key) for key in ("sample", "member", "remedy")}
        found = SourceError(error.problem, file=path, **about)
    elif isinstance(error, OSError) and error.strerror:
        found = SourceError(f"cannot be read: {error.strerror}", file=path, remedy="check the path and the permissions")
    else:
        found = SourceError(
            f"cannot be read: {type(error).__name__}: {str(error)[:500]}",
            file=path,
            remedy="the file may be damaged: open it with the program that made it",
        )
    found.__cause__ = error
    return found
