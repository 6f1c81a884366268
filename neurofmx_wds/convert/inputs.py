"""Which files are meant by the paths, patterns, directories and URLs that were given."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import SourceError
from ..storage.location import expand, is_url, is_zarr
from ..storage.regular import read_regular
from .sources.kinds import DIRECTORY_FORMATS, FILE_FORMATS, format_of

#: Bytes of a list of inputs.
_MOST_LISTED = 1 << 28


def find_inputs(given: Sequence[str], kind: str) -> list[str]:
    """Return the files, in the order given, each once.

    Args:
        given: paths, patterns, directories to search, URLs. What is not there stays, to be reported with the others.
        kind: one of `FORMATS`; of a kind that is a directory, the directories themselves are meant.
    """
    files: dict[str, str] = {}
    for path in (path for pattern in given for path in _expand(pattern, kind)):
        files.setdefault(path if is_url(path) else os.path.realpath(path), path)
    return list(files.values())


def listed(given: Sequence[str], text: str = "") -> list[str]:
    r"""Return the inputs that were given, with ``@FILE`` replaced by the lines of a file, and ``-`` by a text's.

    Blank lines and those that begin with # are left out. Lines may also be separated by NUL.

    Args:
        given: paths, patterns, directories, URLs, lists.
        text: what ``-`` stands for.

    Raises:
        SourceError: a list cannot be read, or names nothing.

    Example:
        >>> listed(["a.nwb", "-"], "# mine\nb.nwb\n")
        ['a.nwb', 'b.nwb']
    """
    found: list[str] = []
    for each in given:
        if each == "-":
            found += _names_in(text, "the standard input")
        elif each.startswith("@") and not os.path.exists(each):
            try:
                names = os.fsdecode(read_regular(each[1:], _MOST_LISTED, SourceError))
            except OSError as error:
                problem = f"the list of inputs cannot be read: {error.strerror or error}"
                raise SourceError(problem, file=each[1:], remedy="check the path and the permissions") from error
            found += _names_in(names, each[1:])
        else:
            found.append(each)
    return found


def _names_in(text: str, file: str) -> list[str]:
    lines = text.split("\0" if "\0" in text else "\n")
    names = [line.rstrip("\r") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise SourceError("lists no inputs", file=file, remedy="write one path, pattern or URL a line")
    return names


def _expand(given: str, kind: str) -> Iterator[str]:
    suffixes = [f".{suffix}" for suffix in (FILE_FORMATS if kind == "auto" else [kind])]
    if is_url(given):
        yield from expand(given, suffixes)
        return
    for path in sorted(glob.glob(given, recursive=True)) or [given]:
        if os.path.isdir(path) and kind not in DIRECTORY_FORMATS and not is_zarr(path):
            yield from sorted(_inside(path, suffixes)) or [path]
        else:
            yield path


def _inside(directory: str, suffixes: Sequence[str]) -> Iterator[str]:
    """Find the files below a directory, and the Zarr stores, which count as one file each."""
    for folder, folders, files in os.walk(directory):
        stores = [name for name in folders if ".nwb" in suffixes and is_zarr(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in stores]
        yield from (os.path.join(folder, name) for name in stores)
        found = (os.path.join(folder, name) for name in files if Path(name).suffix.lower() in suffixes)
        yield from filter(os.path.isfile, found)


def kinds_of(files: Sequence[str], kind: str) -> set[str] | None:
    """Return the kinds of these files; None if that of one cannot be told: it may be any.

    Args:
        files: the files.
        kind: one of `FORMATS`, which they have been said to be.
    """
    if kind != "auto":
        return {kind}
    try:
        return {format_of(path) for path in files}
    except SourceError:
        return None
