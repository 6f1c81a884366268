"""Recordings converted into several datasets (train, val, test) that share no time bin, and these datasets grown.

Knows plans and datasets; how sources are dealt is known to `.split_plan`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import OutputError, SourceError
from ..format.manifest import MANIFEST_NAME, Manifest
from ..storage.atomic import StagedDirectory, fsync_path
from ..storage.location import Given, on_disk
from .append import append_plan, load_alike
from .config import Output, Split, Work, Workers
from .finished import is_finished, load_same
from .look import Notes, look_at
from .place import refuse_inside, staging, staging_beside
from .plan import ConversionPlan, PlannedSource, identity_of
from .run import Conversion, NothingToWrite, build
from .sources import SourceConfig
from .split_plan import Entries, no_windows, split, split_by_group, split_by_time, with_own_keys
from .staged import remove_notes


def convert_split(
    paths: Sequence[Given],
    output: Output,
    how: Split,
    config: SourceConfig = SourceConfig(),
    workers: Workers = Workers(),
) -> dict[str, Conversion]:
    """Turn files into several datasets, directories in the output, which appear in one step when all are whole.

    A finished conversion is not made again, as by :func:`neurofmx_wds.convert.run.convert`.

    Args:
        paths: NWB, npz or npy files, URLs or open files, as :func:`neurofmx_wds.convert.run.convert`.
        output: where and how to write.
        how: the datasets, their shares of the windows, and what stays together. "session": a recording session (of
            arrays: a file). "subject": an animal. "time": every recording is cut into contiguous blocks of time, in the
            order of the shares, with at least a window left out between two.
        config: how the files are read.
        workers: who does the work.

    Returns:
        name → what was converted.

    Raises:
        SourceError: a name would get no windows, or a file names no subject or has no time.
        OutputError: as :func:`neurofmx_wds.convert.run.convert`.
    """
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(on_disk(paths))
        staged = None if is_finished(output, how.shares) else stack.enter_context(staging(output))
        refuse_inside(names, output.directory)
        work = stack.enter_context(workers.start())
        notes = None if staged is None else Notes(staged.path)
        plan = ConversionPlan(look_at(names, config, work, notes), config, output)
        parts = split(plan, how, work)
        if staged is None:
            places = {name: Path(output.directory, name) for name in parts}
            old = {name: Manifest.load(place) for name, place in places.items()}
            parts = {
                name: with_own_keys(replace(part, storage=output), name, old[name]) for name, part in parts.items()
            }
            return {name: Conversion(parts[name], load_same(parts[name], place).summary(), existed=True)
                    for name, place in places.items()}  # fmt: skip
        return _write_parts(parts, how, staged, work)


def _write_parts(
    parts: Mapping[str, ConversionPlan], how: Split, staged: StagedDirectory, work: Work
) -> dict[str, Conversion]:
    """Make the dataset of each part, and put all in their place in one step."""
    for entry in os.scandir(staged.path):
        if entry.name not in parts:
            shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
    done = {}
    for name, part in parts.items():
        (staged.path / name).mkdir(exist_ok=True)
        try:
            done[name] = build(part, staged.path / name, work, anew=staged.overwrite)
        except NothingToWrite as error:
            staged.discard()
            raise no_windows(name, how.by) from error
    for name in parts:
        remove_notes(staged.path / name)
        fsync_path(staged.path / name)
    staged.commit()
    return {name: Conversion(part, manifest.summary()) for name, (part, manifest) in done.items()}


def append_split(
    paths: Sequence[Given],
    output: Output,
    how: Split,
    config: SourceConfig = SourceConfig(),
    workers: Workers = Workers(),
) -> dict[str, Conversion]:
    """Add recordings to the datasets that :func:`convert_split` made, so that still no bin is in two of them.

    A session or subject that one of them has goes there again, whatever the shares; the others are dealt so that the
    shares of all windows, old and new, come out as nearly as they can. By time each new recording is cut by itself. The
    datasets change one after the other, each in one step; if the run is killed, the same call finishes it.

    Args:
        paths: as :func:`convert_split`.
        output: where the datasets are, and how their shards were written.
        how: as it was for the datasets.
        config: as it was for the datasets.
        workers: who does the work.

    Returns:
        name → what was added (an empty plan if there was nothing new for it).

    Raises:
        SourceError: no file gives any sample, or one names no subject or has no time.
        OutputError: there are no such datasets, they were made with other settings or split in another way, or as
            :func:`neurofmx_wds.convert.append.append`.
    """
    plan = ConversionPlan((), config, output)
    places = {name: Path(output.directory) / name for name in how.shares}
    for name, place in places.items():
        _load_part(place, name, plan)
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(on_disk(paths))
        staged = {name: stack.enter_context(staging_beside(place)) for name, place in places.items()}
        work = stack.enter_context(workers.start())
        old = {name: _load_part(place, name, plan) for name, place in places.items()}
        plan = replace(plan, entries=look_at(names, config, work))
        parts = split_by_time(plan, how, work) if how.by == "time" else split_by_group(plan, how, old)
        _check_split_alike(old, parts, how.by, Path(output.directory))
        wanted = [name for name, entries in parts.items() if any(_n_samples(entry) for entry in entries)]
        first = wanted[0] if wanted else next(iter(how.shares))
        parts[first] = [*parts[first], *plan.failures]
        done = {}
        for name, manifest in old.items():
            part = with_own_keys(replace(plan, entries=tuple(parts[name])), name, manifest)
            if name in wanted or part.failures:
                done[name] = append_plan(part, staged[name], work)
            else:
                done[name] = Conversion(replace(part, entries=()), manifest.summary())
    return done


def _load_part(place: Path, name: str, plan: ConversionPlan) -> Manifest:
    """Load the manifest of one of the datasets of a split, made with the settings of a plan."""
    there = Manifest.load(place) if (place / MANIFEST_NAME).is_file() else None
    return load_alike(place, with_own_keys(plan, name, there))


def _n_samples(entry: PlannedSource | SourceError) -> int:
    return entry.description.n_samples if isinstance(entry, PlannedSource) else 0


def _check_split_alike(old: Mapping[str, Manifest], parts: Mapping[str, Entries], by: str, where: Path) -> None:
    """Refuse to add to datasets that were not split in this way, or to cut a recording in another way than before."""
    known = {name: {identity_of(r): r.get("split", {}) for r in m.sources if identity_of(r)} for name, m in old.items()}
    found = [
        f"{name} was not split by {by}" for name, each in known.items() if any(s.get("by") != by for s in each.values())
    ]
    for name, entries in parts.items():
        for entry in entries:
            if by == "time" and isinstance(entry, PlannedSource):
                before = known[name].get(entry.file.identity)
                if before and before != entry.description.report["split"]:
                    found.append(f"{entry.file.name} was cut at other times")
    if found:
        remedy = "append with the same split, or convert anew"
        raise OutputError("; ".join(dict.fromkeys(found)), file=where, remedy=remedy)
