"""The conversion as one object to which files are handed, one after the other.

A thin layer over look and run; knows nothing else.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import textwrap
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, SourceError, refuse_unknown
from ..format.encoding import FieldFormat
from ..format.shard_settings import Compression
from ..storage.atomic import warn_not_finalized
from ..storage.location import Given, on_disk
from .config import Output, Workers
from .look import look_at, reject_conflicts
from .options import NamedOption, Number, options_of
from .place import refuse_inside, staging
from .plan import ConversionPlan, PlannedSource, report_of
from .run import write_plan
from .sources import SourceConfig, WindowConfig
from .sources.config import MoreOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NWBToWebDatasetConverter:
    """Turns NWB recordings, and the other inputs of ``convert``, into one dataset of shards.

    Each file is looked at when it is handed over: its windows are counted and all its problems are reported. The
    windows are read and written by :meth:`finalize`, all files together, and the dataset appears then, in one step.
    Used as a context manager, it finalizes at the end of the block; if the block fails, nothing appears.

    Args:
        output_dir: the dataset's directory; new or empty unless `overwrite` is set.
        executor: any :class:`concurrent.futures.Executor` to use instead of processes.
        show_progress: show progress bars, on a terminal.
    {options}

    Raises:
        OutputError: `output_dir` is not empty, is a file, or is being written by another run.
        TypeError: an unknown setting, with the name most like it.
        ValueError: a setting is out of range; the message begins with its name.

    Example:
        >>> with NWBToWebDatasetConverter("shards", bin_size_ms=20) as converter:  # doctest: +SKIP
        ...     report = converter.convert_nwb_file("session.nwb")
        >>> report["windows"], converter.summary["total_shards"]  # doctest: +SKIP
        ({'emitted': 1185, 'dropped': {}}, 2)
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        shard_size: int = Output.shard_size,
        modalities: str | Sequence[str] | None = WindowConfig.modalities,
        bin_size_ms: Number = WindowConfig.bin_size_ms,
        sequence_length: int = WindowConfig.sequence_length,
        overlap: float = WindowConfig.overlap,
        compression: Compression = Output.compression,
        overwrite: bool = Output.overwrite,
        workers: int = Workers.workers,
        executor: Executor | None = None,
        show_progress: bool = False,
        shard_name_pattern: str = Output.shard_name_pattern,
        field_format: FieldFormat = Output.field_format,
        key_prefix: str = Output.key_prefix,
        **options: Unpack[MoreOptions],
    ) -> None:
        known = {*inspect.signature(type(self)).parameters, *(each.name for each in SourceConfig.options())}
        refuse_unknown(type(self).__name__, options, known)
        config = SourceConfig.of(
            modalities=modalities,
            bin_size_ms=bin_size_ms,
            sequence_length=sequence_length,
            overlap=overlap,
            **options,
        )
        output = Output(
            output_dir,
            overwrite,
            shard_size=shard_size,
            shard_name_pattern=shard_name_pattern,
            compression=compression,
            field_format=field_format,
            key_prefix=key_prefix,
        )
        self.output_dir = Path(output_dir)
        self.summary: dict[str, Any] = {}
        self._plan = ConversionPlan((), config, output)
        self._done = False
        self._open = contextlib.ExitStack()
        self._staged = self._open.enter_context(staging(output))
        self._work = self._open.enter_context(Workers(workers, executor, show_progress).start())
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
        seen = look_at(names, self._plan.config, self._work)
        return reject_conflicts((*self._plan.entries, *seen), self._plan.config)[len(self._plan.entries) :]

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
                self.summary = write_plan(self._plan, self._staged, self._work).summary
        return self.summary

    def close(self) -> None:
        """Release the output; without :meth:`finalize` before, no dataset appears."""
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


def _settings() -> Iterator[NamedOption]:
    yield from SourceConfig.options()
    for config in (Output, Workers):
        yield from options_of(config)


def _documented(each: NamedOption) -> str:
    default = each.unset or repr(each.default)
    lines = textwrap.wrap(f"{each.name}: {each.help} Default: {default}.", 104, initial_indent=" " * 4,
                          subsequent_indent=" " * 8)  # fmt: skip
    return "\n".join(lines)


NWBToWebDatasetConverter.__doc__ = inspect.cleandoc(NWBToWebDatasetConverter.__doc__ or "").replace(
    "{options}", "\n".join(map(_documented, _settings()))
)
