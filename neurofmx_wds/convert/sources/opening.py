"""A file, directory or URL opened as a source of samples, by its kind; each kind is imported on use."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from ...errors import SourceError
from ...storage.location import is_url, is_zarr, open_binary
from .config import SourceConfig
from .contract import Source
from .kinds import format_of
from .listing import list_files
from .windows import WindowConfig

if TYPE_CHECKING:
    from ...nwb.recording import Recording
    from .nwb import RecordingSource
    from .sweeps import SweepSource


def open_source(path: str | os.PathLike[str], config: SourceConfig) -> Source:
    """Open a file, a directory, or a URL as a source of samples.

    Raises:
        SourceError: it is missing, damaged, or of an unknown kind.
    """
    path = os.fspath(path)
    if is_zarr(path):
        return _open_zarr(path, config)
    kind = format_of(path) if config.format == "auto" else config.format
    if kind == "files":
        from .files import FilesSource

        return FilesSource(path, config.files)
    if kind == "nwb":
        from ...nwb.recording import Recording

        stream = open_binary(path) if is_url(path) else None
        return _of_recording(Recording(path, config.windows.reading, stream), config.windows)
    if kind in ("npz", "npy"):
        return _open_arrays(path, config)
    from .images import open_images

    return open_images(path, kind, config.images)


def _open_arrays(path: str, config: SourceConfig) -> Source:
    from .arrays import ArraySource
    from .time_major import open_along_time

    kind = None if config.format == "auto" else config.format
    if config.arrays.along_time:
        return open_along_time(path, config.arrays, config.windows, kind)
    return ArraySource(path, config.arrays, kind)


def _of_recording(recording: Recording, config: WindowConfig) -> SweepSource | RecordingSource:
    from .nwb import RecordingSource
    from .segments import SegmentSource
    from .sweeps import SweepSource

    nothing_else = not (config.modalities or recording.modalities)
    if (nothing_else or config.modalities == ("icephys",)) and recording.sweeps:
        if config.layout == "segments":
            recording.close()
            problem = "its sweeps (icephys) have clocks of their own, and no segments"
            raise SourceError(problem, file=recording.path, remedy="convert it with layout windows")
        return SweepSource(recording, config)
    return SegmentSource(recording, config) if config.layout == "segments" else RecordingSource(recording, config)


def _open_zarr(path: str, config: SourceConfig) -> Source:
    """Open an NWB file in a Zarr store; its files, as they are found now, are the source's listing."""
    if config.format not in ("auto", "nwb"):
        remedy = "of stores only NWB files are read: leave out the format"
        raise SourceError("is a Zarr store", file=path, remedy=remedy)
    try:
        from .zarr_store import open_zarr
    except ImportError as error:
        problem = f"is a Zarr store, and hdmf-zarr cannot be imported: {error}"
        raise SourceError(problem, file=path, remedy="pip install 'neurofmx-wds[zarr]'") from None
    from ...nwb.recording import Recording

    listing = list_files(path, hidden=True)
    make_io = functools.partial(open_zarr, listing)
    source = _of_recording(Recording(path, config.windows.reading, None, make_io), config.windows)
    source.listing = listing
    return source
