"""Parts of objects, brought into a cache that all processes of a machine share: each byte is fetched once.

Knows objects, blocks and the cache's directory; knows nothing of samples or order.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import hashlib
import logging
import os
import time
import weakref
from collections.abc import Iterable
from pathlib import Path

from ..errors import OutputError, ShardError
from .blocks import BLOCK, Blocks, Buffer, Run
from .cache_room import CacheRoom
from .claims import Claims
from .objects import ObjectPath, Objects, Version, slots, submit

logger = logging.getLogger("neurofmx_wds")

REQUEST_BYTES = 4 << 20  # of one request at most
_POLL = (0.001, 0.05)  # seconds between two looks at what another process is fetching: at first, and at most


class CachedObject:
    """An object of which parts are on this machine.

    Attributes:
        path: its address.
        cache: brings more of it here.
        blocks: those that are here.
        version: its version as this process first saw it.
        failures: how many times fetching a part has failed, and the last error.
    """

    def __init__(self, path: ObjectPath, cache: NodeCache, blocks: Blocks) -> None:
        self.path = path
        self.cache = cache
        self.blocks = blocks
        self.version: Version | None = None
        self.failures: tuple[int, Exception | None] = (0, None)


Part = tuple[CachedObject, Run]


class NodeCache:
    """Brings parts of objects into a directory that processes share.

    Args:
        objects: reads them.
        directory: where they are kept; None: in the memory of this process.
        max_bytes: how much they may take there. What has been requested and not been read is kept even so.

    Attributes:
        room: keeps the directory within its limit; None: in memory.
    """

    def __init__(self, objects: Objects, directory: Path | None, max_bytes: int) -> None:
        self.objects = objects
        self.directory = _usable(directory)
        self._claims = Claims(self.directory)
        self.room = None if self.directory is None else CacheRoom(self.directory, max_bytes, self._claims)
        self._making_room = asyncio.Lock()
        self._entries: weakref.WeakValueDictionary[str, CachedObject] = weakref.WeakValueDictionary()

    def entry(self, path: ObjectPath, size: int, identity: str) -> CachedObject:
        """Return what is here of an object.

        Args:
            path: its address.
            size: bytes.
            identity: what tells its content from others of the same address.

        Raises:
            OutputError: the cache cannot be written.
        """
        name = self.name(path, size, identity)
        found = self._entries.get(name)
        if found is None:
            place = None if self.directory is None else self.directory / name
            try:
                found = self._entries[name] = CachedObject(path, self, Blocks(place, size, self._claims))
            except OSError as error:
                raise self._unwritable(error) from error
        return found

    @staticmethod
    def name(path: ObjectPath, size: int, identity: str) -> str:
        """Return what the files of an object are called here."""
        return hashlib.sha256(f"{path}\n{size}\n{identity}".encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def request(self, entry: CachedObject, run: Run) -> concurrent.futures.Future[None]:
        """Begin to bring a run of blocks here."""
        return submit(self._bring(entry, *run))

    async def _bring(self, entry: CachedObject, start: int, stop: int) -> None:
        pause, longest = _POLL
        n_failed, last = entry.failures[0], time.monotonic() + self.objects.timeout
        while True:
            mine, others = entry.blocks.claim(start, stop, take_over=time.monotonic() > last)
            await self._fetch_all(entry, mine)
            if not others:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            n_now, error = entry.failures
            if n_now > n_failed and error is not None:  # another part of this process has tried for long enough
                raise error

    async def _fetch_all(self, entry: CachedObject, runs: list[Run]) -> None:
        step = REQUEST_BYTES // BLOCK
        pieces = [(a, min(a + step, stop)) for start, stop in runs for a in range(start, stop, step)]
        tasks = [asyncio.ensure_future(self._fetch(entry, *piece)) for piece in pieces]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _fetch(self, entry: CachedObject, start: int, stop: int) -> None:
        try:
            async with slots():
                first, last = start * BLOCK, min(stop * BLOCK, entry.blocks.size)
                data, version = await self.objects.read_async(entry.path, first, last, entry.version)
                if version.size != entry.blocks.size:
                    problem = f"the object has {version.size} bytes, its index says {entry.blocks.size}"
                    raise ShardError(problem, file=entry.path, remedy="restore it, or start again if it was replaced")
                entry.version = entry.version or version
            if self.room is not None and not self.room.take(len(data)):
                async with self._making_room:
                    await asyncio.get_running_loop().run_in_executor(None, self.room.make, len(data))
            self._store(entry, start, data)
        except BaseException as error:
            entry.blocks.release(start, stop)
            if isinstance(error, Exception):
                entry.failures = entry.failures[0] + 1, error
            raise

    def _store(self, entry: CachedObject, start: int, data: Buffer) -> None:
        try:
            entry.blocks.store(start, data)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        problem = f"the cache of what is read from URLs cannot be written: {error.strerror or error}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space, lower cache_size, or give another cache_dir" if full else "give another cache_dir"
        return OutputError(problem, file=self.directory, remedy=remedy)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_entries": None, "_making_room": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _entries=weakref.WeakValueDictionary(), _making_room=asyncio.Lock())


def fetch(wanted: Iterable[Part]) -> None:
    """Bring blocks here and wait for them.

    Raises:
        ShardError: they cannot be read; FileNotFoundError: there is no such object.
        OutputError: the cache cannot be written.
    """
    futures = [entry.cache.request(entry, run) for entry, run in wanted]
    try:
        for future in futures:
            future.result()
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def drop(unwanted: Iterable[Part]) -> None:
    """Forget blocks, so that they are fetched again."""
    for entry, run in unwanted:
        entry.blocks.evict([run])


def _usable(directory: Path | None) -> Path | None:
    """Return a directory in which files can be made; None, and a warning, where it cannot be."""
    if directory is None:
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK | os.X_OK):
            return directory
        problem = "it cannot be written"
    except OSError as error:
        problem = error.strerror or str(error)
    logger.warning("%s: what is read from URLs is kept in memory only: %s (give cache_dir=)", directory, problem)
    return None
