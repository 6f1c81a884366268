"""Recordings appended to a dataset that is there, as new shards behind its own.

Knows manifests, plans and shards; knows nothing of what is in a recording.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import OutputError, SourceError
from ..format.index import ShardIndex, index_path
from ..format.manifest import MANIFEST_NAME, Manifest
from ..storage.atomic import StagedDirectory, fsync_path, refuse_url
from ..storage.location import Given, on_disk
from .config import Output, Work, Workers
from .joining import join_manifests
from .look import Notes, look_at, reject_conflicts
from .place import staging_beside
from .plan import ConversionPlan, PlannedSource, differences, identity_of
from .run import Conversion, NothingToWrite, build
from .shards import files_of
from .sources import SourceConfig
from .staged import noted, remove_notes


def append(
    paths: Sequence[Given], output: Output, config: SourceConfig = SourceConfig(), workers: Workers = Workers()
) -> Conversion:
    """Add recordings to a dataset that :func:`neurofmx_wds.convert.run.convert` made, as new shards behind its own.

    The shards that are there stay as they are, also a last one that is not full, and keys are counted on. Readers see
    the old dataset until the manifest is replaced, in one step, and the new one from then on. If the run is killed, the
    same call finishes it. A recording that the dataset has already (the same bytes) is not added again.

    Args:
        paths: NWB, npz or npy files, URLs or open files, as :func:`neurofmx_wds.convert.run.convert`.
        output: the dataset's directory, and how its shards were written.
        config: how the files are read; as it was for the dataset.
        workers: who does the work.

    Returns:
        What was added (an empty plan if everything was there already) and the manifest of the whole dataset.

    Raises:
        SourceError: no file gives any sample.
        OutputError: there is no such dataset, it was made with other settings, or it cannot be written.
        ManifestError: its manifest is damaged.
    """
    plan = ConversionPlan((), config, output)
    load_alike(output.directory, plan)
    with on_disk(paths) as names, staging_beside(output.directory) as staged, workers.start() as work:
        plan = replace(plan, entries=look_at(names, config, work, Notes(staged.path)))
        return append_plan(plan, staged, work)


def load_alike(dataset_dir: str | os.PathLike[str], plan: ConversionPlan) -> Manifest:
    """Load the manifest of a dataset that was made with the settings of a plan.

    Raises:
        OutputError: there is no such dataset, or it was made with other settings.
        ManifestError: its manifest is damaged.
    """
    refuse_url(dataset_dir)
    if not (Path(dataset_dir) / MANIFEST_NAME).is_file():
        raise OutputError("there is no dataset to append to", file=dataset_dir, remedy="convert without append")
    old = Manifest.load(Path(dataset_dir))
    found = differences(old.config, plan.to_json())
    if found:
        raise OutputError(
            f"the dataset was made with other settings: {'; '.join(found)}",
            file=dataset_dir,
            remedy="append with the same settings, or convert into a dataset of its own",
        )
    return old


def append_plan(plan: ConversionPlan, staged: StagedDirectory, work: Work) -> Conversion:
    """Add to a dataset what a plan gives and the dataset does not have yet.

    Args:
        plan: what to add.
        staged: the dataset and the place to make new shards in.
        work: how the work is spread.

    Returns:
        As :func:`append`.

    Raises:
        SourceError, OutputError, ManifestError: as :func:`append`.
    """
    old = load_alike(staged.target, plan)
    entries = plan.entries
    labels = old.modalities.get("label", {}).get("names")
    keys = _keys_in(staged.target, old) if plan.config.format == "files" else ()
    plan = replace(
        plan,
        entries=reject_conflicts(_not_yet_in(old, entries), plan.config, labels, keys),
        first_shard=len(old.shards),
        first_sample=old.total_samples,
    )
    _take_back(staged, old)
    if not plan.sources and len(plan.entries) < len(entries):  # a file that cannot be read adds nothing, either
        remove_notes(staged.path)
        return Conversion(plan, old.summary())
    try:  # what was begun of a recording that has changed since is thrown away: no reader has seen it
        plan, new = build(plan, staged.path, work, anew=True)
    except NothingToWrite:
        if plan.n_samples:  # counted, but unreadable; what could not be counted may be readable tomorrow
            staged.discard()
        raise
    joined = _added(old, new)
    _put_in(staged, joined, new)
    return Conversion(plan, joined.summary())


def _not_yet_in(
    manifest: Manifest, entries: Sequence[PlannedSource | SourceError]
) -> tuple[PlannedSource | SourceError, ...]:
    known = {report["path"]: identity for report in manifest.sources if (identity := identity_of(report))}
    there = set(known.values())
    fresh: list[PlannedSource | SourceError] = []
    for entry in entries:
        if isinstance(entry, SourceError):
            fresh.append(entry)
        elif entry.file.identity not in there:
            there.add(entry.file.identity)
            fresh.append(_renamed(entry) if entry.file.name in known else entry)
    return tuple(fresh)


def _renamed(entry: PlannedSource) -> SourceError:
    problem = "the dataset has a recording of this name with other content"
    remedy = "if it is another recording, rename it; if it was changed, convert the dataset anew"
    return SourceError(problem, file=entry.file.path, remedy=remedy)


def _keys_in(directory: Path, manifest: Manifest) -> Iterator[str]:
    for record in manifest.shards:
        yield from ShardIndex.load(index_path(directory / record.shard_name)).sample_keys


def _take_back(staged: StagedDirectory, old: Manifest) -> None:
    """Take back the shards of a run that was killed after it had put some in place, before its manifest was."""
    listed = {each for record in old.shards for each in files_of(record.shard_name)}
    for name in noted(staged.path):
        for file in files_of(name):
            if file not in listed and (staged.target / file).exists():
                os.replace(staged.target / file, staged.path / file)


def _put_in(staged: StagedDirectory, joined: Manifest, new: Manifest) -> None:
    """Put the new shards beside the old ones, then replace the manifest by one that lists both."""
    target = staged.target
    names = [file for record in new.shards for file in files_of(record.shard_name)]
    taken = [name for name in names if os.path.lexists(target / name)]
    if taken:
        problem = f"there are files with the names of the new shards: {', '.join(taken[:3])}"
        raise OutputError(problem, file=target, remedy="move them away: the manifest does not list them")
    try:
        joined.save(staged.path)
        for name in names:
            os.rename(staged.path / name, target / name)
        fsync_path(target)
        os.rename(staged.path / MANIFEST_NAME, target / MANIFEST_NAME)
        fsync_path(target)
    except OSError as error:
        problem = f"cannot put the new shards in place: {error.strerror}"
        raise OutputError(problem, file=target, remedy="run again: finished shards are kept") from error
    remove_notes(staged.path)


def _added(old: Manifest, new: Manifest) -> Manifest:
    """Join two manifests; the failure of a recording that could not be read before and is read now is left out."""
    read = {report["path"] for report in new.sources if "error" not in report}
    kept = [report for report in old.sources if not ("error" in report and report["path"] in read)]
    joined = join_manifests([replace(old, sources=kept), new])
    return replace(joined, shard_size=old.shard_size, config=old.config, created_by=old.created_by)
