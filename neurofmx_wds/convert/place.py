"""Where a conversion's output is made, and what it must not replace.

Knows directories; knows nothing of plans.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import OVERWRITE, OutputError
from ..format.manifest import MANIFEST_NAME, refuse_to_replace
from ..storage.atomic import StagedDirectory
from ..storage.location import is_url
from ..storage.objects import is_bucket_url
from ..storage.uploading import staged_directory
from .config import Output

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class _SharedStaging(StagedDirectory):
    """A staging directory that several tasks fill at once, while no other run may hold it; none of them commits it."""

    _lock_kind = fcntl.LOCK_SH
    _other = "another run, not a task,"


class _StagingBeside(StagedDirectory):
    """A place to make files for a directory that stays; nothing commits it."""

    def _check_target(self) -> None:
        pass


def staging(output: Output, shared: bool = False) -> contextlib.AbstractContextManager[StagedDirectory]:
    """Hold the output's staging directory; when it is released, finished shards stay there for the next run.

    Args:
        output: the dataset's directory, and whether it may hold a dataset already.
        shared: let others that also share it hold it at the same time.

    Raises:
        OutputError: the place cannot be locked or written, holds a dataset that is to stay, or other files.
    """
    if output.overwrite:
        refuse_to_replace(output.directory)
    elif not is_bucket_url(output.directory) and Path(output.directory, MANIFEST_NAME).is_file():
        remedy = f"use it, append to it, choose another directory, or {OVERWRITE}"
        raise OutputError("a finished dataset is there already", file=output.directory, remedy=remedy)
    if shared:
        return _held(_SharedStaging(output.directory, output.overwrite), empty=False)
    return _held(staged_directory(output.directory, MANIFEST_NAME, output.overwrite), empty=True)


def staging_beside(dataset_dir: str | os.PathLike[str]) -> contextlib.AbstractContextManager[StagedDirectory]:
    """Hold a dataset's staging directory to add something to the dataset, which itself stays.

    Raises:
        OutputError: the place cannot be locked or written.
    """
    return _held(_StagingBeside(dataset_dir), empty=True)


@contextlib.contextmanager
def _held(staged: StagedDirectory, empty: bool) -> Iterator[StagedDirectory]:
    try:
        yield staged
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        problem = f"cannot be written: {error.strerror}"
        raise OutputError(problem, file=staged.target, remedy="free space, or choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            if empty:
                staged.path.rmdir()  # nothing was made
        staged.release()


def refuse_inside(inputs: Sequence[str | os.PathLike[str]], output_dir: str | os.PathLike[str]) -> None:
    """Refuse to replace a directory that holds one of the inputs.

    Raises:
        OutputError: it does.
    """
    target = os.path.realpath(output_dir)
    for path in inputs:
        if not is_url(os.fspath(path)) and Path(os.path.realpath(path)).is_relative_to(target):
            problem = f"holds the input {path}, which would be replaced with it"
            raise OutputError(problem, file=output_dir, remedy="choose another output directory")
