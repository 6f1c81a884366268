"""Choose samples of a dataset by their metadata and their labels.

Knows shards and their indexes; knows nothing of order, batches or training.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import (
    REBUILD_INDEX,
    RESTORE,
    GroupError,
    NeurofmxError,
    ShardError,
    ShardIndexError,
    available_hint,
    join_some,
)
from ..format.columns import Column
from ..format.decoding import decode
from ..format.groups import Group, Groups, linked_group
from ..format.index import ShardIndex
from ..format.manifest import ShardRecord
from ..format.shards import ShardSet
from ..storage.checksums import crc32_of

logger = logging.getLogger("neurofmx_wds")

_SEVERAL = (list, tuple, set, frozenset)  # values in select= of which one must match
_MOST_VALUES = 1000  # of a column, kept for an error message

Select = Mapping[str, Any] | Callable[[dict[str, Any]], bool]


def choose_samples(
    shards: ShardSet, select: Select | None, group: str | None, groups: Groups | None, checksums: bool = True
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Apply `select`, `group` and `groups` of :class:`~neurofmx_wds.WebDatasetLoader` to a dataset.

    Returns:
        The ids of the chosen samples, ascending, int64 (None: all), and the new label of each, int64 (None without a
        group).

    Raises:
        GroupError: there is no such group, or the dataset does not have its labels.
        ValueError: no sample matches.
    """
    selected = None if select is None else select_samples(shards, select)
    requested = _group_of(shards, group, groups)
    if requested is None:
        return selected, None
    ids, labels = group_samples(shards, requested, checksums)
    if selected is None:
        return ids, labels
    common, _, places = np.intersect1d(selected, ids, assume_unique=True, return_indices=True)
    if not len(common):
        raise ValueError(f"select={select!r} matches none of the {len(ids)} samples of the group {requested.name!r}")
    return common, labels[places]


def _group_of(shards: ShardSet, group: str | None, groups: Groups | None) -> Group | None:
    """Return the requested group, or the group that the dataset consists of."""
    linked = linked_group(shards.manifest)
    if group is None:
        if groups is not None:
            raise ValueError("groups= needs group=, the name of a group")
        for path, record in zip(shards.paths if linked else [], shards.records, strict=False):
            _check_link(path, record)
        return linked
    directory = shards.paths[0].parent if shards.paths else Path()
    if linked is not None:
        remedy = "leave group= out, or select from the original dataset"
        raise GroupError(f"the dataset is the group {linked.name!r} already", file=directory, remedy=remedy)
    return Group.of(group, groups, directory)


def _check_link(path: Path, record: ShardRecord) -> None:
    """Reject a shard that was removed or replaced since the group was made; other changes are found when reading."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        problem = f"the shard that it links to is missing: {os.readlink(path)}"
        raise ShardError(problem, file=path, remedy="restore it, or make the group again") from error
    if size != record.n_bytes:
        problem = f"the shard that it links to has changed: it has {size} bytes, not {record.n_bytes}"
        raise ShardError(problem, file=path, remedy="restore it, or make the group again")


def select_samples(shards: ShardSet, select: Select) -> np.ndarray:
    """Return the samples whose metadata, read from the indexes, match.

    Args:
        shards: the dataset.
        select: ``{name: value or list of values}``, all of which must match, or ``f(metadata) -> bool``.

    Returns:
        Sample ids, ascending, int64.

    Raises:
        ValueError: no sample matches; the message lists the values that occur.
        NeurofmxError: `select` raised.

    Example:
        >>> import tempfile
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> from neurofmx_wds.format.shards import open_shards
        >>> out, about = tempfile.mkdtemp(), [{"subject": name} for name in "ABAC"]
        >>> _ = create_shards_from_arrays(out, {"spikes": np.zeros((4, 10))}, metadata=about)
        >>> select_samples(open_shards(out), {"subject": ["A", "C"]})
        array([0, 2, 3])
    """
    shards.expect_indexes(range(len(shards.paths)))
    fits = as_function(select)
    selected = []
    first = 0
    for i in range(len(shards.paths)):
        selected += [first + place for place in _fitting(shards, i, fits)]
        first += shards.index(i).n_samples
    if not selected:
        why = "" if callable(select) else _why_none(shards, select)
        raise ValueError(f"select={select!r} matches none of the {first} samples{why}")
    return np.array(selected, np.int64)


def values_of(shards: ShardSet, name: str) -> list[Any]:
    """Return the value that each sample's metadata have of a name, or its field ``label``; None where it has none.

    Raises:
        ValueError: a value is a list or a dictionary.
        ShardError: a shard is missing or damaged, or a label is.
    """
    values: list[Any] = []
    for i in range(len(shards.paths)):
        if name == "label":
            values += [label if word is None else word for label, word in _labels(shards, i, checksums=True)]
        else:
            values += [about.get(name) for about in _metadata(shards.index(i))]
    if any(isinstance(value, (list, dict)) for value in values):
        raise ValueError(f"the samples' {name} is a list or a dictionary, which cannot be compared")
    return values


def as_function(select: Select) -> Callable[[dict[str, Any]], bool]:
    """Return a selection as a function of metadata."""
    return select if callable(select) else functools.partial(_fits, dict(select))


def ask(fits: Callable[[dict[str, Any]], bool], metadata: dict[str, Any], file: Path | str, sample: str) -> bool:
    """Return whether metadata match.

    Raises:
        NeurofmxError: `fits` raised; it names the file and the sample.
    """
    try:
        return bool(fits(metadata))
    except Exception as error:
        problem = f"select raised {type(error).__name__}: {error}"
        remedy = f"this sample's metadata have {join_some(metadata)}"
        raise NeurofmxError(problem, file=file, sample=sample, remedy=remedy) from error


def _fitting(shards: ShardSet, i: int, fits: Callable[[dict[str, Any]], bool]) -> list[int]:
    """Return the places in shard i of the samples that match."""
    index = shards.index(i)
    file, keys = shards.paths[i], index.sample_keys
    return [place for place, about in enumerate(_metadata(index)) if ask(fits, about, file, keys[place])]


def _why_none(shards: ShardSet, select: Mapping[str, Any]) -> str:
    fields = shards.manifest.modalities if shards.manifest else shards.index(0).columns
    every = (about for i in range(len(shards.paths)) for about in _metadata(shards.index(i)))
    return why_none(every, select, fields)


def why_none(metadata: Iterable[Mapping[str, Any]], select: Mapping[str, Any], fields: Container[str]) -> str:
    """Return which conditions of a selection no sample meets, and the values that occur instead.

    Args:
        metadata: of every sample.
        select: the selection.
        fields: the names of the samples' fields.
    """
    columns: dict[str, dict[str, None]] = {}  # and the values that occur, in this order
    met: set[str] = set()
    for about in metadata:
        met.update(name for name, value in select.items() if name not in met and _fits({name: value}, about))
        for name, value in about.items():
            seen = columns.setdefault(name, {})
            if name in select and len(seen) < _MOST_VALUES:
                seen[repr(value)] = None
    reasons = [_unmet(fields, columns, name, value) for name, value in select.items() if name not in met]
    return "".join(f"; {reason}" for reason in reasons or ["no sample meets all conditions at once"])


def _unmet(fields: Container[str], columns: Mapping[str, Iterable[str]], name: str, value: Any) -> str:
    if name in columns:
        wanted = join_some(map(repr, value if isinstance(value, _SEVERAL) else [value]))
        return f"{name} is never {wanted}; {available_hint(columns[name], wanted)}"
    if name in fields:
        instead = ", labels by group= and groups=" if name == "label" else ""
        return f"{name} is a field, and samples are chosen by their metadata{instead}"
    return f"no sample's metadata have {name!r}; {available_hint(sorted(columns), name)}"


def _fits(wanted: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    absent = object()
    for name, value in wanted.items():
        found = metadata.get(name, absent)
        if found not in value if isinstance(value, _SEVERAL) else found != value:
            return False
    return True


def _metadata(index: ShardIndex) -> list[dict[str, Any]]:
    """Return the metadata of a shard's samples, empty if absent. They are parsed together: that is twice as fast."""
    texts = index.sample_metadata
    try:
        found = json.loads(b"[" + b",".join(text or b"{}" for text in texts) + b"]")
    except (ValueError, RecursionError):
        found = []
    if len(found) != len(texts):
        raise ShardIndexError("the metadata in the index are not JSON", file=index.shard_name, remedy=REBUILD_INDEX)
    return [about if isinstance(about, dict) else {} for about in found]


def group_samples(shards: ShardSet, group: Group, checksums: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples that belong to a group.

    A sample's label is ``label`` in its metadata, and its name ``label_name``: the index holds them, so that no tar is
    read. Where a shard's metadata lack labels, its field ``label`` is read, and nothing else.

    Args:
        shards: the dataset.
        group: the labels wanted.
        checksums: compare the fields that are read with the checksums in the index, where it has them.

    Returns:
        Sample ids, ascending, int64, and the place of each sample's label in the group, int64.

    Raises:
        GroupError: the samples have no labels, or no label of the group occurs.
        ShardError: a shard is missing or damaged, or a label is.
    """
    names = _class_names(shards)
    place_of = _places(group, names)
    shards.expect_indexes(range(len(shards.paths)))
    everywhere: Counter[tuple[Any, Any]] = Counter()
    places: list[np.ndarray] = [np.empty(0, np.int64)]
    for i in range(len(shards.paths)):
        labels = _labels(shards, i, checksums)
        everywhere.update(labels)
        here = (place_of.get(label, place_of.get(name, -1)) for label, name in labels)
        places.append(np.fromiter(here, np.int64, len(labels)))
    place = np.concatenate(places)
    _check_found(group, set(place.tolist()), everywhere, names)
    ids = np.flatnonzero(place >= 0)
    return ids, place[ids]


def _class_names(shards: ShardSet) -> list[str]:
    """Return the names of the labels 0, 1, …, if the manifest has them."""
    names = shards.manifest.modalities.get("label", {}).get("names") if shards.manifest else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _places(group: Group, names: Sequence[str]) -> dict[Any, int]:
    """Return label, by number and by name, → its place in the group."""
    times = Counter(names)
    known = {name: number for number, name in enumerate(names) if times[name] == 1}
    numbers = [known.get(label, label) if isinstance(label, str) else label for label in group.labels]
    repeated = [number for i, number in enumerate(numbers) if number in numbers[:i]]
    if repeated:
        raise GroupError(f"the group {group.name!r} has the label {repeated[0]} twice, by number and by name")
    return {label: place for labels in (numbers, group.labels) for place, label in enumerate(labels)}


def _labels(shards: ShardSet, i: int, checksums: bool) -> list[tuple[Any, Any]]:
    """Return label and name of each sample of shard i; None if absent."""
    metadata = _metadata(shards.index(i))
    labels = [about.get("label") for about in metadata]
    names = [about.get("label_name") for about in metadata]
    if None in labels and (column := shards.index(i).columns.get("label")) is not None:
        stored = _read_labels(shards, i, column, checksums)
        labels = [other if label is None else label for label, other in zip(stored, labels, strict=True)]
    odd = next((each for each in (*labels, *names) if not isinstance(each, (int, float, str, type(None)))), None)
    if odd is not None:
        raise GroupError(f"a label is {type(odd).__name__}, neither a number nor a name", file=shards.paths[i])
    return list(zip(labels, names, strict=True))


def _read_labels(shards: ShardSet, i: int, column: Column, checksums: bool) -> list[Any]:
    """Return the field ``label`` of each sample of shard i, None if absent; no other byte of the tar is read."""
    places = list(zip(column.offset.tolist(), column.size.tolist(), strict=True))
    shards.expect_field(i, column)
    with shards.open(i) as stream:
        payloads = [os.pread(stream.fileno(), size, at) if at >= 0 else b"" for at, size in places]
    if checksums and column.crc32 is not None:
        changed = np.flatnonzero(column.crc32 != np.array([crc32_of([payload]) for payload in payloads], np.uint32))
        if len(changed):
            raise _bad_label(shards, i, column, changed[0], "the bytes have changed: their checksum differs")
    if column.layout is not None and math.prod(column.layout.shape) == 1:
        dtype, begin = np.dtype(column.layout.dtype), column.layout.header_size
        data = b"".join([payload[begin : begin + dtype.itemsize] for payload in payloads])
        return np.frombuffer(data, dtype).tolist()
    suffixes = shards.index(i).suffixes
    labels: list[Any] = []
    for k, payload in zip(column.suffix_id.tolist(), payloads, strict=True):
        try:
            labels.append(None if k < 0 else _value(suffixes[k], payload))
        except ShardError as error:
            raise _bad_label(shards, i, column, len(labels), error.problem) from error
    return labels


def _bad_label(shards: ShardSet, i: int, column: Column, row: int, problem: str) -> ShardError:
    index = shards.index(i)
    key, suffix = index.sample_keys[row], index.suffixes[column.suffix_id[row]]
    return ShardError(problem, file=shards.paths[i], sample=key, member=suffix, remedy=RESTORE)


def _value(suffix: str, payload: bytes) -> Any:
    value = decode(suffix, payload)
    return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.size == 1 else value


def _check_found(
    group: Group, places: set[int], everywhere: Mapping[tuple[Any, Any], int], names: Sequence[str]
) -> None:
    n_bare, n_samples = everywhere.get((None, None), 0), sum(everywhere.values())
    if n_bare == n_samples:
        remedy = "groups need a field `label`, or `label` or `label_name` in each sample's metadata"
        raise GroupError(f"none of the {n_samples} samples has a label", remedy=remedy)
    missing = [label for place, label in enumerate(group.labels) if place not in places]
    known = {*names, *range(len(names))}  # as in a small set for validation
    problem = f"no sample has the label {join_some(missing)} of the group {group.name!r}"
    if missing == [*group.labels] or not known.issuperset(missing):
        there = sorted((label for label in everywhere if label != (None, None)), key=_in_order)
        named = [name if label is None else label if name is None else f"{label} ({name})" for label, name in there]
        raise GroupError(f"{problem}; there are {join_some(named)}")
    if missing:
        logger.warning("%s", problem)
    if n_bare:
        logger.warning("%d of %d samples have no label, so they belong to no group", n_bare, n_samples)


def _in_order(label_and_name: tuple[Any, Any]) -> tuple[Any, ...]:
    return tuple((each is None, isinstance(each, str), each or 0) for each in label_and_name)
