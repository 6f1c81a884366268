"""One shard made of its plan, whole or not at all.

Knows sources and shard files; knows nothing of other shards.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import FieldError, OutputError, SourceError
from ..format.index import index_path
from ..format.shard_file import ShardFile
from ..format.statistics import Collector, Moments
from ..storage.atomic import fsync_path, write_atomic
from .file_state import FileState, as_source_error, what_went_wrong
from .plan import Piece, ShardPlan
from .sources import Source, SourceConfig

MADE = "made"  # in it, for each shard by name: the digest of what it was made of
STATISTICS = "statistics"  # in it, for each shard by name: what was counted of its samples
MAKING = ".making-"  # begins the name of the directory in which a worker makes a shard


class _OpenSource(threading.local):
    """The source that this thread read last, kept open for the next shard."""

    key: tuple[FileState, SourceConfig] | None = None
    source: Source | None = None

    def get(self, file: FileState, config: SourceConfig) -> Source:
        if self.source is None or self.key != (file, config):
            self.close()
            self.source, self.key = file.open(config), (file, config)
        return self.source

    def close(self) -> None:
        source, self.source = self.source, None
        if source is not None:
            source.close()


_opened = _OpenSource()


def close_source() -> None:
    """Close the source that this thread keeps open."""
    _opened.close()


def read_piece(piece: Piece) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the samples of a piece; whatever goes wrong is raised as the source's error."""
    try:
        yield from _opened.get(piece.file, piece.config).read(piece.start, piece.stop)
        piece.file.check()
        if not gc.isenabled():
            gc.collect(1)  # of what is new; of all it takes long
    except Exception as error:
        _opened.close()
        raise what_went_wrong(error, piece.file) from error


def write_shard(directory: Path, shard: ShardPlan) -> str:
    """Make one shard and its index in `directory`.

    It may be made twice at the same time, as when a cluster gives a silent worker's work to another one.

    Returns:
        Its file name.

    Raises:
        SourceError: one of its sources cannot be read, or gives what no shard can hold.
        OutputError: it cannot be written.
    """
    try:
        _begin(directory, shard)
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=directory) as aside:
            found = _fill(ShardFile(aside, shard.name, shard.compression, shard.field_format), shard)
            (directory / STATISTICS).mkdir(exist_ok=True)
            write_atomic(directory / STATISTICS / shard.name, json.dumps(found).encode())
            for name in files_of(shard.name):
                os.replace(Path(aside, name), directory / name)
        fsync_path(directory)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        problem = f"cannot be written: {error.strerror or error}"
        raise OutputError(problem, file=directory / shard.name, remedy="free space, or choose another place") from error
    return shard.name


def files_of(shard: str) -> tuple[str, str]:
    """Names of a shard's files, in the order in which they may appear: a shard that is there has its index."""
    return index_path(shard).name, shard


def _begin(directory: Path, shard: ShardPlan) -> None:
    """Note what the shard is made of, before it is; what stands there under its name may be made of something else."""
    note = directory / MADE / shard.name
    if read_note(note) == shard.digest():
        return
    with contextlib.suppress(FileNotFoundError):
        (directory / shard.name).unlink()
        fsync_path(directory)
    note.parent.mkdir(exist_ok=True)
    write_atomic(note, shard.digest().encode())


def _fill(file: ShardFile, shard: ShardPlan) -> list[dict[str, Any]]:
    """Write a shard; return the statistics of each of its pieces, without rounding."""
    counted: list[dict[str, Any]] = []
    try:
        for piece in shard.pieces:
            collector = Collector()
            for sample, metadata in read_piece(piece):
                collector.add(sample)
                key = f"{shard.key_prefix}{shard.first + file.n_samples:09d}"
                try:
                    file.write({"__key__": key, **sample, "metadata": metadata})
                except FieldError as error:
                    raise as_source_error(error, piece.file.path) from error
            counted.append({name: each and each.to_parts() for name, each in collector.finish().items()})
        if file.n_samples != shard.n_samples:
            problem = f"gave {file.n_samples} samples for {shard.name}, not {shard.n_samples}"
            raise SourceError(problem, file=shard.pieces[-1].file.path, remedy="was it changed meanwhile?")
        file.close()
        return counted
    except BaseException:
        file.abort()
        raise


def read_statistics(directory: Path, shard: ShardPlan) -> list[dict[str, Moments | None]] | None:
    """Return what was counted of each piece of a shard when it was made; None where that is not noted."""
    try:
        noted = json.loads((directory / STATISTICS / shard.name).read_bytes())
        return [{name: parts and Moments.from_parts(parts) for name, parts in piece.items()} for piece in noted]
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def read_note(path: Path) -> str | None:
    """Return what was noted in a file, None where there is none."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None
