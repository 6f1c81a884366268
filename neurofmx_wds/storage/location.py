"""Where a source lies: a path, or a URL that fsspec opens, read by range and again where a connection drops.

Knows files and servers, not what is in them. Nothing is opened here but what the user named.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeAlias, TypeVar, cast
from urllib.parse import unquote, urlsplit

from ..errors import SourceError

#: A request is for whole blocks of this many bytes; one that goes on where the last ended, for ever more of them.
BLOCK_BYTES = 512 * 1024
MOST_BLOCKS_AT_ONCE = 16
#: Blocks held in memory: 64 MiB.
BLOCKS_HELD = 128
#: What is waited (s) before what failed is tried again.
PAUSES = (0.5, 1.0, 2.0, 4.0)
#: A server that sends nothing for so long (s) is taken for a dropped connection.
SILENCE = 60
_TAGS = ("VersionId", "ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "updated", "mtime")
_CLOUD = "pip install 'neurofmx-wds[cloud]', and the fsspec package of any other kind of store"

T = TypeVar("T")
#: What the user may name a source by.
Given: TypeAlias = str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True)
class Version:
    """What tells one state of a file from another without reading it.

    Attributes:
        size: bytes.
        mtime_ns: when a file on disk was last changed; 0 for a URL.
        tag: what the server says of its content, such as its ETag; empty for a file on disk.
    """

    size: int
    mtime_ns: int
    tag: str


def is_url(path: str) -> bool:
    """Return whether this is a URL, not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", path) is not None


def is_zarr(path: str) -> bool:
    """Return whether this is a directory that holds a Zarr store."""
    return any(os.path.exists(os.path.join(path, name)) for name in (".zgroup", ".zmetadata", "zarr.json"))


def name_of(path: str) -> str:
    """Return a file's name: the last part of its path, or of the path of its URL, without a query."""
    return as_utf8(unquote(urlsplit(path).path.rstrip("/").rpartition("/")[2]) if is_url(path) else Path(path).name)


def as_utf8(text: str) -> str:
    r"""Return a text that can be written: bytes of a name or an attribute that are not UTF-8 become ``\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def version_of(path: str) -> Version:
    """Return the present version of a file.

    Raises:
        OSError: there is no such file on disk.
        SourceError: it is a directory, or the server does not give it, or does not tell its size.
    """
    if not is_url(path):
        if os.path.isdir(path):
            _refuse_directory(path)
        stat = os.stat(path)
        return Version(stat.st_size, stat.st_mtime_ns, "")
    fs, inner = _file_system(path)

    def ask() -> dict[str, Any]:
        fs.invalidate_cache()
        return fs.info(inner)

    about = _patiently(path, ask)
    if about.get("type") == "directory":
        raise SourceError("is a directory, not a file", file=path, remedy="name the files in it")
    if about.get("size") is None or about.get("partial") is False:
        _refuse_whole(path)
    known = next((name for name in _TAGS if about.get(name)), None)
    return Version(int(about["size"]), 0, f"{known} {about[known]}" if known else "")


def open_binary(path: str) -> BinaryIO:
    """Open a file for reading; a URL is read by range.

    Raises:
        OSError, SourceError: as :func:`version_of`.
    """
    if not is_url(path) and os.path.isdir(path):
        _refuse_directory(path)
    return cast(BinaryIO, RemoteFile(path)) if is_url(path) else open(path, "rb")


@contextlib.contextmanager
def on_disk(given: Sequence[Given]) -> Iterator[list[str]]:
    """Yield paths and URLs; an open file is copied to a temporary file, which is removed at the end.

    Args:
        given: paths, URLs or binary files, read from their start where that can be sought. A copy has the file's own
            name, or, of one without, the beginning of its SHA-256.

    Raises:
        SourceError: a file is open as text.
    """
    with contextlib.ExitStack() as copies:
        yield [
            os.fspath(each)
            if isinstance(each, (str, os.PathLike))
            else _copied(each, Path(copies.enter_context(tempfile.TemporaryDirectory(prefix="neurofmx-"))))
            for each in given
        ]


def _copied(file: BinaryIO, directory: Path) -> str:
    name = getattr(file, "name", None) or getattr(file, "path", None)
    name = name_of(name) if isinstance(name, str) else ""
    if file.seekable():
        file.seek(0)
    checksum = hashlib.sha256()
    with open(directory / "copy", "wb") as copy:
        if "encoding" in dir(file):
            raise SourceError("is open as text", file=name, remedy="open it with mode 'rb'")
        while piece := file.read(1 << 20):
            checksum.update(piece)
            copy.write(piece)
    place = directory / (name or checksum.hexdigest()[:16])
    os.rename(directory / "copy", place)
    return str(place)


def expand(url: str, suffixes: Sequence[str]) -> list[str]:
    """Return the files that a URL names: those that match its pattern, those in a directory, or the URL itself.

    Args:
        url: as the user gave it.
        suffixes: what files in a directory must end in to be meant.

    Raises:
        SourceError: the store cannot be listed.
    """
    fs, inner = _file_system(url)
    over_http = url.startswith("http")
    if "*" in inner or "[" in inner or ("?" in inner and not over_http):
        found = _patiently(url, lambda: sorted(fs.glob(inner)))
    elif Path(name_of(url)).suffix.lower() in suffixes or not _patiently(url, lambda: _is_directory(fs, inner)):
        return [url]
    else:
        every = _patiently(url, lambda: sorted(fs.find(inner)))
        found = [each for each in every if Path(name_of(f"x://{each}")).suffix.lower() in suffixes]
    inside = [each for each in found if "/../" not in each]  # a page's link may lead out of the directory
    return [fs.unstrip_protocol(each) for each in inside] or [url]


def _is_directory(fs: Any, inner: str) -> bool:
    """Return whether this is a directory; a web server's is a page that lists it, and no other page is fetched."""
    if "https" not in fs.protocol:
        return bool(fs.isdir(inner))
    return inner.endswith("/") and fs.info(inner).get("mimetype") == "text/html"


class _NoCollector:
    """Python's own garbage collection, off as long as anyone holds this.

    h5py holds a lock while it reads from a stream, and takes it to let go of an object; fsspec reads in a thread of its
    own. If that thread came to collect h5py's garbage meanwhile, each would wait for the other for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._was_on = True

    def hold(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._was_on:
                gc.enable()


_no_collector = _NoCollector()
#: By URL, what the last failure in reading it was: HDF5, in which it happens, makes others of it.
_failures: dict[str, SourceError] = {}


def failure_of(path: str) -> SourceError | None:
    """Return what a server did, once, if reading from it failed."""
    return _failures.pop(path, None)


class RemoteFile(io.RawIOBase):
    """A file behind a URL, read by range in blocks, of which the last ones used are held.

    While one is open, Python collects no garbage by itself; who reads much calls ``gc.collect(1)`` now and then.

    Args:
        url: as the user gave it.

    Raises:
        SourceError: here and on every read: the server does not give it, refuses ranges, or drops the connection
            however often it is tried again.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._size = version_of(url).size
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next = 0
        self._ahead = 1
        self._open: Any = None
        _no_collector.hold()

    def __repr__(self) -> str:
        return f"<RemoteFile {name_of(self._url)}>"

    def readable(self) -> bool:
        """Says that it can be read."""
        return True

    def seekable(self) -> bool:
        """Says that it has places to go to."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as fit and are available."""
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._size)
        count = max(0, stop - self._at)
        while self._at < stop:
            number, begin = divmod(self._at, BLOCK_BYTES)
            block = self._block(number, (stop - 1) // BLOCK_BYTES)
            piece = block[begin : begin + stop - self._at]
            done = count - (stop - self._at)
            view[done : done + len(piece)] = piece
            self._at += len(piece)
        return count

    def _block(self, number: int, last: int) -> bytes:
        """Return a block; unless it is in memory, fetch it with the blocks up to `last`, or more while streaming."""
        if number not in self._blocks:
            self._ahead = min(2 * self._ahead, MOST_BLOCKS_AT_ONCE) if number == self._next else 1
            most = min(MOST_BLOCKS_AT_ONCE, BLOCKS_HELD)
            stop = number + min(max(self._ahead, last + 1 - number), most)
            stop = min(stop, -(-self._size // BLOCK_BYTES))
            stop = next((k for k in range(number + 1, stop) if k in self._blocks), stop)
            data = self._fetched(number * BLOCK_BYTES, min(stop * BLOCK_BYTES, self._size))
            for k in range(number, stop):
                self._blocks[k] = data[(k - number) * BLOCK_BYTES :][:BLOCK_BYTES]
            self._next = stop
            while len(self._blocks) > BLOCKS_HELD:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetched(self, start: int, stop: int) -> bytes:
        try:
            return _patiently(self._url, lambda: self._fetch(start, stop))
        except SourceError as error:
            _failures[self._url] = error
            raise

    def _fetch(self, start: int, stop: int) -> bytes:
        file, self._open = self._open, None  # one that fails is not used again
        if file is None:
            fs, inner = _file_system(self._url)
            file = fs.open(inner, "rb", cache_type="none", block_size=BLOCK_BYTES)
        file.seek(start)
        data: bytes = file.read(stop - start)
        if len(data) != stop - start:
            raise EOFError(f"{len(data)} bytes came of {stop - start}")
        self._open = file
        return data

    def close(self) -> None:
        """Lets go of the blocks and the connection."""
        if not self.closed and hasattr(self, "_open"):
            self._blocks.clear()
            self._open = None
            _no_collector.release()
        super().close()


def _file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the name of the file there."""
    if re.search(r"(^|::)reference:", url):  # its file says which other URLs are to be fetched
        raise SourceError("names other files, which are never fetched", file=url, remedy="name the files themselves")
    try:
        from fsspec.config import conf
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {}
        if url.startswith("http") and not any("client_kwargs" in conf.get(name, {}) for name in ("http", "https")):
            import aiohttp

            patience = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
            options["client_kwargs"] = {"timeout": patience}
        return url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise SourceError(f"cannot be opened: {error}", file=url, remedy=_CLOUD) from None


def _patiently(url: str, ask: Callable[[], T]) -> T:
    """Asks a server, again after a pause where a connection drops or it is busy.

    Raises:
        SourceError: it refuses, or fails too often.
    """
    for pause in (*PAUSES, None):
        try:
            return ask()
        except SourceError:
            raise
        except Exception as error:
            if pause is None or not _is_transient(error):
                _give_up(url, error)
            time.sleep(max(pause, _asked_to_wait(error)))
    raise AssertionError  # the last pause is None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error reports; fsspec turns many into a missing file."""
    found = (getattr(each, "status", None) for each in _causes(error))
    return next((status for status in found if isinstance(status, int)), None)


def _asked_to_wait(error: Exception) -> float:
    headers: Any = next(filter(None, (getattr(each, "headers", None) for each in _causes(error))), {})
    told = str(headers.get("Retry-After", ""))
    return min(float(told), 30.0) if told.isdecimal() else 0.0


def _is_transient(error: Exception) -> bool:
    """Return whether an error may pass by itself: a dropped connection, a busy server."""
    status = _status(error)
    if status is not None and status >= 400:
        return status in (408, 425, 429) or status >= 500
    if any(type(each).__module__.startswith("aiohttp") for each in _causes(error)):
        return True
    final = (FileNotFoundError, PermissionError, IsADirectoryError)
    return isinstance(error, (OSError, EOFError)) and not isinstance(error, final)


def _give_up(url: str, error: Exception) -> NoReturn:
    status = _status(error)
    if "range requests" in str(error) or isinstance(error, io.UnsupportedOperation):
        _refuse_whole(url)
    if _is_transient(error):
        told = f"answers {status}" if status else f"failed ({type(error).__name__}: {str(error)[:200]})"
        remedy = "try again later: what is finished is kept; or download the file and convert the copy"
        raise SourceError(f"the server {told}, {len(PAUSES) + 1} times in a row", file=url, remedy=remedy) from None
    if status in (401, 403) or (status is None and isinstance(error, PermissionError)):
        remedy = (
            "check the credentials in the environment or in fsspec's configuration, or whether the link has expired"
        )
        raise SourceError(
            f"the server refuses access{f' ({status})' if status else ''}", file=url, remedy=remedy
        ) from None
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        raise SourceError("is not there", file=url, remedy="check the URL") from None
    told = f"{type(error).__name__}: {str(error)[:300]}"
    raise SourceError(f"cannot be read: {told}", file=url, remedy="check the URL and the credentials") from None


def _refuse_directory(path: str) -> NoReturn:
    raise SourceError("is a directory, and no file to convert is in it", file=path, remedy="name the files themselves")


def _refuse_whole(url: str) -> NoReturn:
    remedy = "download it and convert the copy"
    raise SourceError("the server gives the file only as a whole, not by range", file=url, remedy=remedy) from None
