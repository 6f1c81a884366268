"""The conversion as one object that files are handed to, one after the other.

A thin layer over plan and run; knows nothing else.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import OutputError, SourceError, refuse_unknown
from ..format.encoding import FieldFormat
from ..format.shard_file import Compression
from ..format.writer import DEFAULT_PATTERN
from ..storage.atomic import warn_not_finalized
from ..storage.location import Given, on_disk
from .place import refuse_inside, staging
from .plan import DEFAULT_KEY_PREFIX, ConversionPlan, PlannedSource, beside, report_of
from .run import look_at, working, write_plan
from .sources import SourceConfig


class NWBToWebDatasetConverter:
    """Turns NWB recordings (and .npz/.npy arrays) into one dataset of shards.

    Handing a file over looks at it: its windows are counted and everything that is wrong with it is said. The windows
    are read and written by :meth:`finalize`, all files together, and the dataset appears then, in one step. Used as a
    context manager, it finalizes at the end of the block; if the block fails, nothing appears.

    Args:
        output_dir: the dataset's directory; new or empty unless `overwrite` is set.
        shard_size: samples (windows) per shard.
        modalities: which to convert, of ``spikes``, ``behavior``, ``lfp``, ``ophys``, ``events``, ``video`` and paths
            of series in the file, such as ``acquisition/photodiode``; the first decides where windows can be. Or
            ``icephys`` alone; or an npz's arrays. None: all that a file has, but ``video``.
        bin_size_ms: bin width in ms.
        sequence_length: bins in a window.
        overlap: shared part of neighbouring windows, in [0, 1).
        compression: ``"none"``, ``"gz"``, ``"bz2"`` or ``"xz"``, of the whole tar.
        overwrite: replace an existing dataset, in one step, when this one is finished.
        workers: processes to work with; the result does not depend on them.
        executor: any :class:`concurrent.futures.Executor` to use instead.
        show_progress: show bars, on a terminal.
        shard_name_pattern: file name of a shard, with ``{shard_idx}``.
        field_format: how arrays are stored, ``"npy"`` or ``"pyd"``.
        key_prefix: what the samples' keys begin with; their number follows.
        **options: the other settings of :class:`~neurofmx_wds.convert.sources.SourceConfig`, such as ``spike_dtype``.

    Raises:
        OutputError: `output_dir` is not empty, is a file, or is being written by another run.
        TypeError: a setting that there is none of, with the name most like it.
        ValueError: an impossible setting, named.

    Example:
        >>> with NWBToWebDatasetConverter("shards", bin_size_ms=20) as converter:  # doctest: +SKIP
        ...     report = converter.convert_nwb_file("session.nwb")
        >>> report["windows"], converter.summary["total_shards"]  # doctest: +SKIP
        ({'emitted': 1185, 'dropped': {}}, 2)
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        shard_size: int = 1000,
        modalities: str | Sequence[str] | None = None,
        bin_size_ms: float | str | Fraction = 10.0,
        sequence_length: int = 100,
        overlap: float = 0.5,
        compression: Compression = "none",
        overwrite: bool = False,
        workers: int = 1,
        executor: Executor | None = None,
        show_progress: bool = False,
        shard_name_pattern: str = DEFAULT_PATTERN,
        field_format: FieldFormat = "npy",
        key_prefix: str = DEFAULT_KEY_PREFIX,
        **options: Any,
    ) -> None:
        known = {*inspect.signature(type(self)).parameters, *(each.name for each in fields(SourceConfig))}
        refuse_unknown(type(self).__name__, options, known)
        options |= {"modalities": modalities, "bin_size_ms": bin_size_ms}
        config = SourceConfig(sequence_length=sequence_length, overlap=overlap, **options)
        self.output_dir = Path(output_dir)
        self.summary: dict[str, Any] = {}
        self._plan = ConversionPlan((), config, shard_size, shard_name_pattern, compression, field_format, key_prefix)
        self._show_progress = show_progress
        self._done = False
        self._open = contextlib.ExitStack()
        self._staged = self._open.enter_context(staging(output_dir, overwrite))
        self._apply = self._open.enter_context(working(workers, executor))
        self._open.callback(weakref.finalize(self, warn_not_finalized, self.output_dir).detach)

    def convert_nwb_file(self, path: Given) -> dict[str, Any]:
        """Take a recording into the dataset.

        Args:
            path: a path, a URL (``https://…``, ``s3://…``: read by range, extra ``cloud``), or an open binary file,
                which is copied to a temporary one for as long as the converter lasts and may be closed then.

        Returns:
            What is known of it: ``windows`` emitted and dropped (by reason), ``spikes`` (total, binned, outside,
            invalid), ``segments``, ``units``, ``series``, ``warnings`` and so on.

        Raises:
            SourceError: it cannot be read, or lacks a modality; it is left out.
            OutputError: the dataset is finished.
        """
        [entry] = self._look_at([path])
        if isinstance(entry, SourceError):
            raise entry
        self._plan = replace(self._plan, entries=(*self._plan.entries, entry))
        return report_of(entry)

    def convert_nwb_files(self, paths: Sequence[Given]) -> list[dict[str, Any]]:
        """Take several recordings into the dataset.

        Returns:
            A report for each, as :meth:`convert_nwb_file`; of one that cannot be read ``{"path", "error", "remedy"}``.

        Raises:
            OutputError: the dataset is finished.
        """
        entries = self._look_at(paths)
        self._plan = replace(self._plan, entries=(*self._plan.entries, *entries))
        return [report_of(entry) for entry in entries]

    def _look_at(self, paths: Sequence[Given]) -> tuple[PlannedSource | SourceError, ...]:
        if self._done:
            raise OutputError("the dataset is finished", file=self.output_dir, remedy="make a new converter")
        names = self._open.enter_context(on_disk(paths))
        refuse_inside(names, self._staged.target)
        seen = look_at(names, self._plan.config, self._apply, self._show_progress)
        return beside((*self._plan.entries, *seen), self._plan.config)[len(self._plan.entries) :]

    def finalize(self) -> dict[str, Any]:
        """Read and write all windows, and put the dataset in its place.

        Returns:
            The dataset's manifest: total_samples, total_shards, modalities, sources, …; a source that turned out to be
            unreadable has an ``error`` there.

        Raises:
            SourceError: there are no windows to write.
            OutputError: the output cannot be written; started again, the same conversion uses the finished shards.
        """
        if not self._done:
            self._done = True
            with self._open:
                self.summary = write_plan(self._plan, self._staged, self._apply, self._show_progress).summary
        return self.summary

    def close(self) -> None:
        """Let go of the output; without :meth:`finalize` before, no dataset appears."""
        self._done = True
        self._open.close()

    def __enter__(self) -> NWBToWebDatasetConverter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        self.close()
