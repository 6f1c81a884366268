"""Write the index files that a directory of tars lacks.

Knows tars and indexes; knows nothing of what samples hold.
"""

from __future__ import annotations

import functools
import os
import tempfile
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from ..errors import RESTORE, ShardError
from ..storage.cache import ShardCache
from ..storage.processes import ordered_map
from .index import index_path
from .manifest import ShardRecord
from .plain import build_index
from .problems import (
    Problem,
    compare_sidecar,
    dataset_directory,
    list_shards,
    load_manifest,
    load_sidecar,
    name_of,
    wrong_size,
)


@dataclass(frozen=True)
class IndexReport:
    """The result of :func:`write_indexes`.

    Attributes:
        made: names of the index files written.
        kept: number of index files that were present and correct.
        problems: shards and index files that could not be used.
    """

    made: list[str]
    kept: int
    problems: list[Problem]


def write_indexes(
    shard_dir: str | os.PathLike[str], repair: bool = False, workers: int = 1, executor: Executor | None = None
) -> IndexReport:
    """Write the index files that a directory of tars lacks, with the shards' checksums.

    Args:
        shard_dir: a directory of shards, ours or any that webdataset reads.
        repair: also replace index files that are damaged or belong to another shard.
        workers: number of processes.
        executor: any executor to use instead.

    Returns:
        The files written, and the problems found: damaged shards raise no error.

    Raises:
        FileNotFoundError: there is no such directory.
        ShardError: it is a file, or a pattern.
    """
    directory = dataset_directory(shard_dir)
    problems: list[Problem] = []
    shards = list_shards(directory, load_manifest(directory, problems), problems)
    with ordered_map(workers, executor) as apply:
        done = list(apply(functools.partial(_write_index, directory, repair), shards))
    made = [index_path(name_of(shard)).name for shard, each in zip(shards, done, strict=True) if each is True]
    return IndexReport(made, done.count(False), problems + [each for each in done if isinstance(each, Problem)])


def _write_index(directory: Path, repair: bool, shard: str | ShardRecord) -> bool | Problem:
    """Write the index of a shard; return whether that was necessary, or the problem that prevents it."""
    record = shard if isinstance(shard, ShardRecord) else None
    path = directory / name_of(shard)
    try:
        size = path.stat().st_size
        if record is not None and size != record.n_bytes:
            return wrong_size(path, size, record)
        index, problems = load_sidecar(path)
        if index is not None:
            problems = compare_sidecar(path, size, index, record)
        if index is not None and not problems and index.sha256 and index.has_checksums:
            return False
        if problems and not repair:
            return problems[0]
        wanted = (record and record.sha256) or (index and not problems and index.sha256)
        with tempfile.TemporaryDirectory(prefix="neurofmx-index-") as cache:
            index = build_index(path, ShardCache(cache), checksum=True)
        if wanted and index.sha256 != wanted:
            return Problem("the shard's bytes have changed: its checksum differs", str(path), remedy=RESTORE)
        index.save(index_path(path))
        return True
    except FileNotFoundError:
        return Problem("the shard is missing", str(path), remedy=RESTORE)
    except (ShardError, OSError) as error:
        return Problem.of(error, str(path))
