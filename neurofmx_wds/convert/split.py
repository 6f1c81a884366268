"""Recordings dealt to several datasets (train, val, test) before they are cut into windows, so that no bin is in two.

Knows plans and the clock; knows nothing of shards.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError, SourceError
from ..format.manifest import Manifest
from ..nwb.clock import NS_PER_S, Grid, union
from ..nwb.windows import NOT_GIVEN
from ..storage.atomic import fsync_path
from ..storage.location import Given, on_disk
from .config import Output, Split, Work, Workers
from .look import Notes, look_at, plan_again
from .merge import append_plan, what_is_there
from .place import refuse_inside, staging, staging_beside
from .plan import ConversionPlan, PlannedSource, identity_of
from .run import Conversion, NothingToWrite, build, nothing_to_write
from .sources import SourceConfig, SourceDescription
from .staged import remove_notes

_ELSEWHERE = "in the other parts of the split, or between them"

_Entries = list[PlannedSource | SourceError]


def convert_split(
    paths: Sequence[Given],
    output: Output,
    how: Split,
    config: SourceConfig = SourceConfig(),
    workers: Workers = Workers(),
) -> dict[str, Conversion]:
    """Turn files into several datasets, directories in the output, which appear in one step when all are whole.

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
        SourceError: a name would get no windows, or a file tells of no subject or has no time.
        OutputError: as :func:`neurofmx_wds.convert.run.convert`.
    """
    plan = ConversionPlan((), config, output)
    with (
        on_disk(paths) as names,
        staging(output, parts=how.shares) as staged,
        workers.start() as work,
    ):
        refuse_inside(names, staged.target)
        seen = look_at(names, config, work, Notes(staged.path))
        plans = split(replace(plan, entries=seen), how, work)
        for entry in os.scandir(staged.path):
            if entry.name not in plans:
                shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
        done = {}
        for name, part in plans.items():
            (staged.path / name).mkdir(exist_ok=True)
            try:
                done[name] = build(part, staged.path / name, work, anew=output.overwrite)
            except NothingToWrite as error:
                staged.discard()
                raise _empty(name, how.by) from error
        for name in plans:
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
    datasets change one after the other, each in one step; killed and run again, it is finished.

    Args:
        paths, output, how, config, workers: as :func:`convert_split`, and as they were there.

    Returns:
        name → what was added (an empty plan when there was nothing new for it).

    Raises:
        SourceError: no file gives any sample, or one tells of no subject or has no time.
        OutputError: there are no such datasets, they were made with other settings or split otherwise, or as
            :func:`neurofmx_wds.convert.merge.append`.
    """
    plan = ConversionPlan((), config, output)
    places = {name: Path(output.directory) / name for name in how.shares}
    for place in places.values():
        what_is_there(place, plan)
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(on_disk(paths))
        staged = {name: stack.enter_context(staging_beside(place)) for name, place in places.items()}
        work = stack.enter_context(workers.start())
        old = {name: what_is_there(place, plan) for name, place in places.items()}
        plan = replace(plan, entries=look_at(names, config, work))
        parts = _by_time(plan, how, work) if how.by == "time" else _by_group(plan, how, old)
        _check_split_alike(old, parts, how.by, Path(output.directory))
        wanted = [name for name, entries in parts.items() if any(_n_samples(entry) for entry in entries)]
        told = wanted[0] if wanted else next(iter(how.shares))
        parts[told] = [*parts[told], *plan.failures]
        done = {}
        for name, manifest in old.items():
            part = replace(plan, entries=tuple(parts[name]))
            if name in wanted or part.failures:
                done[name] = append_plan(part, staged[name], work)
            else:
                done[name] = Conversion(replace(part, entries=()), manifest.summary())
    return done


def _n_samples(entry: PlannedSource | SourceError) -> int:
    return entry.description.n_samples if isinstance(entry, PlannedSource) else 0


def _check_split_alike(old: Mapping[str, Manifest], parts: Mapping[str, _Entries], by: str, where: Path) -> None:
    """Refuse to add to datasets that were not split in this way, or to cut a recording in another way than before."""
    known = {name: {identity_of(r): r.get("split", {}) for r in m.sources if identity_of(r)} for name, m in old.items()}
    told = [
        f"{name} was not split by {by}" for name, each in known.items() if any(s.get("by") != by for s in each.values())
    ]
    for name, entries in parts.items():
        for entry in entries:
            if by == "time" and isinstance(entry, PlannedSource):
                before = known[name].get(entry.file.identity)
                if before and before != entry.description.report["split"]:
                    told.append(f"{entry.file.name} was cut at other times")
    if told:
        remedy = "append with the same --split and --split-by, or convert anew"
        raise OutputError("; ".join(dict.fromkeys(told)), file=where, remedy=remedy)


def split(plan: ConversionPlan, how: Split, work: Work = Work()) -> dict[str, ConversionPlan]:
    """Deal a plan's sources, or contiguous blocks of their time, to several plans.

    Args:
        plan: what would be converted into one dataset.
        how: the datasets and what stays together, see :func:`convert_split`.
        work: how the work is spread.

    Returns:
        name → its plan. The sources that cannot be read are in the first one.

    Raises:
        SourceError: a name would get no windows, or a source tells of no subject or has no time.
    """
    if not plan.n_samples:
        raise nothing_to_write(plan)
    parts = _by_time(plan, how, work) if how.by == "time" else _by_group(plan, how)
    first = next(iter(how.shares))
    parts[first] = [*parts[first], *plan.failures]
    plans = {name: replace(plan, entries=tuple(parts[name])) for name in how.shares}
    for name, part in plans.items():
        if not part.n_samples:
            raise _empty(name, how.by)
    return plans


def _empty(name: str, by: str) -> NothingToWrite:
    what = "longer recordings or shorter windows" if by == "time" else f"at least one {by} for each name"
    return NothingToWrite(f"split by {by}: {name} would get no windows", remedy=f"it takes {what}")


def _by_group(plan: ConversionPlan, how: Split, old: Mapping[str, Manifest] | None = None) -> dict[str, _Entries]:
    by, shares = how.by, how.shares
    twins: dict[str, str] = {}  # copies of one file stay together, whatever they are called
    groups = [twins.setdefault(source.file.identity, _group_of(source, by)) for source in plan.sources]
    sizes: dict[str, int] = {}
    for group, source in zip(groups, plan.sources, strict=True):
        sizes[group] = sizes.get(group, 0) + source.description.n_samples
    there = {name: manifest.total_samples for name, manifest in (old or {}).items()}
    stay = {r["split"][by]: name for name, m in (old or {}).items() for r in m.sources if by in r.get("split", {})}
    dealt = stay | deal({group: n for group, n in sizes.items() if group not in stay}, shares, there)
    parts: dict[str, _Entries] = {name: [] for name in shares}
    for group, source in zip(groups, plan.sources, strict=True):
        about = {**source.description.report, "split": {"by": by, by: group}}
        parts[dealt[group]].append(replace(source, description=replace(source.description, report=about)))
    return parts


def _group_of(source: PlannedSource, by: str) -> str:
    report = source.description.report
    subject = (report.get("subject") or {}).get("subject_id")
    if by == "subject":
        if not subject:
            remedy = "split by session or time, or name the subject in the file"
            raise SourceError("tells of no subject", file=source.file.path, remedy=remedy)
        return str(subject)
    session = report.get("session_id")
    return "/".join(str(each) for each in (subject, session) if each) if session else source.file.identity


def deal(
    sizes: Mapping[str, int], shares: Mapping[str, float], there: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Give each group to a name so that the shares come out as nearly as they can, largest first.

    A pure function of its arguments, whatever their order: groups of one size go by the hash of their name. No name
    stays empty where there are groups enough.

    Args:
        sizes: group → its samples.
        shares: name → its share; they sum to 1.
        there: name → samples that it has already.

    Returns:
        group → name.
    """
    given = {name: (there or {}).get(name, 0) for name in shares}
    total, dealt = sum(sizes.values()) + sum(given.values()), {}
    empty = {name for name, n in given.items() if not n}
    order = sorted(sizes, key=lambda group: (-sizes[group], hashlib.sha256(group.encode()).digest()))
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        among = [name for name in shares if name in empty] if left <= len(empty) else list(shares)
        name = max(among, key=lambda each: shares[each] * total - given[each])
        dealt[group] = name
        given[name] += sizes[group]
        empty.discard(name)
    return dealt


def _by_time(plan: ConversionPlan, how: Split, work: Work) -> dict[str, _Entries]:
    shares = how.shares
    grid = Grid(plan.config.windows.bin_width_ns, plan.config.windows.origin_ns)
    jobs = []
    for source in plan.sources:
        if "segments" not in source.description.report:
            remedy = "split by session"
            raise SourceError("its samples have no time to be split by", file=source.file.path, remedy=remedy)
        spans = np.array(source.description.report["segments"], np.int64).reshape(-1, 2)
        # Those of windows around events begin and end inside bins, which are theirs too; two of them may share one.
        bins = np.stack([grid.bin_of(spans[:, 0]), grid.bin_of(spans[:, 1] - 1) + 1], axis=1)
        segments = [(int(a), int(b)) for a, b in union([bins])]
        blocks = time_blocks(segments, list(shares.values()), plan.config.windows.sequence_length)
        jobs += [
            (source, name, block and (grid.start_of(block[0]), grid.start_of(block[1])), plan.config)
            for name, block in zip(shares, blocks, strict=True)
        ]
    parts: dict[str, _Entries] = {name: [] for name in shares}
    for (_, name, _, _), entry in zip(jobs, work.apply(_look_at_block, jobs), strict=True):
        parts[name].append(entry)
    return parts


def time_blocks(
    segments: Sequence[tuple[int, int]], shares: Sequence[float], length: int
) -> list[tuple[int, int] | None]:
    """Cut a recording into contiguous blocks of whole bins, `length` bins or more apart.

    Args:
        segments: (first bin, stop bin) of where windows can be, ascending and disjoint.
        shares: share of each block in the bins that are left when the guards are taken off; they sum to 1.
        length: bins in a window, and in a guard.

    Returns:
        (first bin, stop bin) of each block, None where it is empty. A recording too short for the guards goes whole to
        the largest share.
    """
    ends = [0, *itertools.accumulate(stop - first for first, stop in segments)]
    usable = ends[-1] - (len(shares) - 1) * length
    if usable <= 0:
        largest = shares.index(max(shares))
        whole = (segments[0][0], segments[-1][1]) if segments else None
        return [whole if i == largest else None for i in range(len(shares))]

    def bin_at(place: int) -> int:
        i = bisect.bisect_right(ends, place) - 1
        return segments[i][0] + place - ends[i]

    cuts = [0, *(round(usable * share) for share in itertools.accumulate(shares[:-1])), usable]
    places = [(a + i * length, b + i * length) for i, (a, b) in enumerate(itertools.pairwise(cuts))]
    return [(bin_at(a), bin_at(b - 1) + 1) if a < b else None for a, b in places]


def _look_at_block(
    job: tuple[PlannedSource, str, tuple[int, int] | None, SourceConfig],
) -> PlannedSource | SourceError:
    """What one block of a source gives: the source, read within it."""
    source, name, block, config = job
    about: dict[str, Any] = {"split": {"by": "time", "block_ns": block and list(block)}}
    if block is None:
        report = {"path": source.file.name, "windows": {"emitted": 0, "dropped": {}}, **about}
        report["warnings"] = [f"too short to give {name} a block of its own"]
        return PlannedSource(source.file, SourceDescription(0, {}, report))
    entry = plan_again(source, config.within(*block))
    if isinstance(entry, SourceError):
        return entry
    if any(a < block[0] or b > block[1] for a, b in entry.description.report["segments"]):
        start, stop = (ns / NS_PER_S for ns in block)
        problem = f"gives windows outside of the {start:g} s to {stop:g} s that are for {name}"
        return SourceError(problem, file=source.file.path, remedy="split by session")
    about["windows"] = _discount_other_blocks(entry.description.report["windows"], source.description.report["windows"])
    return replace(entry, description=replace(entry.description, report={**entry.description.report, **about}))


def _discount_other_blocks(block: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """What became of a block's windows: those that the whole source has elsewhere are no loss."""
    dropped, not_given = dict(block["dropped"]), whole["dropped"].get(NOT_GIVEN, 0)
    elsewhere = dropped.pop(NOT_GIVEN, 0) - not_given  # the block is given to it as an interval, too
    dropped |= {NOT_GIVEN: not_given, _ELSEWHERE: elsewhere}
    return {**block, "dropped": {reason: n for reason, n in dropped.items() if n}}
