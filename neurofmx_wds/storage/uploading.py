"""Directories that appear whole in a bucket: filled on this machine, uploaded file by file, the last file last.

Knows files and objects; knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError, ShardError
from .atomic import StagedDirectory, write_atomic
from .cache import default_cache_dir
from .objects import ObjectPath, Objects, StorageOptions, is_bucket_url
from .regular import file_sha256

LOCK_NAME = ".neurofmx_wds.lock"


class UploadedDirectory(StagedDirectory):
    """A directory that is filled in the cache and then uploaded below a prefix that must hold no such directory yet.

    A run that is killed leaves its files in the cache, where the same run finds them, and uploads what is missing. A
    lock, an object below the prefix, keeps runs on other machines away while one uploads.

    Args:
        target: URL of the prefix.
        last: name of the file that is uploaded last: readers look for it first. Other files of this kind (``.json``)
            stay here.
        options: of the object store.

    Raises:
        OutputError: it exists already or cannot be reached, or another run is writing it.
    """

    def __init__(self, target: str, last: str, options: StorageOptions | None = None) -> None:
        self.address = ObjectPath(target.rstrip("/"))
        self._last = last
        self._objects = Objects(options)
        if exists(self.address / last, self._objects):
            _refuse_finished(self.address)
        name = hashlib.sha256(str(self.address).encode()).hexdigest()[:32]
        super().__init__(Path(os.path.abspath(default_cache_dir()), "uploads", name))
        self._notes = self.target.with_name(f"{name}.json")

    def commit(self) -> None:
        """Upload the staged files, and remove them here.

        Raises:
            OutputError: they cannot be uploaded; they stay, and the same run goes on with what is missing.
        """
        try:
            self._upload()
        except ShardError as error:
            remedy = f"{error.remedy}; what was made is kept, and the same run goes on from there"
            raise OutputError(error.problem, file=error.file, remedy=remedy) from error
        self.discard()
        with contextlib.suppress(OSError):
            self._notes.unlink()

    def _upload(self) -> None:
        notes = self._read_notes()
        lock = self.address / LOCK_NAME
        self._lock_remotely(lock, notes)
        files = sorted(entry.path for entry in os.scandir(self.path) if entry.is_file())
        for file in map(Path, files):
            if file.suffix != ".json" and not self._is_uploaded(file, notes):
                version = self._objects.put(self.address / file.name, file)
                notes["uploaded"][file.name] = [version, file_sha256(file)]
                self._write_notes(notes)
        try:
            self._objects.put(self.address / self._last, (self.path / self._last).read_bytes(), create=True)
        except FileExistsError:
            _refuse_finished(self.address)
        self._objects.delete(lock)

    def _is_uploaded(self, file: Path, notes: Mapping[str, Any]) -> bool:
        """Return whether an earlier run has uploaded this very file, and it is still there."""
        tag, sha256 = notes["uploaded"].get(file.name, ("", ""))
        if not tag or sha256 != file_sha256(file):
            return False
        try:
            found = self._objects.head(self.address / file.name)
        except FileNotFoundError:
            return False
        return (found.size, found.tag) == (file.stat().st_size, tag)

    def _lock_remotely(self, lock: ObjectPath, notes: dict[str, Any]) -> None:
        about = {"host": socket.gethostname(), "pid": os.getpid(), "token": notes["token"]}
        self._write_notes(notes)
        try:
            self._objects.put(lock, json.dumps(about).encode(), create=True)
        except FileExistsError:
            found = _parsed(self._objects.read(lock)[0])
            if found.get("token") != notes["token"]:
                problem = f"another run is writing here, process {found.get('pid')} on {found.get('host')}"
                remedy = f"wait for it; if it has died, delete {LOCK_NAME} there"
                raise OutputError(problem, file=self.address, remedy=remedy) from None

    def _read_notes(self) -> dict[str, Any]:
        found = {}
        with contextlib.suppress(OSError):
            found = _parsed(self._notes.read_bytes())
        fits = isinstance(found.get("token"), str) and isinstance(found.get("uploaded"), dict)
        return found if fits else {"token": secrets.token_hex(16), "uploaded": {}}

    def _write_notes(self, notes: Mapping[str, Any]) -> None:
        write_atomic(self._notes, json.dumps(notes).encode())


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_finished(address: ObjectPath) -> None:
    remedy = "choose another prefix, or delete it first: it cannot be replaced in one step"
    raise OutputError("a finished dataset is there already", file=address, remedy=remedy) from None


def exists(path: ObjectPath, objects: Objects) -> bool:
    """Return whether there is an object.

    Raises:
        OutputError: the store does not say.
    """
    try:
        objects.head(path)
    except FileNotFoundError:
        return False
    except ShardError as error:
        raise OutputError(error.problem, file=error.file, remedy=error.remedy) from error
    return True


def staged_directory(
    target: str | os.PathLike[str], last: str, overwrite: bool = False, options: StorageOptions | None = None
) -> StagedDirectory:
    """Return a place to fill a directory that appears whole: beside it on disk, or in the cache for a URL.

    Raises:
        OutputError: as :class:`StagedDirectory` and :class:`UploadedDirectory`; or a URL is to be overwritten.
    """
    if not is_bucket_url(target):
        return StagedDirectory(target, overwrite)
    if overwrite:
        problem = "a dataset in a bucket cannot be replaced in one step: readers would see parts of both"
        raise OutputError(problem, file=target, remedy="choose another prefix, or delete it first")
    return UploadedDirectory(str(target), last, options)
