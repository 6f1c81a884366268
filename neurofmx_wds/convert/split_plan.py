"""The sources of a plan, or blocks of their time, dealt to several plans (train, val, test) that share no bin.

Knows plans and the clock; knows nothing of shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import SourceError
from ..format.manifest import Manifest, recording_group
from ..format.notes import ELSEWHERE
from ..nwb.clock import NS_PER_S, Grid, union
from ..nwb.windows import NOT_GIVEN
from ..order.splitting import deal, time_blocks
from .config import Split, Work
from .look import plan_again
from .plan import ConversionPlan, PlannedSource, identity_of
from .run import NothingToWrite, nothing_to_write
from .sources import SourceConfig, SourceDescription

Entries = list[PlannedSource | SourceError]


def split(plan: ConversionPlan, how: Split, work: Work = Work()) -> dict[str, ConversionPlan]:
    """Deal a plan's sources, or contiguous blocks of their time, to several plans.

    Args:
        plan: what would be converted into one dataset.
        how: the datasets and what stays together, see :func:`neurofmx_wds.convert.split.convert_split`.
        work: how the work is spread.

    Returns:
        name → its plan. The sources that cannot be read are in the first one.

    Raises:
        SourceError: a name would get no windows, or a source names no subject or has no time.
    """
    if not plan.n_samples:
        raise nothing_to_write(plan)
    parts = split_by_time(plan, how, work) if how.by == "time" else split_by_group(plan, how)
    first = next(iter(how.shares))
    parts[first] = [*parts[first], *plan.failures]
    plans = {name: with_own_keys(replace(plan, entries=tuple(parts[name])), name) for name in how.shares}
    for name, part in plans.items():
        if not part.n_samples:
            raise no_windows(name, how.by)
    return plans


def with_own_keys(plan: ConversionPlan, name: str, dataset: Manifest | None = None) -> ConversionPlan:
    """Return the plan of a part, with keys that begin with its name: no other part has the same.

    Args:
        plan: what the part gets.
        name: the part.
        dataset: the part as it is there already; one that was made when parts had equal keys keeps these.
    """
    prefix = plan.storage.key_prefix
    if dataset is not None and dataset.config.get("key_prefix") == prefix:
        return plan
    return replace(plan, storage=replace(plan.storage, key_prefix=f"{name}_{prefix}"))


def no_windows(name: str, by: str) -> NothingToWrite:
    """Return the error that a name would get no windows."""
    what = "longer recordings or shorter windows" if by == "time" else f"at least one {by} for each name"
    return NothingToWrite(f"split by {by}: {name} would get no windows", remedy=f"it takes {what}")


def split_by_group(plan: ConversionPlan, how: Split, old: Mapping[str, Manifest] | None = None) -> dict[str, Entries]:
    """Deal sources to names, those of one session or subject to the same one.

    Args:
        plan: the sources.
        how: the shares, and what stays together.
        old: name → the dataset that it has already: sessions and subjects stay in theirs.

    Raises:
        SourceError: a source names no subject.
    """
    by, there = how.by, old or {}
    reports = [(name, report) for name, each in there.items() for report in each.sources]
    known = [(name, report, report["split"][by]) for name, report in reports if by in report.get("split", {})]
    home = {group: name for name, _, group in known}
    twins = {identity_of(report): group for _, report, group in known}  # copies of one file stay together
    groups = [twins.setdefault(each.file.identity, _group_of(each, by)) for each in plan.sources]
    sizes: Counter[str] = Counter()
    for group, source in zip(groups, plan.sources, strict=True):
        sizes[group] += source.description.n_samples
    new = {group: n for group, n in sizes.items() if group not in home}
    home |= deal(new, how.shares, {name: manifest.total_samples for name, manifest in there.items()})
    parts: dict[str, Entries] = {name: [] for name in how.shares}
    for group, source in zip(groups, plan.sources, strict=True):
        about = {**source.description.report, "split": {"by": by, by: group}}
        parts[home[group]].append(replace(source, description=replace(source.description, report=about)))
    return parts


def _group_of(source: PlannedSource, by: str) -> str:
    group = recording_group(source.description.report, by)
    if group is None and by == "subject":
        remedy = "split by session or time, or name the subject in the file"
        raise SourceError("it does not name its subject", file=source.file.path, remedy=remedy)
    return group or source.file.identity


def split_by_time(plan: ConversionPlan, how: Split, work: Work) -> dict[str, Entries]:
    """Cut each source into contiguous blocks of its time, one for each name, with a window left out between two.

    Raises:
        SourceError: a source has no time.
    """
    jobs = [job for source in plan.sources for job in _blocks_of(source, how, plan.config)]
    parts: dict[str, Entries] = {name: [] for name in how.shares}
    for (_, name, _, _), entry in zip(jobs, work.apply(_look_at_block, jobs), strict=True):
        parts[name].append(entry)
    return parts


_Job = tuple[PlannedSource, str, tuple[int, int] | None, SourceConfig]


def _blocks_of(source: PlannedSource, how: Split, config: SourceConfig) -> Iterator[_Job]:
    """Yield the source, a name, its block of time (ns) and how to read it, for each name."""
    if "segments" not in source.description.report:
        remedy = "split by session, or split segments by time when they are loaded (split=)"
        raise SourceError("its samples have no time to be split by", file=source.file.path, remedy=remedy)
    grid = Grid(config.windows.bin_width_ns, config.windows.origin_ns)
    spans = np.array(source.description.report["segments"], np.int64).reshape(-1, 2)
    # Those of windows around events begin and end inside bins, which are theirs too; two of them may share one.
    bins = np.stack([grid.bin_of(spans[:, 0]), grid.bin_of(spans[:, 1] - 1) + 1], axis=1)
    segments = [(int(a), int(b)) for a, b in union([bins])]
    blocks = time_blocks(segments, list(how.shares.values()), config.windows.sequence_length)
    for name, block in zip(how.shares, blocks, strict=True):
        yield source, name, block and (grid.start_of(block[0]), grid.start_of(block[1])), config


def _look_at_block(job: _Job) -> PlannedSource | SourceError:
    """Return what one block of a source gives: the source, read within it."""
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
    report, whole = entry.description.report, source.description.report
    for name, reasons in (("windows", "dropped"), ("spikes", "outside_because")):
        if name in report:
            lost = _discount_other_blocks(report[name][reasons], whole[name][reasons])
            about[name] = {**report[name], reasons: lost}
    return replace(entry, description=replace(entry.description, report={**report, **about}))


def _discount_other_blocks(block: Mapping[str, int], whole: Mapping[str, int]) -> dict[str, int]:
    """Count what the whole source has in other blocks apart from what was dropped, by reason."""
    dropped, not_given = dict(block), whole.get(NOT_GIVEN, 0)
    elsewhere = dropped.pop(NOT_GIVEN, 0) - not_given  # the block is given to it as an interval, too
    dropped |= {NOT_GIVEN: not_given, ELSEWHERE: elsewhere}
    return {reason: n for reason, n in dropped.items() if n}
