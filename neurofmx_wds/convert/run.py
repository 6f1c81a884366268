"""Carries out a conversion plan: shards made here or by workers, kept when a run is killed, shown when all are there.

Knows plans and shards; knows nothing of what is in a recording.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..format.index import ShardIndex, index_path
from ..format.manifest import Manifest
from ..format.modalities import modalities_of
from ..format.statistics import Moments, shares_measured, statistics_of
from ..format.units import with_unit_keys
from ..format.writer import shard_record
from ..storage.atomic import StagedDirectory
from ..storage.location import Given, on_disk
from ..storage.progress import progress_bar
from ..storage.uploading import UploadedDirectory
from ..version import CREATED_BY
from .config import Output, Task, Work, Workers
from .finished import is_finished, load_same
from .look import Notes, look_at
from .place import refuse_inside, staging
from .plan import ConversionPlan, PlannedSource, ShardPlan, why_empty
from .shards import MAKING, close_source, read_statistics, write_shard
from .sources import SourceConfig
from .staged import PLAN_NAME, clear, missing, note, refuse_another, remove_notes

logger = logging.getLogger("neurofmx_wds")


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        plan: what was made of what; its ``failures`` are the sources that could not be read.
        summary: the dataset's manifest.
        existed: whether the same conversion had been finished before, so that nothing was written.
    """

    plan: ConversionPlan
    summary: dict[str, Any]
    existed: bool = False


class NothingToWrite(SourceError):
    """No source gives any sample."""


def convert(
    paths: Sequence[Given], output: Output, config: SourceConfig = SourceConfig(), workers: Workers = Workers()
) -> Conversion:
    """Turn files into a dataset, which appears in one step when it is whole.

    The result's bytes depend on the files and the settings alone: not on `workers`, or on how often the run was killed
    and started again. Started again, it keeps the finished shards; a finished conversion is not made again.

    Args:
        paths: NWB, npz or npy files, in the order in which they shall be in the dataset: paths, URLs, or open binary
            files, which are copied to temporary ones meanwhile.
        output: where and how to write.
        config: how the files are read.
        workers: who does the work.

    Returns:
        The plan and the manifest. Files that could not be read are in both; the dataset holds the others.

    Raises:
        SourceError: no file gives any sample.
        OutputError: the output holds another dataset or other files, cannot be written, or a worker process died.
    """
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(on_disk(paths))
        staged = None if is_finished(output) else stack.enter_context(staging(output))
        refuse_inside(names, output.directory)
        work = stack.enter_context(workers.start())
        notes = None if staged is None else Notes(staged.path)
        plan = ConversionPlan(look_at(names, config, work, notes), config, output)
        if staged is None:
            return Conversion(plan, load_same(plan, output.directory).summary(), existed=True)
        return write_plan(plan, staged, work)


def write_plan(plan: ConversionPlan, staged: StagedDirectory, work: Work = Work()) -> Conversion:
    """Make the plan's shards and put the dataset in its place.

    What an unfinished run left in the staging directory is used again, shard by shard, wherever this plan would make
    the very same bytes; the rest of it is removed. A source that turns out to be unreadable half way is taken out of
    the plan, and the shards before it stay.

    Args:
        plan: what to make.
        staged: where; it is released in the end, or left as it is for another try when an error is raised.
        work: how the work is spread.

    Raises:
        SourceError: no source gives any sample.
        OutputError: the output cannot be written, a worker process died, or an unfinished run there had other settings
            or other files of these names and `staged` is not to be overwritten.
    """
    try:
        plan, manifest = build(plan, staged.path, work, anew=staged.overwrite)
    except NothingToWrite:
        if plan.n_samples:  # seen, but unreadable; what cannot even be seen may be there again tomorrow
            staged.discard()
        raise
    if not isinstance(staged, UploadedDirectory):  # it keeps them until everything is uploaded
        remove_notes(staged.path)
    staged.commit()
    return Conversion(plan, manifest.summary())


def build(
    plan: ConversionPlan, directory: Path, work: Work = Work(), anew: bool = False
) -> tuple[ConversionPlan, Manifest]:
    """Make the plan's shards and manifest in a directory that nobody reads yet; what is in it already is used again.

    Args:
        plan: what to make.
        directory: where; the record of what has been made stays there.
        work: how the work is spread.
        anew: whether what was begun there with other settings may be thrown away.

    Returns:
        The plan that was carried out, without the sources that turned out to be unreadable, and the manifest.

    Raises:
        NothingToWrite: no source gives any sample.
        SourceError, OutputError: as :func:`write_plan`.
    """
    if not anew:
        refuse_another(plan, directory)
    while plan.n_samples:
        try:
            _write_shards(plan, directory, work)
            break
        except SourceError as error:
            fewer = plan.without(error)
            if len(fewer.failures) == len(plan.failures):
                raise
            plan = fewer
        finally:
            close_source()
    else:
        raise nothing_to_write(plan)
    for left in directory.glob(f"{MAKING}*"):  # by a worker that died
        shutil.rmtree(left, ignore_errors=True)
    manifest = _manifest(plan, directory)
    manifest.save(directory)
    return plan, manifest


def write_share(
    paths: Sequence[Given],
    output: Output,
    task: Task,
    config: SourceConfig = SourceConfig(),
    workers: Workers = Workers(),
) -> ConversionPlan:
    """Make one task's share of the shards, as one of several tasks of a job array that are given the same files.

    The shares lie in the staging directory; :func:`convert` with the same arguments then makes what is missing and puts
    the dataset in its place. The tasks may run at once or one after the other, on any machines that share the file
    system; the files are looked at once, by whichever task comes to them first.

    Args:
        paths: as :func:`convert`.
        output: as :func:`convert`.
        task: which share.
        config: as :func:`convert`.
        workers: as :func:`convert`.

    Returns:
        The whole plan; its ``failures`` are the sources that could not be read.

    Raises:
        SourceError: a source of this share cannot be read, or no file gives any sample.
        OutputError: as :func:`convert`.
    """
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(on_disk(paths))
        staged = None if is_finished(output) else stack.enter_context(staging(output, shared=True))
        refuse_inside(names, output.directory)
        work = stack.enter_context(workers.start())
        notes = None if staged is None else Notes(staged.path, task)
        plan = ConversionPlan(look_at(names, config, work, notes), config, output)
        if not plan.n_samples:
            raise nothing_to_write(plan)
        if staged is None:
            load_same(plan, output.directory)
            return plan
        if not output.overwrite:
            refuse_another(plan, staged.path)
        shards = plan.shards()
        share = shards[task.of(len(shards))]
        left = missing(share, staged.path)
        note(plan, staged.path / f"plan-{task.task}.json")
        _make(share, left, staged.path, work)
        close_source()
        return plan


def nothing_to_write(plan: ConversionPlan) -> NothingToWrite:
    """Return what is wrong with each source of a plan without samples."""
    wrong = [entry if isinstance(entry, SourceError) else why_empty(entry) for entry in plan.entries]
    if not wrong:
        return NothingToWrite("nothing was converted: no file was given", remedy="give one that can be read")
    if len(wrong) > 1:
        return NothingToWrite("\n  ".join(["nothing was converted:", *map(str, wrong)]))
    [only] = wrong
    return NothingToWrite(only.problem, file=only.file, sample=only.sample, member=only.member, remedy=only.remedy)


def _write_shards(plan: ConversionPlan, directory: Path, work: Work) -> None:
    shards = plan.shards()
    left = missing(shards, directory)
    clear(directory, {shard.name for shard in shards} - {shard.name for shard in left})
    note(plan, directory / PLAN_NAME)
    _make(shards, left, directory, work)


def _make(shards: Sequence[ShardPlan], left: Sequence[ShardPlan], directory: Path, work: Work) -> None:
    total, to_do = (sum(shard.n_samples for shard in each) for each in (shards, left))
    done = total - to_do
    with progress_bar(None, total, "window", work.show_progress, desc="converting", initial=done) as bar:
        for shard, _ in zip(left, work.apply(functools.partial(write_shard, directory), left), strict=True):
            bar.update(shard.n_samples)
            logger.info("wrote %s: %d samples", shard.name, shard.n_samples)


def _manifest(plan: ConversionPlan, directory: Path) -> Manifest:
    def indexes() -> Iterator[ShardIndex]:
        return (ShardIndex.load(index_path(directory / shard.name)) for shard in plan.shards())

    modalities = modalities_of(indexes())
    for name, about in plan.shared().items():
        modalities.setdefault(name, {}).update(about)
    if plan.storage.field_format == "npy.gz":  # whose indexes do not tell what was compressed
        for name, about in plan.stored_as().items():
            modalities.setdefault(name, {}).update(about)
    return Manifest(
        shard_size=plan.storage.shard_size,
        compression=plan.storage.compression,
        modalities=modalities,
        shards=[shard_record(index) for index in indexes()],
        sources=with_unit_keys(_counted(plan, directory)),
        config=plan.to_json(),
        created_by=CREATED_BY,
    )


def _counted(plan: ConversionPlan, directory: Path) -> list[dict[str, Any]]:
    """Return the reports on the sources, with the statistics of what each gave, merged in the order of the shards."""
    parts: list[list[dict[str, Moments | None]]] = []
    for shard in plan.shards():
        for piece, counted in zip(shard.pieces, read_statistics(directory, shard) or [], strict=False):
            if piece.start == 0:
                parts.append([])
            parts[-1].append(counted)
    of_source = iter(parts)
    reports = plan.reports()
    for entry, report in zip(plan.entries, reports, strict=True):
        if isinstance(entry, PlannedSource) and entry.description.n_samples:
            report["statistics"] = statistics_of(next(of_source), report)
            if "measured" in report:  # by times alone, so far
                shares = shares_measured(report["statistics"])
                report["measured"] = {name: shares.get(name, share) for name, share in report["measured"].items()}
    return reports
