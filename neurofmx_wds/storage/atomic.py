"""Files and directories that appear whole or not at all: write aside, fsync, rename.

Knows nothing of tars or samples.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import re
import shutil
import stat
from pathlib import Path

from ..errors import OVERWRITE, OutputError

logger = logging.getLogger("neurofmx_wds")
ASIDE_SUFFIX = ".part"


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Ask the kernel to put a file's or directory's content on the disk before returning."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old content or the new, whatever happens in between.

    Several processes may do so at once: each waits for the others. A file that a killed process left beside it is
    overwritten by the next.

    Raises:
        OSError: the directory cannot be written or the disk is full; the old content stays.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}{ASIDE_SUFFIX}")
    with os.fdopen(_open_alone(aside), "wb") as stream:
        try:
            stream.truncate()
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
    fsync_path(path.parent)


def _open_alone(path: Path) -> int:
    """Open a file that no other process has opened by this function; create it if necessary.

    A link or pipe of that name is removed: writing through it would overwrite another file.
    """
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a pipe
                raise
            path.unlink(missing_ok=True)
            continue
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        about = os.fstat(fd)
        if about.st_nlink > 1 or not stat.S_ISREG(about.st_mode):
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(about, os.stat(path)):
                return fd
        os.close(fd)  # the process that had it has renamed or removed it


def refuse_url(output: str | os.PathLike[str]) -> None:
    """Reject a URL as a place to write to: as a path, it would be a directory named after the scheme.

    Raises:
        OutputError: the place is a URL.
    """
    if re.match(r"[A-Za-z][\w+.:-]*:/", os.fspath(output)):  # one slash: a URL that has gone through pathlib
        remedy = "write to a local directory, and copy the finished dataset to the URL"
        raise OutputError("a URL cannot be written to", file=output, remedy=remedy)


class StagedDirectory:
    """A directory that is filled beside its final place and put there in one rename.

    The staging directory is ``.<name>.partial`` beside `target` and holds a lock for as long as this object lives,
    so two runs never write into one output. The kernel releases the lock when the process ends.

    Args:
        target: path of the finished directory.
        overwrite: whether an existing, non-empty `target` may be replaced.

    Raises:
        OutputError: `target` is a URL or a file, is not empty and `overwrite` is false, is being written by another
            run, or cannot be replaced because it is a mount point or holds the current directory.
    """

    _lock_kind = fcntl.LOCK_EX
    _other = "another run"

    def __init__(self, target: str | os.PathLike[str], overwrite: bool = False) -> None:
        refuse_url(target)
        self.target = Path(os.path.realpath(target))  # a rename would replace a symbolic link, not what it names
        self.overwrite = overwrite
        self._check_target()  # now it has a parent and a name, unlike the root
        self.path = self.target.with_name(f".{self.target.name}.partial")
        self._pid = os.getpid()
        self._lock = self._create_and_lock()
        try:
            self._restore_or_remove_old()
            self._check_target()  # another run may have finished meanwhile
        except OutputError:
            self.discard()
            raise

    def _check_target(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # the current directory may have been removed
            if self.target in (here := Path.cwd(), *here.parents):
                raise OutputError(
                    "the output directory is the current directory, or contains it, and would be replaced as a whole",
                    file=self.target,
                    remedy="choose a directory inside it",
                )
        if self.target.exists() and not self.target.is_dir():
            raise OutputError("the output directory is a file", file=self.target, remedy="choose another name")
        if os.path.ismount(self.target):
            raise OutputError(
                "the output directory is a mount point and cannot be replaced in one step",
                file=self.target,
                remedy="choose a directory inside it",
            )
        if not self.overwrite and self.target.is_dir() and any(self.target.iterdir()):
            raise OutputError(
                "the output directory is not empty",
                file=self.target,
                remedy=f"choose another directory, or, if it holds only a dataset, {OVERWRITE}",
            )

    def _create_and_lock(self) -> int:
        attempt = 0
        while True:
            attempt += 1
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                if isinstance(error, (FileNotFoundError, FileExistsError)) and attempt < 100:
                    continue  # the run that owned it has just finished
                raise OutputError(
                    f"cannot create the output: {error.strerror}", file=self.path, remedy="choose a writable directory"
                ) from error
            self._take(fd)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return fd
            os.close(fd)  # the locked directory has just been renamed: start again

    def _take(self, fd: int) -> None:
        try:
            fcntl.flock(fd, self._lock_kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                problem, remedy = f"{self._other} is writing this output", "wait for it, or stop it"
            else:
                problem, remedy = f"the output cannot be locked: {error.strerror}", "choose another file system"
            raise OutputError(problem, file=self.target, remedy=remedy) from error

    def _restore_or_remove_old(self) -> None:
        """Clean up after a run that was killed between the two renames of a file system that cannot exchange."""
        old = _old_name(self.target)
        if old.is_dir() and self.target.exists():
            shutil.rmtree(old)
        elif old.is_dir():
            os.rename(old, self.target)

    def clear(self) -> None:
        """Remove the files that an unfinished run left in the staging directory."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def commit(self) -> None:
        """Write the staged files to the disk and move them to the target.

        Raises:
            OutputError: the target cannot be replaced; the staged files stay, and the old directory too.
        """
        try:
            for entry in os.scandir(self.path):
                fsync_path(entry)
            fsync_path(self.path)
            if not (self.target.is_dir() and any(self.target.iterdir())):
                os.rename(self.path, self.target)
            else:
                self._replace()
        except OSError as error:
            raise OutputError(
                f"cannot move the finished files to the output: {error.strerror}",
                file=self.target,
                remedy="see the cause",
            ) from error
        fsync_path(self.target.parent)
        self.release()

    def _replace(self) -> None:
        old = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        self._take(old)  # the next run must not use the old directory while it is removed
        try:
            _exchange(self.path, self.target)
            shutil.rmtree(self.path)  # now the old dataset
        finally:
            os.close(old)

    def discard(self) -> None:
        """Remove the staged files and release the lock; the target stays as it is. In a forked child, do nothing."""
        if os.getpid() != self._pid:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Release the lock and leave the staged files for a later run."""
        if self._lock >= 0:
            if os.getpid() == self._pid:  # closing alone would leave the lock with forked children
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _exchange(a: Path, b: Path) -> None:
    """Swap two directories in one step where the system can, else in two renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd, rename_exchange = -100, 2
    if hasattr(libc, "renameat2"):
        if libc.renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), str(a))
    old = _old_name(b)
    os.rename(b, old)
    os.rename(a, b)
    os.rename(old, a)


def warn_not_finalized(target: Path) -> None:
    """Warn that a writer was not finalized; used where no error can be raised any more."""
    logger.warning("%s: no dataset was written, because finalize() was not called (call it, or use `with`)", target)
