"""Which samples, and which time of each recording, are in a part of a dataset.

Knows shards, manifests and where windows are; knows nothing of order or batches.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..format.manifest import recording_group
from ..format.shards import ShardSet
from ..nwb.clock import Grid, Int64, intersection, union
from ..nwb.windows import intervals_given
from ..order.splitting import deal, deal_at_random, time_blocks
from .cutting import CutRecording
from .partition import Partition
from .selection import values_of
from .sessions import Sessions
from .windows import Windows

logger = logging.getLogger("neurofmx_wds")

_IN_METADATA = {"session": ("session_id", "session"), "subject": ("subject_id", "subject")}
_TIMES = ("t_start_ns", "t_stop_ns")


# Stored samples


def samples_of_part(shards: ShardSet, partition: Partition) -> np.ndarray:
    """Return the samples in the parts that are read.

    A split by time has blocks, one after the other, of each recording, and windows that reach over a border are in no
    part. A warning tells how many these are, or how many windows of a random split have time in common with another
    part.

    Args:
        shards: the dataset.
        partition: the parts.

    Returns:
        Sample ids, ascending, int64.

    Raises:
        ValueError: the samples lack what they are to be split by, or none is in these parts.
    """
    n = shards.n_samples
    sessions = Sessions(shards.manifest.sources if shards.manifest else (), "")
    recordings = _recordings(shards, sessions)
    if partition.by == "time":
        part = _parts_by_time(shards, recordings, partition)
    elif partition.by == "random":
        part = np.empty(n, np.int64)
        for rows in _strata(shards, partition, n):
            part[rows] = deal_at_random(len(rows), list(partition.shares.values()), partition.seed)
    else:
        groups = _groups(shards, sessions, recordings, partition.by)
        strata = None if partition.stratify is None else _values(shards, (partition.stratify,), "stratify")
        home = _dealt(groups, strata, partition)
        part = np.array([home[group] for group in groups], np.int64)
    if partition.by not in ("time", *_IN_METADATA):
        _warn_of_shared_time(shards, recordings, part, partition)
    chosen = np.flatnonzero(np.isin(part, partition.numbers))
    if not len(chosen):
        raise partition.nothing()
    return chosen


def _recordings(shards: ShardSet, sessions: Sessions) -> np.ndarray | None:
    """Return the number of each sample's source, int64 (n,); None where the manifest does not say."""
    if not len(sessions.sources) or sessions.ends[-1] != shards.n_samples:
        return None
    return np.searchsorted(sessions.ends, np.arange(shards.n_samples), side="right")


def _groups(shards: ShardSet, sessions: Sessions, recordings: np.ndarray | None, by: str) -> list[Any]:
    """Return what must stay together, of each sample."""
    if by not in _IN_METADATA:
        return _values(shards, (by,), "split_by")
    if recordings is None:
        return _values(shards, _IN_METADATA[by], "split_by")
    of_source = groups_of(sessions.sources, by)
    return [of_source[i] for i in recordings.tolist()]


def groups_of(sources: Sequence[Mapping[str, Any]], by: str) -> list[str]:
    """Return the session or subject of each source of a manifest; copies of one file have that of the first.

    Raises:
        ValueError: a source names no subject.
    """
    twins: dict[Hashable, str] = {}
    groups = []
    for i, source in enumerate(sources):
        group = recording_group(source, by)
        if group is None and by == "subject":
            name = source.get("path", i)
            raise ValueError(f"split_by='subject': {name} does not name its subject; split by session or time")
        content = source.get("sha256") or source.get("version")
        group = group or content or source.get("path", str(i))
        groups.append(twins.setdefault(content or f"source {i}", group))
    return groups


def _values(shards: ShardSet, names: Sequence[str], option: str) -> list[Any]:
    """Return the value of each sample's metadata of the first of some names that all have."""
    for name in names:
        values = values_of(shards, name)
        if None not in values:
            return values
    missing = values.index(None)
    problem = f"{option}={names[-1]!r}: {values.count(None)} of {len(values)} samples have no {' or '.join(names)}"
    raise ValueError(f"{problem} in their metadata, the first is sample {missing}")


def _strata(shards: ShardSet, partition: Partition, n: int) -> Iterable[np.ndarray]:
    if partition.stratify is None:
        return [np.arange(n)]
    rows: dict[Any, list[int]] = defaultdict(list)
    for i, value in enumerate(_values(shards, (partition.stratify,), "stratify")):
        rows[value].append(i)
    return [np.array(each) for each in rows.values()]


def _dealt(groups: Sequence[Any], strata: Sequence[Any] | None, partition: Partition) -> dict[Any, int]:
    """Return the number of each group's part; with strata, groups of one most common value are dealt apart."""
    sizes = Counter(groups)
    kinds: dict[Any, Counter[Any]] = defaultdict(Counter)
    for group, value in zip(groups, groups if strata is None else strata, strict=True):
        kinds[group][None if strata is None else value] += 1
    stratum_of = {group: values.most_common(1)[0][0] for group, values in kinds.items()}
    number = {name: i for i, name in enumerate(partition.shares)}
    home: dict[Any, int] = {}
    for stratum in dict.fromkeys(stratum_of.values()):
        within = {str(group): n for group, n in sizes.items() if stratum_of[group] == stratum}
        dealt = deal(within, partition.shares, seed=partition.seed)
        home |= {group: number[dealt[str(group)]] for group in sizes if stratum_of[group] == stratum}
    return home


def _spans(shards: ShardSet) -> np.ndarray:
    """Return the start and stop of each sample, ns: int64 (n, 2)."""
    return np.array([_values(shards, (name,), "split_by='time' needs times, and") for name in _TIMES], np.int64).T


def _parts_by_time(shards: ShardSet, recordings: np.ndarray | None, partition: Partition) -> np.ndarray:
    spans = _spans(shards)
    part = np.full(len(spans), -1, np.int64)
    which = np.array(_values(shards, ("source", "session_id"), "split_by")) if recordings is None else recordings
    for recording in dict.fromkeys(which.tolist()):
        rows = np.flatnonzero(which == recording)
        own = spans[rows]
        length = int((own[:, 1] - own[:, 0]).max())
        segments = [(int(a), int(b)) for a, b in union([own])]
        for i, block in enumerate(time_blocks(segments, list(partition.shares.values()), length)):
            if block is not None:
                part[rows[(block[0] <= own[:, 0]) & (own[:, 1] <= block[1])]] = i
    lost = int((part < 0).sum())
    if lost:
        logger.warning("split by time: %d of %d samples, at the borders, are in no part", lost, len(part))
    return part


def _warn_of_shared_time(
    shards: ShardSet, recordings: np.ndarray | None, part: np.ndarray, partition: Partition
) -> None:
    """Warn of windows that overlap with one of another part: what is learned of one is known of the other."""
    starts, stops = (values_of(shards, name) for name in _TIMES)
    if recordings is None or None in starts or None in stops:
        return
    spans = np.array([starts, stops], np.int64).T
    order = np.lexsort([spans[:, 0], recordings])
    own, where, home = spans[order], recordings[order], part[order]
    shared = (where[1:] == where[:-1]) & (home[1:] != home[:-1]) & (own[1:, 0] < own[:-1, 1])
    if shared.any():
        logger.warning(
            "split by %s: %d windows overlap with the next one, which is in another part; split by session, subject "
            "or time to keep what is trained on out of what is tested on", partition.by, int(shared.sum()),
        )  # fmt: skip


# Windows that are cut while loading


def recordings_of_part(
    recordings: Sequence[CutRecording], sources: Sequence[Mapping[str, Any]], windows: Windows, partition: Partition
) -> list[CutRecording]:
    """Return the recordings with windows in the parts that are read only, as ``convert --split`` has them.

    Args:
        recordings: with all windows.
        sources: what the manifest reports on each.
        windows: how windows are cut.
        partition: the parts.

    Raises:
        ValueError: no window is in these parts, or a recording does not say what it is to be split by.
    """
    if partition.by not in ("time", *_IN_METADATA) or partition.stratify is not None:
        given = "stratify" if partition.stratify is not None else f"split_by={partition.by!r}"
        raise ValueError(f"{given}: windows cut while loading are split by session, subject or time")
    find = _blocks if partition.by == "time" else _whole_recordings
    allowed = find(recordings, sources, partition)
    kept = [
        CutRecording(each.segmented, windows.inside(_also_within(each, intervals)))
        for each, intervals in zip(recordings, allowed, strict=True)
    ]
    if not any(len(each.plan.windows) for each in kept):
        raise partition.nothing()
    return kept


def _also_within(recording: CutRecording, intervals: Int64) -> Int64:
    given = recording.config.intervals_ns
    return intervals if given is None else intersection([intervals_given(recording.config), intervals])


def _whole_recordings(
    recordings: Sequence[CutRecording], sources: Sequence[Mapping[str, Any]], partition: Partition
) -> list[Int64]:
    sizes: Counter[str] = Counter()
    groups = groups_of(sources, partition.by)
    for group, recording in zip(groups, recordings, strict=True):
        sizes[group] += len(recording.plan.windows)
    home = deal(sizes, partition.shares, seed=partition.seed)
    everything = [_extent(recording) for recording in recordings]
    none = np.empty((0, 2), np.int64)
    return [each if home[group] in partition.parts else none for each, group in zip(everything, groups, strict=True)]


def _extent(recording: CutRecording) -> Int64:
    valid = recording.plan.valid
    return np.array([[valid.min(), valid.max()]]) if len(valid) else np.empty((0, 2), np.int64)


def _blocks(
    recordings: Sequence[CutRecording], sources: Sequence[Mapping[str, Any]], partition: Partition
) -> list[Int64]:
    """Return the blocks of each recording's time (ns)."""
    found = []
    for recording in recordings:
        grid, spans = recording.grid, np.array(recording.segments, np.int64).reshape(-1, 2)
        # Around events they begin and end inside bins, which are theirs too.
        bins = union([np.stack([grid.bin_of(spans[:, 0]), grid.bin_of(spans[:, 1] - 1) + 1], axis=1)])
        blocks = time_blocks([(int(a), int(b)) for a, b in bins], list(partition.shares.values()), recording.length)
        chosen = [_in_ns(grid, block) for i, block in enumerate(blocks) if i in partition.numbers and block]
        found.append(np.array(chosen, np.int64).reshape(-1, 2))
    return found


def _in_ns(grid: Grid, block: tuple[int, int]) -> tuple[int, int]:
    return grid.start_of(block[0]), grid.start_of(block[1])
