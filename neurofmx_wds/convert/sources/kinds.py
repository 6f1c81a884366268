"""The kinds of input that can be converted, and how one is recognised.

Knows names and first bytes of files; knows nothing of what is in them.
"""

from __future__ import annotations

import os

from ...errors import SourceError
from ...storage.location import is_zarr, name_of, open_binary

ARRAYS = ("npz", "npy")
FILE_FORMATS = ("nwb", *ARRAYS)
LABELLED = ("mnist", "cifar10", "cifar100")  # sets of images that know subsets
DIRECTORY_FORMATS = ("files", *LABELLED, "imagefolder")  # a source is a directory
FORMATS = ("auto", *FILE_FORMATS, *DIRECTORY_FORMATS)
SUBSETS = ("all", "train", "test")
TIMED = "arrays along time"  # the kind of an array whose first dimension is time

_BY_SUFFIX = {".nwb": "nwb", ".npz": "npz", ".npy": "npy"}
_BY_SIGNATURE = {b"\x89HDF\r\n\x1a\n": "nwb", b"PK\x03\x04": "npz", b"\x93NUMPY": "npy"}


def format_by_name(path: str) -> str | None:
    """Return which of `FILE_FORMATS` a file's name says that it has; None if it says nothing."""
    return "nwb" if is_zarr(path) else _BY_SUFFIX.get(os.path.splitext(name_of(path))[1].lower())


def format_of(path: str) -> str:
    """Return which of `FILE_FORMATS` a file has, by its name or else its first bytes.

    Raises:
        SourceError: it cannot be read, or has none.
    """
    known = format_by_name(path)
    if known:
        return known
    try:
        with open_binary(path) as file:
            start = file.read(8)
    except OSError as error:
        raise SourceError(
            f"cannot be opened: {error.strerror or error}", file=path, remedy="check the path and the permissions"
        ) from error
    for signature, kind in _BY_SIGNATURE.items():
        if start.startswith(signature):
            return kind
    raise SourceError(
        "neither its name nor its first bytes are those of an NWB, NPZ or NPY file",
        file=path,
        remedy=f"name its format (--format {', '.join(FILE_FORMATS)}), or convert it to one of these; for other "
        "files that belong together give their directory and --format files",
    )
