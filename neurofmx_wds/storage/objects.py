"""Objects behind URLs (S3, Google Cloud Storage, Azure, HTTP servers), read by range and written whole, by obstore.

Knows addresses and servers, not what the objects hold. Nothing is requested but what the user named.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from ..errors import NeurofmxError, ShardError
from .blocks import Buffer
from .fork_lock import ForkLock

_BUCKETS = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")
SCHEMES = (*_BUCKETS, "http", "https")
DEFAULT_TIMEOUT = 120.0  # seconds for which a server may fail before that is an error
_AT_ONCE = 64  # requests of a process
_CLIENT_OPTIONS = frozenset({"allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "user_agent"})
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # seconds before the next attempt; the last one again and again
_INSTALL = "pip install 'neurofmx-wds[cloud]'"
_TRANSIENT = {408, 425, 429}  # and 5xx, but not
_UNABLE = {501, 505}

T = TypeVar("T")
StorageOptions = Mapping[str, Any]


def is_object_url(text: object) -> bool:
    """Return whether this is a URL of an object store or a web server.

    Example:
        >>> is_object_url("s3://bucket/data"), is_object_url("/data/shards"), is_object_url("file:///data")
        (True, False, False)
    """
    return isinstance(text, str) and text.partition("://")[0].lower() in SCHEMES and "://" in text


def is_bucket_url(text: object) -> bool:
    """Return whether this is the URL of a place in an object store, which can be written to.

    Example:
        >>> is_bucket_url("s3://bucket/data"), is_bucket_url("https://host/data")
        (True, False)
    """
    return isinstance(text, str) and text.startswith(tuple(f"{scheme}://" for scheme in _BUCKETS))


@dataclass(frozen=True, order=True)
class ObjectPath(os.PathLike[str]):
    """The address of an object, with as much of the interface of :class:`pathlib.Path` as shards need.

    Attributes:
        url: the address.

    Example:
        >>> shard = ObjectPath("s3://bucket/data/") / "shard_000000.tar"
        >>> str(shard), shard.name, str(shard.parent)
        ('s3://bucket/data/shard_000000.tar', 'shard_000000.tar', 's3://bucket/data')
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The last extension of the name, with its dot."""
        return os.path.splitext(self.name)[1]

    @property
    def parent(self) -> ObjectPath:
        """What precedes the last slash."""
        return ObjectPath(self.url.rstrip("/").rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        """Return the address of a neighbour."""
        return self.parent / name

    @property
    def root(self) -> str:
        """The bucket, container or server."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def key(self) -> str:
        """The name in the bucket or on the server."""
        path = self.url[len(self.root) :].strip("/")
        return unquote(path) if self.root.startswith("http") else path


@dataclass(frozen=True)
class Version:
    """What tells one state of an object from another without reading it.

    Attributes:
        size: bytes.
        tag: what the server says of its content: its ETag, else when it was changed last.
    """

    size: int
    tag: str


class Objects:
    """Reads and writes objects. It holds no connection, so it can be pickled and survives a fork.

    Args:
        options: of the servers, as obstore takes them: ``endpoint``, ``region``, ``access_key_id``, … or
            ``client_options``. What is not given comes from the environment (``AWS_…``, ``GOOGLE_…``, ``AZURE_…``).
            ``timeout``: seconds for which a server may fail before that is an error.

    Raises:
        ValueError: a bad `timeout`.
    """

    def __init__(self, options: StorageOptions | None = None) -> None:
        given = dict(options or {})
        self.timeout = given.pop("timeout", DEFAULT_TIMEOUT)
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, (int, float)) or not self.timeout > 0:
            raise ValueError(f"storage_options: timeout must be a positive number of seconds, not {self.timeout!r}")
        self.options = given
        self._token = repr(sorted((name, repr(value)) for name, value in given.items()))

    def read(self, path: ObjectPath, start: int = 0, stop: int | None = None) -> tuple[bytes, Version]:
        """Read a range of an object, or all of it.

        Raises:
            FileNotFoundError: there is no such object.
            ShardError: it cannot be read, for longer than `timeout`.
        """
        data, version = run(self.read_async(path, start, stop))
        return bytes(data), version

    async def read_async(
        self, path: ObjectPath, start: int = 0, stop: int | None = None, expected: Version | None = None
    ) -> tuple[Buffer, Version]:
        """Read as :meth:`read` does, in the event loop of :func:`run`.

        Args:
            path: the object.
            start, stop: the range, bytes; None: to the end.
            expected: refuse another state of the object than this.
        """
        options: dict[str, Any] = {}
        if start or stop is not None:
            options["range"] = {"offset": start} if stop is None else (start, stop)
        if expected is not None and expected.tag.startswith('"'):  # a strong ETag
            options["if_match"] = expected.tag

        async def attempt() -> tuple[Buffer, Version]:
            engine = _engine_of_process()
            answer = await engine.api.get_async(self._store(path), path.key, options=options)
            data = await answer.bytes_async()
            version = _version(answer.meta)
            if expected is not None and version != expected:
                _refuse_changed(path, expected, version)
            end = version.size if stop is None else min(stop, version.size)
            if len(data) != end - start or tuple(answer.range) != (start, end):
                raise EOFError(f"{len(data)} bytes came of {end - start}")
            return data, version

        return await self._patiently(path, attempt)

    def head(self, path: ObjectPath) -> Version:
        """Return the version of an object.

        Raises:
            FileNotFoundError, ShardError: as :meth:`read`.
        """

        async def attempt() -> Version:
            return _version(await _engine_of_process().api.head_async(self._store(path), path.key))

        return run(self._patiently(path, attempt))

    def sizes(self, directory: ObjectPath) -> dict[str, int]:
        """Return the names of the objects directly below a prefix, sorted, and their sizes.

        Raises:
            ShardError: they cannot be listed, as on most web servers.
        """

        async def attempt() -> dict[str, int]:
            engine = _engine_of_process()
            found = await engine.api.list_with_delimiter_async(self._store(directory), prefix=directory.key)
            return dict(sorted((each["path"].rpartition("/")[2], int(each["size"])) for each in found["objects"]))

        return run(self._patiently(directory, attempt))

    def put(self, path: ObjectPath, content: bytes | Path, create: bool = False) -> str:
        """Write an object, whole or not at all.

        Args:
            path: its address.
            content: its bytes, or a file that holds them.
            create: refuse to replace an object.

        Returns:
            Its ETag.

        Raises:
            FileExistsError: there is such an object, with other content; only with `create`.
            ShardError: it cannot be written.
        """
        mode = "create" if create else "overwrite"

        async def attempt() -> str:
            engine = _engine_of_process()
            answer = await engine.api.put_async(self._store(path), path.key, content, mode=mode)
            return str(answer.get("e_tag") or "")

        try:
            return run(self._patiently(path, attempt, "written"))
        except FileExistsError:
            if self.read(path)[0] != content:  # else it is ours: only the answer was lost
                raise
            return self.head(path).tag

    def delete(self, path: ObjectPath) -> None:
        """Delete an object.

        Raises:
            ShardError: it cannot be deleted.
        """

        async def attempt() -> None:
            await _engine_of_process().api.delete_async(self._store(path), path.key)

        with contextlib.suppress(FileNotFoundError):
            run(self._patiently(path, attempt, "deleted"))

    def _store(self, path: ObjectPath) -> Any:
        engine = _engine_of_process()
        known = (path.root, self._token)
        if known not in engine.stores:
            engine.stores[known] = self._make_store(engine, path)
        return engine.stores[known]

    def _make_store(self, engine: _Engine, path: ObjectPath) -> Any:
        options = dict(self.options)
        most = {"timeout": self.timeout, "connect_timeout": min(5, self.timeout), "read_timeout": min(30, self.timeout)}
        client: dict[str, Any] = {name: timedelta(seconds=value) for name, value in most.items()}
        client |= {name: options.pop(name) for name in _CLIENT_OPTIONS & set(options)}
        client |= options.pop("client_options", {})
        if not path.root.startswith("https:"):  # an endpoint that the user or the environment gives may be http
            client.setdefault("allow_http", True)
        retry = options.pop("retry_config", {"max_retries": 0})  # attempts are made again here
        kind = {"s3": "S3Store", "s3a": "S3Store", "gs": "GCSStore", "http": "HTTPStore", "https": "HTTPStore"}
        store = getattr(engine.classes, kind.get(path.root.partition(":")[0].lower(), "AzureStore"))
        try:
            return store.from_url(path.root, client_options=client, retry_config=retry, **options)
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust: a bad option
                raise
            problem = f"the object store cannot be opened: {_reason(error)}"
            raise ShardError(problem, file=path, remedy="check the URL and storage_options") from error

    async def _patiently(
        self, path: ObjectPath, attempt: Callable[[], Coroutine[Any, Any, T]], done: str = "read"
    ) -> T:
        """Make attempts until one succeeds, an error is final, or time is up; `done` is what then could not be."""
        deadline = time.monotonic() + self.timeout
        pauses = iter(_PAUSES)
        pause = 0.0
        while True:
            try:
                return await asyncio.wait_for(attempt(), deadline - time.monotonic())
            except NeurofmxError:
                raise
            except Exception as error:
                if not _is_transient(error):
                    _refuse(path, error, done)
                pause = next(pauses, _PAUSES[-1])
                if time.monotonic() + pause >= deadline:
                    _give_up(path, error, self.timeout, done)
            await asyncio.sleep(pause)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objects) and (self._token, self.timeout) == (other._token, other.timeout)

    __hash__ = None  # type: ignore[assignment]


def _version(about: Mapping[str, Any]) -> Version:
    changed = about.get("last_modified")
    return Version(int(about["size"]), about.get("e_tag") or (changed.isoformat() if changed else ""))


def _refuse_changed(path: ObjectPath, expected: Version, found: Version) -> NoReturn:
    what = f"it has {found.size} bytes, and had {expected.size}" if found.size != expected.size else "its ETag differs"
    raise ShardError(f"the object was changed while it was in use: {what}", file=path, remedy="start again")


def _status(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _is_transient(error: BaseException) -> bool:
    """Return whether an error may pass by itself: a dropped connection, a busy server."""
    if isinstance(error, (EOFError, asyncio.TimeoutError)):
        return True
    status = _status(error)
    if type(error).__name__ != "GenericError":
        return False
    if status is None:  # no answer at all: but a URL that cannot be one will not become one
        return "builder error" not in str(error)
    return status in _TRANSIENT or (status >= 500 and status not in _UNABLE)


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error).partition("\n")[0][:300] or type(error).__name__


def _give_up(path: ObjectPath, error: Exception, timeout: float, done: str) -> NoReturn:
    problem = f"the object could not be {done} for {timeout:g} s: {_reason(error)}"
    remedy = 'check the server and the network, or allow more time by storage_options={"timeout": seconds}'
    raise ShardError(problem, file=path, remedy=remedy) from error


def _refuse(path: ObjectPath, error: Exception, done: str) -> NoReturn:
    kind, status = type(error).__name__, _status(error)
    if isinstance(error, FileNotFoundError) or kind == "NotFoundError":
        raise FileNotFoundError(f"{path}: there is no such object") from error
    if isinstance(error, FileExistsError) or kind == "AlreadyExistsError":
        raise FileExistsError(f"{path}: there is such an object already") from error
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        remedy = "check the credentials in the environment or in storage_options, and the clock"
        raise ShardError(f"access is denied: {_reason(error)}", file=path, remedy=remedy) from error
    if kind == "PreconditionError":
        problem = "the object was changed while it was in use: it no longer has the same ETag"
        raise ShardError(problem, file=path, remedy="start again") from error
    if "ange request" in str(error):
        problem = "the server gives objects only as a whole, not by range"
        raise ShardError(problem, file=path, remedy="copy the shards to a local directory") from error
    raise ShardError(f"cannot be {done}: {_reason(error)}", file=path, remedy="check the URL") from error


class _Engine:
    """An event loop in a thread of its own, and obstore for this process.

    Attributes:
        api: obstore's functions.
        classes: its stores' classes.
        stores: those in use, by server and options.
        pid: the process.
    """

    def __init__(self) -> None:
        global _has_run
        self.api, self.classes = _copy_of_obstore() if _has_run else _obstore()
        _has_run = True
        self.stores: dict[tuple[str, str], Any] = {}
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(_AT_ONCE)
        self._thread = threading.Thread(target=self.loop.run_forever, name="neurofmx_wds objects", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cancel all requests and end the thread."""
        if self.pid != os.getpid():
            return

        def cancel() -> None:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.call_later(0.01, self.loop.stop)

        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(cancel)
            self._thread.join(2)


_engine: _Engine | None = None
_engine_lock = ForkLock()
_has_run = False  # here or in the process that this one was forked from: obstore's threads do not survive a fork


def _engine_of_process() -> _Engine:
    global _engine
    if _engine is None or _engine.pid != os.getpid():
        with _engine_lock:
            if _engine is None or _engine.pid != os.getpid():
                _engine = _Engine()
                atexit.register(_engine.stop)
    return _engine


def _obstore() -> tuple[Any, Any]:
    try:
        return importlib.import_module("obstore"), importlib.import_module("obstore.store")
    except ImportError as error:
        raise NeurofmxError(f"reading from URLs needs obstore: {error}", remedy=_INSTALL) from error


def _copy_of_obstore() -> tuple[Any, Any]:
    """Load obstore's library once more, with threads of its own: those of the parent do not exist here.

    The system loads a file only once, so this is a copy of it (15 MB, 50 ms).
    """
    path = importlib.import_module("obstore._obstore").__file__
    with _copied_file(path) as copy:
        loader = importlib.machinery.ExtensionFileLoader("_obstore", copy)
        spec = importlib.util.spec_from_file_location("_obstore", copy, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    return module, module._store


@contextlib.contextmanager
def _copied_file(path: str | None) -> Iterator[str]:
    assert path is not None
    with open(path, "rb") as source:
        content = source.read()
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("neurofmx_wds obstore")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(content)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(content)
        file.flush()
        yield file.name


def submit(work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine in the event loop of this process."""
    return asyncio.run_coroutine_threadsafe(work, _engine_of_process().loop)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the event loop of this process, and return its result."""
    future = submit(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def slots() -> asyncio.Semaphore:
    """Return what limits the number of requests at once."""
    return _engine_of_process().slots


def read_all(objects: Objects, paths: Sequence[ObjectPath]) -> list[bytes | Exception]:
    """Read some objects at once; an error stands in the place of one that cannot be read."""

    async def read(path: ObjectPath) -> bytes:
        async with slots():
            return bytes((await objects.read_async(path))[0])

    async def every() -> list[Any]:
        return await asyncio.gather(*map(read, paths), return_exceptions=True)

    found = run(every())
    for each in found:
        if isinstance(each, BaseException) and not isinstance(each, Exception):
            raise each
    return found


def refuse_options(options: object) -> None:
    """Refuse storage options that are no mapping of names.

    Raises:
        ValueError: they are not.
    """
    if options is not None and not (isinstance(options, Mapping) and all(isinstance(name, str) for name in options)):
        raise ValueError(f"storage_options must be a dictionary of options, not {options!r}")
