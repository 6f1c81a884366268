"""Samples → shards with their indexes and a manifest, byte-reproducible and visible only when whole.

Knows shards and the manifest; knows nothing of recordings or loading.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import FieldError, OutputError
from ..storage.atomic import StagedDirectory, warn_not_finalized
from ..storage.objects import StorageOptions
from ..storage.progress import progress_bar
from ..storage.uploading import staged_directory
from ..version import CREATED_BY
from .decoding import decode_json
from .encoding import FieldFormat, encode_json
from .index import ShardIndex
from .manifest import MANIFEST_NAME, Manifest, ShardRecord, refuse_to_replace
from .modalities import modalities_of
from .names import check_field_name
from .shard_file import ShardFile
from .shard_settings import DEFAULT_PATTERN, Compression, check_config, shard_name


def shard_record(index: ShardIndex) -> ShardRecord:
    """Return the manifest's entry of a shard."""
    return ShardRecord(index.shard_name, index.n_samples, index.file_size, index.sha256)


class WebDatasetWriter:
    """Writes samples to WebDataset shards, one after another.

    Nothing appears in `output_dir` before :meth:`finalize`; then everything does at once. Used as a context manager,
    it finalizes at the end of the block, and leaves no trace if the block fails.

    Args:
        output_dir: directory of the dataset; created. It must be new or empty unless `overwrite` is set.
        shard_size: samples per shard.
        shard_name_pattern: file name of a shard, with ``{shard_idx}``.
        compression: ``"none"``, ``"gz"``, ``"bz2"`` or ``"xz"``, of the whole tar; the extension is added to the name.
        field_format: ``"npy"``; ``"npy.gz"``, each array compressed by itself; or ``"pyd"`` for pickled arrays as older
            NeuroFMX shards hold them.
        modalities: further entries of the fields in the manifest, beside dtype and shape, such as
            ``{"spikes": {"unit": "count"}}``.
        overwrite: replace an existing dataset, in one step, when this one is finished.
        storage_options: of a bucket, where `output_dir` is ``s3://…``, ``gs://…`` or ``az://…``, see
            :class:`~neurofmx_wds.WebDatasetLoader`. Shards are made in the cache directory and uploaded at the end.

    Raises:
        OutputError: `output_dir` is not empty (or holds more than a dataset, if it is to be overwritten), is a file,
            holds the current directory, or is being written by another run.
        ValueError: a bad `shard_size`, pattern, compression or field format.

    Example:
        >>> import numpy as np, tempfile
        >>> out = tempfile.mkdtemp() + "/shards"
        >>> with WebDatasetWriter(out, shard_size=2) as writer:
        ...     for i in range(3):
        ...         key = writer.write_sample({"spikes": np.zeros((100, 96), "float32")}, metadata={"trial": i})
        >>> writer.summary["total_shards"], key
        (2, 'sample_000000002')
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        shard_size: int = 1000,
        shard_name_pattern: str = DEFAULT_PATTERN,
        compression: Compression = "none",
        field_format: FieldFormat = "npy",
        modalities: Mapping[str, Mapping[str, Any]] | None = None,
        overwrite: bool = False,
        storage_options: StorageOptions | None = None,
    ) -> None:
        self.config = check_config(shard_size, shard_name_pattern, compression, field_format)
        self.shard_size = shard_size
        self.compression: Compression = compression
        self.field_format: FieldFormat = field_format
        self.pattern = shard_name_pattern
        self.total_samples = 0
        self.summary: dict[str, Any] = {}
        self._described = decode_json(encode_json(modalities or {}, "modalities"))
        self._indexes: list[Future[ShardIndex]] = []
        self._shard: ShardFile | None = None
        self._closer = ThreadPoolExecutor(1, "neurofmx_wds fsync")  # a shard reaches the disk while the next is made
        if overwrite:
            refuse_to_replace(output_dir)
        self._staged = staged_directory(output_dir, MANIFEST_NAME, overwrite, storage_options)
        self._staged.clear()
        self._pid = os.getpid()
        self._forget = weakref.finalize(self, _forgotten, self._staged, self._closer, self._pid)

    def write_sample(
        self,
        sample: Mapping[str, Any],
        sample_id: int | str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Write one sample.

        Args:
            sample: field → array, tensor, number, str, bytes, dict or list. ``__key__`` and ``metadata`` may be in it.
            sample_id: a number i (key ``sample_00000000i``) or a whole key; by default the running number. A key is
                refused where its shard has it already; over all shards ``verify(deep=True)`` looks for repeated ones.
            metadata: what is known of the sample; stored as its ``metadata.json``, over any in `sample`.

        Returns:
            The sample's key.

        Raises:
            FieldError: a key, field name or value cannot be stored, or `sample` is no dictionary; nothing of it is.
            OutputError: the writer is finished, or the disk is full: then nothing is kept.
        """
        if not self._forget.alive:
            raise OutputError("the writer is finished", file=self._staged.target, remedy="make a new one")
        _check_named(sample, "a sample")
        if sample_id is None:
            sample_id = sample.get("__key__", self.total_samples)
        if isinstance(sample_id, (int, np.integer)):
            sample_id = f"sample_{sample_id:09d}"
        about = {**_metadata(sample.get("metadata"), sample_id), **_metadata(metadata, sample_id)}
        try:
            if self._shard is None:
                name = shard_name(self.pattern, len(self._indexes), self.compression)
                self._shard = ShardFile(self._staged.path, name, self.compression, self.field_format)
            self._shard.write({**sample, "metadata": about, "__key__": sample_id})
            self.total_samples += 1
            if self._shard.n_samples >= self.shard_size:
                self._close_shard()
        except OSError as error:
            raise self._give_up(error) from error
        return str(sample_id)

    def write_batch(
        self,
        samples: Sequence[Mapping[str, Any]],
        sample_ids: Sequence[int | str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        show_progress: bool = True,
    ) -> list[str]:
        """Write several samples.

        Args:
            samples: the samples, as for :meth:`write_sample`.
            sample_ids: one id for each.
            metadata: one dictionary for each, or one for all.
            show_progress: show a progress bar, on a terminal.

        Returns:
            The samples' keys.

        Raises:
            FieldError: as :meth:`write_sample`; or the lengths differ.
        """
        count = len(samples)
        about = [metadata] * count if metadata is None or isinstance(metadata, Mapping) else list(metadata)
        ids: Sequence[int | str | None] = [None] * count if sample_ids is None else list(sample_ids)
        for name, given in (("sample_ids", ids), ("metadata", about)):
            if len(given) != count:
                raise FieldError(f"{len(given)} {name} for {count} samples", remedy="give one for each")
        rows = zip(samples, ids, about, strict=True)
        bar = progress_bar(rows, count, "sample", show_progress)
        return [self.write_sample(sample, sample_id, info) for sample, sample_id, info in bar]

    def finalize(self) -> dict[str, Any]:
        """Finish the last shard, write the manifest and put the dataset in its place.

        Returns:
            The manifest: total_samples, total_shards, shard_size, compression, modalities, shards, …

        Raises:
            OutputError: the place cannot be taken, the disk is full, or the writer was given up before.
        """
        if self.summary:
            return self.summary
        if not self._forget.alive:
            raise OutputError("the writer has given up", file=self._staged.target, remedy="make a new one")
        try:
            if self._shard is not None:
                self._close_shard()
            indexes = [closing.result() for closing in self._indexes]
        except OSError as error:
            raise self._give_up(error) from error
        self._closer.shutdown()
        modalities = modalities_of(indexes)
        for name, about in self._described.items():
            modalities.setdefault(name, {}).update(about)
        manifest = Manifest(
            shard_size=self.shard_size,
            compression=self.compression,
            modalities=modalities,
            shards=[shard_record(index) for index in indexes],
            config=self.config,
            created_by=CREATED_BY,
        )
        try:
            manifest.save(self._staged.path)
        except OSError as error:
            raise self._give_up(error) from error
        self._staged.commit()
        self._forget.detach()
        self.summary = manifest.summary()
        return self.summary

    def abort(self) -> None:
        """Give up: remove everything written so far; an old dataset stays. In a forked child nothing happens."""
        if os.getpid() != self._pid:
            return
        if self._shard is not None:
            self._shard.abort()
        if self._forget.detach():
            _discard(self._staged, self._closer, self._pid)

    def _give_up(self, error: OSError) -> OutputError:
        self.abort()
        if isinstance(error, OutputError):
            return error
        problem = f"cannot be written: {error.strerror or error}; nothing was kept"
        return OutputError(problem, file=self._staged.target, remedy="free space, or choose another place")

    def _close_shard(self) -> None:
        assert self._shard is not None
        if not self._shard.n_samples:  # every sample for it was refused
            self._shard.abort()
            return
        if self._indexes:
            self._indexes[-1].result()  # raises what went wrong with it
        self._indexes.append(self._closer.submit(self._shard.close))
        self._shard = None

    def __enter__(self) -> WebDatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        else:
            self.abort()


def _forgotten(staged: StagedDirectory, closer: ThreadPoolExecutor, pid: int) -> None:
    if os.getpid() == pid and staged.path.is_dir() and any(staged.path.iterdir()):
        warn_not_finalized(staged.target)
    _discard(staged, closer, pid)


def _discard(staged: StagedDirectory, closer: ThreadPoolExecutor, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not clean up its parent's work, and has none of its threads
        closer.shutdown()
        staged.discard()


def _check_named(given: object, what: str) -> None:
    if not isinstance(given, Mapping):
        problem = f"{what} must be a dictionary of fields, name → array, not a {type(given).__name__}"
        raise FieldError(problem, remedy='give the array a name: {"spikes": array}')


def _metadata(given: object, sample_id: object) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        problem = f"metadata must be a dictionary, not a {type(given).__name__}"
        raise FieldError(problem, sample=str(sample_id), member="metadata", remedy="give it a field name of its own")
    return given or {}


def create_shards_from_arrays(
    output_dir: str | os.PathLike[str],
    data_dict: Mapping[str, Any],
    shard_size: int = 1000,
    metadata: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    compression: Compression = "none",
    **writer_options: Any,
) -> dict[str, Any]:
    """Write arrays whose first dimension counts samples as a dataset.

    Args:
        output_dir: directory of the dataset; new or empty unless ``overwrite=True``.
        data_dict: field → array or tensor of shape (n_samples, …).
        shard_size: samples per shard.
        metadata: one dictionary for each sample, or one for all.
        compression: as :class:`WebDatasetWriter`.
        **writer_options: other arguments of :class:`WebDatasetWriter`.

    Returns:
        The dataset's manifest, see :meth:`WebDatasetWriter.finalize`.

    Raises:
        FieldError: the arrays differ in length, or something in them cannot be stored, or they have no names.
        OutputError: as :class:`WebDatasetWriter`.

    Example:
        >>> import numpy as np, tempfile
        >>> arrays = {"spikes": np.ones((5, 100, 96), "uint8"), "label": np.arange(5)}
        >>> create_shards_from_arrays(tempfile.mkdtemp(), arrays, shard_size=2)["total_shards"]
        3
    """
    _check_named(data_dict, "the data")
    for name in data_dict:
        check_field_name(name)
    lengths = {name: len(array) if np.ndim(array) else None for name, array in data_dict.items()}
    if not lengths or None in lengths.values() or len(set(lengths.values())) != 1:
        raise FieldError(
            f"the arrays must have the same first dimension, the samples; these have {lengths}",
            remedy="cut or stack them to one length",
        )
    count = next(iter(lengths.values())) or 0
    about = [metadata] * count if metadata is None or isinstance(metadata, Mapping) else list(metadata)
    if len(about) != count:
        raise FieldError(f"{len(about)} metadata for {count} samples", remedy="give one for each, or one for all")
    with WebDatasetWriter(output_dir, shard_size, compression=compression, **writer_options) as writer:
        for i in range(count):
            writer.write_sample({name: array[i] for name, array in data_dict.items()}, metadata=about[i])
    return writer.summary
