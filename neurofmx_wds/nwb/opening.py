"""Open an NWB file with pynwb, or explain what is wrong with it.

Knows files and pynwb's errors; knows nothing of what a recording holds.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5py
from pynwb import NWBHDF5IO

from ..errors import SourceError
from .access import INSTALL_FILTERS, lacks_filter
from .outside import open_guarded
from .partial import read_partly

_BRING_TOGETHER = "export the recording into one file with pynwb"
_UNLOCK = "wait until it is done; where nothing writes it, set HDF5_USE_FILE_LOCKING=FALSE in the environment"


def open_nwb(
    path: str, stream: BinaryIO | None, closing: contextlib.ExitStack, make_io: Callable[[], Any] | None = None
) -> tuple[Any, Any, dict[str, SourceError]]:
    """Open an NWB file.

    Args:
        path: the file, or the address of `stream`.
        stream: the file, already open.
        closing: closes everything, in the right order.
        make_io: returns pynwb's IO of a recording that is not an HDF5 file.

    Returns:
        pynwb's IO and NWBFile, and path → error of each object that is left out because pynwb cannot read it.

    Raises:
        SourceError: it is not an NWB 2 file, or pynwb cannot read it.
    """
    if stream is not None:
        closing.enter_context(stream)
    if make_io is None:
        _check_is_nwb2(path, stream)
    outside: dict[str, str] = {}
    try:
        if make_io is not None:
            io = make_io()
        elif stream is None:
            io, outside = open_guarded(path)
        else:  # HDF5 must release a stream before Python closes it, also after an error
            file = closing.enter_context(h5py.File(stream, "r"))
            _check_is_alone(file, path)
            io = NWBHDF5IO(file=file, mode="r", load_namespaces=True)
        closing.callback(io.close)
        try:
            return io, io.read(), _refusals(outside)
        except Exception as error:
            lacks_filter(error)  # if they can be had, filters are registered before the next attempt
            if make_io is not None:  # objects in a Zarr store are refused as dangerous, not as odd
                raise
            nwb, left_out = read_partly(io)
            odd = {path: _why_left_out(path, *why) for path, why in left_out.items()}
            return io, nwb, {**odd, **_refusals(outside, odd)}
    except SourceError:
        raise
    except Exception as error:  # pynwb and hdmf raise errors of any type for odd files
        problem, remedy = _why_unreadable(error)
        if outside:
            problem, remedy = "; ".join(f"{where}: {why}" for where, why in outside.items()), _BRING_TOGETHER
        raise SourceError(problem, file=path, remedy=remedy) from error


def _refusals(outside: Mapping[str, str], left_out: Collection[str] = ()) -> dict[str, SourceError]:
    """Return errors of what is not read, by the path of the object that is left out for it, or its own."""
    errors: dict[str, SourceError] = {}
    for path, why in outside.items():
        owner = next((each for each in left_out if f"{path}/".startswith(f"{each}/")), path)
        errors[owner] = SourceError(f"{owner} left out: {why}", remedy=_BRING_TOGETHER)
    return errors


def _check_is_nwb2(path: str, stream: BinaryIO | None) -> None:
    """Raise a SourceError that says what the file is, unless it is NWB 2."""
    problem, remedy = _other_than_nwb2(path, stream)
    if problem:
        raise SourceError(problem, file=path, remedy=remedy)


def _check_is_alone(file: h5py.File, path: str) -> None:
    """Raise a SourceError if parts of an HDF5 file lie in other files."""
    others: set[str] = set()

    def look(name: str, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            others.add(link.filename)
        elif isinstance(link, h5py.HardLink) and isinstance(found := file[name], h5py.Dataset):
            others.update(each[0] for each in found.external or ())
            if found.is_virtual:
                others.update(each.file_name for each in found.virtual_sources())

    file.visititems_links(look)
    others.discard(".")  # a virtual dataset may refer to its own file
    if others:
        problem = f"parts of it are in other files, which are not looked for: {', '.join(sorted(others)[:5])}"
        remedy = "download it with these and convert the copy, or export it into one file with pynwb"
        raise SourceError(problem, file=path, remedy=remedy)


def _other_than_nwb2(path: str, stream: BinaryIO | None) -> tuple[str | None, str]:
    damaged = "it was cut short or not closed by its writer; copy or download it again"
    try:
        if stream is None and os.path.isdir(path):
            return "is a directory, not an NWB file", "name the .nwb files in it"
        with contextlib.nullcontext(stream) if stream else Path(path).open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"cannot be opened: {error.strerror or error}", "check the path and the permissions"
    if not start:
        return "is empty", damaged
    if start.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the recording itself", "run `git lfs pull` where it was checked out"
    if not (h5py.is_hdf5(path) if stream is None else _has_signature(stream)):
        return "is not an HDF5 file", "NWB 2 files are HDF5; for arrays use .npz or .npy"
    try:
        with h5py.File(stream or path, "r") as file:
            version = file.attrs.get("nwb_version")
            if version is None and isinstance(file.get("nwb_version", getlink=True), h5py.HardLink):
                stored = file["nwb_version"]
                version = None if stored.external or stored.is_virtual else stored[()]
            is_nwb = "session_start_time" in file
    except (OSError, RuntimeError, KeyError) as error:
        if isinstance(error, BlockingIOError) or "already open for" in str(error):
            return "is locked by a program that is writing it", _UNLOCK
        return f"is a damaged HDF5 file: {error}", damaged
    return _other_version_than_2(version, is_nwb)


def _has_signature(stream: BinaryIO) -> bool:
    """Return whether HDF5's signature is at 0, 512, 1024, 2048 … bytes, where it may be."""
    size = stream.seek(0, os.SEEK_END)
    for place in (0, *(512 << k for k in range(max(0, size.bit_length() - 9)))):
        stream.seek(place)
        if stream.read(8) == b"\x89HDF\r\n\x1a\n":
            return True
    return False


def _other_version_than_2(version: Any, is_nwb: bool) -> tuple[str | None, str]:
    if version is None and not is_nwb:
        return "is an HDF5 file but not NWB: it has no nwb_version", "convert it to NWB 2 with pynwb or NeuroConv first"
    text = version.decode(errors="replace") if isinstance(version, bytes) else version
    major = re.match(r"(?:NWB-)?(\d+)\.", text) if isinstance(text, str) else None
    if major is None:
        problem = "has no nwb_version attribute" if version is None else f"has a malformed nwb_version: {version!r}"
        return problem, "give its root the attribute nwb_version, a string such as '2.7.0', with h5py"
    if int(major[1]) < 2:
        return f"is NWB {text}, which is not NWB 2", "convert it to NWB 2 first"
    return None, ""


def _why_left_out(path: str, needed: str, error: Exception) -> SourceError:
    if needed:
        return SourceError(f"{path} left out: it needs {needed}", remedy=f"mend {needed}")
    problem, remedy = _why_unreadable(error)
    return SourceError(f"{path} left out: {problem}", remedy=remedy)


def _why_unreadable(error: Exception) -> tuple[str, str]:
    """Return pynwb's error in words, without its dump of the file's content, and what to do about it."""
    if lacks_filter(error):
        return "it is compressed with a filter that is not installed", f"it may be one of hdf5plugin: {INSTALL_FILTERS}"
    extension = re.search(r"'([\w-]+)' not a namespace", str(error))
    if extension:
        name = extension[1]
        return f"it uses the extension {name}, whose definition is not in it", f"install it: pip install {name}"
    message = str(error.args[-1] if error.args else error)  # hdmf's other argument is all that is stored
    problem = f"pynwb cannot read it: {type(error).__name__}: {message[-300:]}"
    return problem, "run `pynwb-validate` on it, or open it with the tool that wrote it and export it again"
