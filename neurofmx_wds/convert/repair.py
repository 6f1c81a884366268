"""Damaged shards of a dataset made again from the recordings, byte for byte as they were; the others stay.

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

    Every byte of the dataset is read. What is made is put in its place only if it has the checksum that the manifest
    tells, each shard in one step; killed and run again, it is finished.

    Args:
        paths: the recordings that the dataset was made of, in any order.
        output: the dataset's directory, and how its shards were written.
        config: how the files are read; as it was for the dataset.
        workers: who does the work.

    Returns:
        The shards that were made again.

    Raises:
        SourceError: a recording is missing, has changed or cannot be read.
        OutputError: there is no such dataset, it was made with other settings, or by a program that made other bytes.
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
        for left in staged.path.glob(f"{_ASIDE}*"):  # by a run that was killed
            shutil.rmtree(left)
        manifest = Manifest.load(staged.target)
        told = differences(manifest.config, plan.to_json())
        if told:
            problem = f"the dataset was made with other settings: {'; '.join(told)}"
            raise OutputError(problem, file=dataset_dir, remedy="give the same again")
        good = list(work.apply(functools.partial(_is_good, staged.target), manifest.shards))
        if all(good):
            return []
        plan = replace(plan, entries=_sources(manifest, look_at(names, config, work)))
        ends = [0, *itertools.accumulate(record.n_samples for record in manifest.shards)]
        if plan.n_samples != ends[-1]:
            problem = f"the recordings give {plan.n_samples} samples now, the dataset has {ends[-1]}"
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
        told = (index.n_samples, index.file_size, index.sha256)
        return told == (record.n_samples, record.n_bytes, record.sha256) and file_sha256(path) == record.sha256
    except (OSError, ShardError):
        return False


def _sources(manifest: Manifest, entries: Sequence[PlannedSource | SourceError]) -> tuple[PlannedSource, ...]:
    """Return the recordings that the dataset holds, in its order."""
    given = {entry.file.identity: entry for entry in entries if isinstance(entry, PlannedSource)}
    wanted = [report for report in manifest.sources if "error" not in report]
    for report in wanted:
        if identity_of(report) not in given:
            unread = [entry for entry in entries if isinstance(entry, SourceError)]
            problem = "the dataset was made of this recording, which is not among those given, or has changed"
            raise unread[0] if unread else SourceError(problem, file=report["path"], remedy="give it too, as it was")
    return tuple(given[identity_of(report) or ""] for report in wanted)


def _put_back(aside: Path, directory: Path, record: ShardRecord) -> None:
    made = ShardIndex.load(index_path(aside / record.shard_name))
    if made.sha256 != record.sha256:
        problem = "the shard comes out otherwise than it was, perhaps because another version made it"
        remedy = "convert again, with --overwrite"
        raise OutputError(problem, file=directory / record.shard_name, remedy=remedy)
    try:
        for name in files_of(record.shard_name):
            os.replace(aside / name, directory / name)
        fsync_path(directory)
    except OSError as error:
        problem = f"cannot be put in its place: {error.strerror}"
        raise OutputError(problem, file=directory / record.shard_name, remedy="mend that and run again") from error
