"""Whether the bytes of a dataset can be read, and may be: compression filters, and other files that hold them.

Knows HDF5 datasets; knows nothing of what they hold.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from typing import Any

import h5py

#: What to do where a filter is missing.
INSTALL_FILTERS = "pip install 'neurofmx-wds[filters]'"
#: Filters that are not part of HDF5 and that hdf5plugin brings, by number.
_FILTERS = {
    307: "bzip2", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32017: "sz",
    32018: "fcidecomp", 32024: "sz3", 32026: "blosc2", 32027: "sperr", 32028: "htj2k",
}  # fmt: skip


def why_unreadable(dataset: Any) -> str:
    """Return why a dataset cannot be decompressed; "" if it can, or if it is not an HDF5 dataset.

    Filters that are missing are looked for in hdf5plugin, if it is installed.
    """
    stored = getattr(dataset, "dataset", dataset)  # pynwb wraps texts and references
    if not isinstance(stored, h5py.Dataset) or not stored.id:
        return ""
    properties = stored.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    missing = [number for number in filters if not _is_available(number)]
    if not missing:
        return ""
    names = ", ".join(_FILTERS.get(number, f"number {number}") for number in missing)
    if all(number in _FILTERS for number in missing):
        return f"it is compressed with {names}, which needs hdf5plugin: {INSTALL_FILTERS}"
    return f"it is compressed with the HDF5 filter {names}, which is not installed"


def lacks_filter(error: BaseException) -> bool:
    """Return whether HDF5 failed for want of a filter; hdf5plugin, if it is installed, has registered its own then."""
    if not re.search("can't open directory|required filter|plugin", str(error)):
        return False
    with contextlib.suppress(ImportError):
        importlib.import_module("hdf5plugin")
    return True


def why_failed(error: BaseException) -> str:
    """Return why an object cannot be read, of the error that it raised."""
    if lacks_filter(error):
        return f"it is compressed with a filter that is not installed, perhaps one of hdf5plugin: {INSTALL_FILTERS}"
    return f"it cannot be read: {type(error).__name__}: {error}"


def _is_available(number: int) -> bool:
    if h5py.h5z.filter_avail(number):
        return True
    try:
        importlib.import_module("hdf5plugin")  # registers its filters
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(number))
