"""Make damaged shards of a dataset again from the recordings, with the same bytes; other shards are not touched.

Knows manifests, plans and shards; knows nothing of what is in a recording.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import OutputError, ShardError, SourceError
from ..format.index import ShardIndex, index_path
from ..format.manifest import MANIFEST_NAME, Manifest, ShardRecord
from ..storage.atomic import fsync_path, refuse_url
from ..storage.location import Given, on_disk
from ..storage.regular import file_sha256
from .config import Output, Workers
from .look import look_at
from .place import staging_beside
from .plan import ConversionPlan, PlannedSource, differences, identity_of
from .shards import files_of, write_shard
from .sources import SourceConfig

_ASIDE = ".repair-"


def repair(
    paths: Sequence[Given],
    output: Output,
    config: SourceConfig = SourceConfig(),
    workers: Workers = Workers(),
) -> list[str]:
    """Make the missing and damaged shards of a dataset again, and their indexes.

    Every byte of the dataset is read. A new shard replaces the damaged one, in one step, only if it has the checksum in
    the manifest. A repair that was killed can be run again.

    Args:
        paths: the recordings that the dataset was converted from, in any order.
        output: the dataset's directory, and how its shards were written.
        config: how the files are read: the settings of the original conversion.
        workers: the processes that do the work.

    Returns:
        The shards that were made again.

    Raises:
        SourceError: a recording is missing, has changed or cannot be read.
        OutputError: there is no such dataset, it was made with other settings, or by a version that writes other bytes.
        ManifestError: its manifest is damaged.
    """
    dataset_dir = output.directory
    plan = ConversionPlan((), config, output)
    refuse_url(dataset_dir)
    if not (Path(dataset_dir) / MANIFEST_NAME).is_file():
        raise OutputError("there is no dataset to repair", file=dataset_dir, remedy="convert without --repair")
    with (
        on_disk(paths) as names,
        staging_beside(dataset_dir) as staged,
        workers.start() as work,
    ):
        for left in staged.path.glob(f"{_ASIDE}*"):  # left by a killed run
            shutil.rmtree(left)
        manifest = Manifest.load(staged.target)
        found = differences(manifest.config, plan.to_json())
        if found:
            problem = f"the dataset was made with other settings: {'; '.join(found)}"
            raise OutputError(problem, file=dataset_dir, remedy="repeat the settings of the conversion")
        good = list(work.apply(functools.partial(_is_good, staged.target), manifest.shards))
        if all(good):
            return []
        plan = replace(plan, entries=_sources(manifest, look_at(names, config, work)))
        ends = [0, *itertools.accumulate(record.n_samples for record in manifest.shards)]
        if plan.n_samples != ends[-1]:
            problem = f"the recordings yield {plan.n_samples} samples now, the dataset has {ends[-1]}"
            raise OutputError(problem, file=dataset_dir, remedy="convert again, with --overwrite")
        bad = [(manifest.shards[k], plan.shard(manifest.shards[k].shard_name, *ends[k : k + 2]))
               for k in range(len(good)) if not good[k]]  # fmt: skip
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=staged.path) as aside:
            made = work.apply(functools.partial(write_shard, Path(aside)), [shard for _, shard in bad])
            for (record, _), _ in zip(bad, made, strict=True):
                _put_back(Path(aside), staged.target, record)
    return [record.shard_name for record, _ in bad]


def _is_good(directory: Path, record: ShardRecord) -> bool:
    path = directory / record.shard_name
    try:
        index = ShardIndex.load(index_path(path))
        found = (index.n_samples, index.file_size, index.sha256)
        return found == (record.n_samples, record.n_bytes, record.sha256) and file_sha256(path) == record.sha256
    except (OSError, ShardError):
        return False


def _sources(manifest: Manifest, entries: Sequence[PlannedSource | SourceError]) -> tuple[PlannedSource, ...]:
    """Return the recordings that the dataset holds, in its order."""
    given = {entry.file.identity: entry for entry in entries if isinstance(entry, PlannedSource)}
    wanted = [report for report in manifest.sources if "error" not in report]
    for report in wanted:
        if identity_of(report) not in given:
            unread = [entry for entry in entries if isinstance(entry, SourceError)]
            problem = "the dataset was converted from this recording, which is missing among the inputs, or has changed"
            raise (
                unread[0]
                if unread
                else SourceError(problem, file=report["path"], remedy="add the original file to the inputs")
            )
    return tuple(given[identity_of(report) or ""] for report in wanted)


def _put_back(aside: Path, directory: Path, record: ShardRecord) -> None:
    made = ShardIndex.load(index_path(aside / record.shard_name))
    if made.sha256 != record.sha256:
        problem = "the new shard differs from the original, perhaps because another version wrote that"
        remedy = "convert again, with --overwrite"
        raise OutputError(problem, file=directory / record.shard_name, remedy=remedy)
    try:
        for name in files_of(record.shard_name):
            os.replace(aside / name, directory / name)
        fsync_path(directory)
    except OSError as error:
        problem = f"the repaired shard cannot replace it: {error.strerror}"
        raise OutputError(
            problem, file=directory / record.shard_name, remedy="fix the cause and repeat the command"
        ) from error
