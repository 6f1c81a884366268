"""Opening mixtures: several datasets, or the samples of one by the values of a column, as one dataset in one order.

Knows how datasets are opened and mixed; knows nothing of batches, ranks or transforms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from ..errors import did_you_mean
from ..order.epoch import EpochOrder, key_of
from ..order.mixture import MixtureOrder, Stage, epoch_length
from .dataset import OpenDataset, open_dataset
from .mixture import MixedLabels, Mixture, MixtureReader, mix, stages_of
from .options import OrderOptions, ReadOptions
from .sessions import Sessions
from .values import column_of
from .viewed import with_views

_OF_MIXTURES = ("weights", "epoch", "balance")
_OF_ALL = ("normalize", "pad_units", "fill", "vocabulary", "as_dtype")  # what batches of a mixture are changed by


def open_datasets(read: ReadOptions, order: OrderOptions) -> OpenDataset:
    """Open what a loader's first argument gives: one dataset, or several that are mixed.

    Raises:
        FileNotFoundError, NeurofmxError, ValueError: as :func:`open_dataset` and :func:`open_mixture`.
    """
    if read.is_mixture:
        return with_views(open_mixture(read, order), read)
    alone = open_dataset(replace(read, weights=None, epoch=None, balance=None), order)
    opened = alone if read.balance is None else _balanced(alone, read, read.balance)
    return with_views(opened, read)


def open_mixture(read: ReadOptions, order: OrderOptions) -> OpenDataset:
    """Open a mixture of datasets.

    Args:
        read: its `shard_dir` is a mixture, or the mapping that :func:`mix` takes; the rest holds for all datasets
            that say nothing else.
        order: of the mixture.

    Raises:
        ValueError: a dataset with unknown arguments, or weights that do not go with the datasets.
        NeurofmxError: a dataset cannot be opened.
    """
    mixture = read.shard_dir
    if not isinstance(mixture, Mixture):
        mixture = mix(mixture, read.weights, "longest" if read.epoch is None else read.epoch)  # type: ignore[arg-type]
    opened = []
    for name, part in mixture.datasets.items():
        options = _options_of(name, part)
        own = replace(read, **{**dict.fromkeys(_OF_MIXTURES), **options})
        opened.append(open_dataset(own, replace(order, seed=_seed_of(order.seed, name))))
    labels = [each.labels for each in opened if isinstance(each.labels, np.ndarray)]
    if labels and len(labels) < len(opened):
        raise ValueError("group= chooses samples of some datasets of a mixture only; give each dataset a group")
    mixed = _order_of(mixture.stages(), list(mixture.datasets), [each.order for each in opened], order, mixture.epoch)
    n_sources = [len(each.sessions.sources) for each in opened]
    readers: Any = [each.reader for each in opened]
    reader = MixtureReader(mixed, readers, [None] * len(opened), n_sources)
    fingerprint = _fingerprint(mixed, [each.fingerprint for each in opened])
    sessions = Sessions.joined([each.sessions for each in opened])
    ragged = {name: empty for each in opened for name, empty in each.ragged.items()}
    all_labels = MixedLabels(mixed, labels) if labels else None
    return OpenDataset(reader, mixed, fingerprint, all_labels, sessions, tuple(opened), ragged=ragged)


def _balanced(opened: OpenDataset, read: ReadOptions, column: str) -> OpenDataset:
    """Return a dataset as a mixture of the samples with each value of a column.

    Raises:
        ValueError: the samples do not have it, or weights that do not go with its values.
    """
    found = column_of(opened, column, "balance")
    reader, whole = found.reader, opened.order
    if not isinstance(whole, EpochOrder):
        raise TypeError("a mixture is balanced by its weights")
    numbers = found(np.arange(len(whole)))
    chosen = {value: np.flatnonzero(numbers == i) for i, value in enumerate(found.values)}
    chosen = {value: ids for value, ids in chosen.items() if len(ids)}
    names = [str(value) for value in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"balance={column!r}: different values are written alike: {', '.join(map(repr, chosen))}")
    ends = np.cumsum(reader.counts)
    parts = []
    for name, ids in zip(names, chosen.values(), strict=True):
        counts = np.diff(np.searchsorted(ids, ends), prepend=0)
        parts.append(replace(whole, shard_counts=counts, seed=_seed_of(whole.seed, name)))
    order = OrderOptions(seed=whole.seed, shuffle=whole.shuffle, buffer_size=whole.buffer_size)
    mixed = _order_of(stages_of(read.weights, list(chosen)), names, parts, order, read.epoch or "longest")
    mixture = MixtureReader(mixed, [reader] * len(names), list(chosen.values()), [0] * len(names))
    own = _fingerprint(mixed, [opened.fingerprint])
    digest = hashlib.sha256(numbers.tobytes()).hexdigest()
    fingerprint = "".join(
        hashlib.sha256(f"{half} {column} {digest}".encode()).hexdigest()[:32]
        for half in (own[i : i + 32] for i in range(0, len(own), 32))
    )
    labels = opened.labels
    picked = [labels[ids] for ids in chosen.values()] if isinstance(labels, np.ndarray) else []
    mixed_labels = MixedLabels(mixed, picked) if picked else None
    return OpenDataset(mixture, mixed, fingerprint, mixed_labels, opened.sessions, (opened,))


def _options_of(name: str, part: Any) -> dict[str, Any]:
    """Return what a dataset of a mixture says of itself, as the loader's arguments."""
    if isinstance(part, Mixture):
        raise ValueError(f"the dataset {name!r} of the mixture is a mixture: give its datasets instead")
    if not isinstance(part, Mapping):
        return {"shard_dir": part}
    known = [each.name for each in fields(ReadOptions) if each.name not in (*_OF_MIXTURES, *_OF_ALL)]
    for key in part:
        if key not in known:
            problem = f"the dataset {name!r} of the mixture: no argument {key!r}"
            raise ValueError("; ".join(filter(None, [problem, did_you_mean(key, known)])))
    if "shard_dir" not in part:
        raise ValueError(f"the dataset {name!r} of the mixture needs a shard_dir")
    return dict(part)


def _seed_of(seed: int, name: str) -> int:
    """Return the seed of one dataset: others than those of the other datasets, whatever else is mixed."""
    return int(key_of(seed, "dataset", name))


def _order_of(
    stages: Sequence[Stage], names: Sequence[str], parts: Sequence[Any], order: OrderOptions, epoch: Any
) -> MixtureOrder:
    for stage in stages:
        for part, name, count in zip(parts, names, stage.counts, strict=True):
            if count and not len(part):
                raise ValueError(f"the dataset {name!r} of the mixture has no samples")
    length = epoch_length([len(part) for part in parts], stages[0].counts, epoch)
    return MixtureOrder(parts, names, stages, length, order.seed)


def _fingerprint(order: MixtureOrder, parts: Sequence[str]) -> str:
    """Return what tells a mixture from others: its datasets, their orders and weights, and the epoch's length.

    Like that of a dataset it has two halves where those of all its datasets do.
    """
    spec = [[name, part.block_size, len(part)] for name, part in zip(order.names, order.parts, strict=True)]
    text = repr((spec, [(stage.first_epoch, stage.counts) for stage in order.stages], order.length))
    halves = [slice(0, 32), slice(-32, None)] if all(len(part) == 64 for part in parts) else [slice(None)]
    return "".join(hashlib.sha256(repr((text, [p[half] for p in parts])).encode()).hexdigest()[:32] for half in halves)
