"""What is meant by a path: a dataset or a file, and its pictures.

Knows datasets and sources; knows nothing of how they are drawn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..convert.file_state import as_source_error
from ..convert.sources import Source, SourceConfig, open_source
from ..convert.sources.kinds import DIRECTORY_FORMATS, format_by_name
from ..convert.sources.nwb import RecordingSource
from ..format.shards import ShardSet, open_shards
from ..loading.dataset import OpenDataset, open_dataset
from ..loading.options import OrderOptions, ReadOptions, Shuffle
from ..loading.segments import LAYOUT
from ..loading.window_reader import WindowReader
from ..loading.windows import Windows
from .figure import Picture
from .recordings import RecordingPictures
from .samples import About, Sample, SamplePictures


@dataclass(frozen=True)
class ViewOptions:
    """What is drawn of a recording or a dataset.

    Attributes:
        seconds: length of each stretch of a recording, or of a window that is cut from segments.
        start: s, where the first stretch of a recording begins; None: where everything was measured.
        config: how a file is read.

    Raises:
        ValueError: a length that is not positive.
    """

    seconds: float | None = None
    start: float | None = None
    config: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0.001 <= self.seconds <= 1e6:
            raise ValueError(f"seconds={self.seconds}: must be from 0.001 to 1000000")


@contextmanager
def open_pictures(path: str | os.PathLike[str], options: ViewOptions | None = None) -> Iterator[Sequence[Picture]]:
    """Open a dataset, or a file that can be converted, as a sequence of pictures, each made when it is asked for.

    Args:
        path: a dataset's directory; or an NWB, npz or npy file, also the URL of one.
        options: what is drawn.

    Raises:
        SourceError: the file cannot be read.
        FileNotFoundError, ShardError: the dataset cannot be opened.

    Example:
        >>> import tempfile
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"rates": np.zeros((5, 30, 8), "float32")})
        >>> with open_pictures(out) as pictures:
        ...     len(pictures), pictures[4].title
        (5, 'sample_000000004')
    """
    path, options = os.fspath(path), options or ViewOptions()
    if format_by_name(path) or options.config.format in DIRECTORY_FORMATS:
        yield from _of_file(path, options)
    else:
        yield open_samples(path, options.seconds or 2.0).pictures


def _of_file(path: str, options: ViewOptions) -> Iterator[Sequence[Picture]]:
    try:
        source = open_source(path, options.config)
    except Exception as error:
        raise as_source_error(error, path) from error
    try:
        yield _pictures_of(source, options)
    finally:
        source.close()


def _pictures_of(source: Source, options: ViewOptions) -> Sequence[Picture]:
    if isinstance(source, RecordingSource):
        return RecordingPictures(source, options.seconds or 10.0, options.start)
    described = source.describe()

    def read(i: int) -> Sample:
        fields, metadata = next(source.read(i, i + 1))
        return {"__key__": f"sample {i}", **fields, "metadata": metadata}

    return SamplePictures(read, described.n_samples, About(described.fields))


@dataclass(frozen=True)
class OpenSamples:
    """A dataset with what is known of its samples.

    Attributes:
        path: where it is.
        shards: its shards and manifest.
        opened: what reads them; of segments, windows that are cut from them.
        about: what is known of its samples.
    """

    path: str
    shards: ShardSet
    opened: OpenDataset
    about: About

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.opened.order)

    def sample(self, i: int) -> Sample:
        """Return a sample by its place in the dataset."""
        return self.opened.reader.read_samples(np.array([i]))[0]

    @property
    def pictures(self) -> SamplePictures:
        """The pictures of the samples, in the order in which they are stored."""
        return SamplePictures(self.sample, self.n, self.about)


def open_samples(path: str | os.PathLike[str], seconds: float = 2.0, shuffle: Shuffle = False) -> OpenSamples:
    """Open a dataset; of one of segments, the samples are windows of some seconds.

    Raises:
        FileNotFoundError, ShardError: it cannot be opened.
        ManifestError: its manifest is damaged.
    """
    path = os.fspath(path)
    shards = open_shards(path)
    manifest, windows = shards.manifest, None
    if manifest is not None and manifest.config.get("layout") == LAYOUT:
        windows = Windows(length_s=seconds, bin_ms=10)
    opened = open_dataset(ReadOptions(shard_dir=path, windows=windows), OrderOptions(shuffle=shuffle))
    reader, fields = opened.reader, {} if manifest is None else manifest.modalities
    if isinstance(reader, WindowReader):
        fields = {name: about for each in reversed(reader.recordings) for name, about in each.describe_fields().items()}
    return OpenSamples(path, shards, opened, About(fields, [] if manifest is None else manifest.sources))
