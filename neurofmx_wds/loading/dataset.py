"""Opening a dataset for loading: what reads it, in which order, and what its states are known by.

Knows shards and selections; knows nothing of batches, ranks or transforms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..format.remote_shards import RemoteShardSet, open_shards_anywhere
from ..format.shards import ShardSet
from ..order.epoch import ORDER_VERSION
from ..order.grouped import ResumableOrder
from ..storage.cache import ShardCache
from .flattening import ragged_fields
from .interfaces import Reader
from .mixture import MixedLabels
from .options import OrderOptions, ReadOptions
from .readers import ShardReader
from .remote_reader import RemoteShardReader
from .selection import choose_samples
from .sessions import NO_SESSIONS, Sessions
from .splitting import samples_of_part
from .window_reader import WindowReader
from .windows import Windows

_BLOCK_BYTES = 1 << 20  # samples that are read in one go with shuffle=True


@dataclass(frozen=True, eq=False)
class OpenDataset:
    """A dataset that is ready to be loaded.

    Attributes:
        reader: reads its samples.
        order: of epoch 0.
        fingerprint: 32 hexadecimal digits that tell this dataset and selection from others, or 64, where the first 32
            stand for the shards' checksums and the last 32 for their sizes.
        labels: the label of each sample, by id, int64, where the samples are those of a group; else None.
        sessions: the recordings that the manifest lists, and their units.
        parts: of a mixture, its datasets.
        normalization: what fields are normalized by: field → session → (mean, std).
        vocabulary: the one that was given for its indices; None: none was.
        ragged: the fields that are read and whose arrays differ in length, by the manifest: an empty array of each.
    """

    reader: Reader
    order: ResumableOrder
    fingerprint: str
    labels: np.ndarray | MixedLabels | None = None
    sessions: Sessions = NO_SESSIONS
    parts: tuple[OpenDataset, ...] = ()
    normalization: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: Any = None
    ragged: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def of_epoch(self, epoch: int) -> OpenDataset:
        """Return the dataset as it is read in an epoch."""
        return replace(self, reader=self.reader.of_epoch(self.order.seed, epoch), order=self.order.of_epoch(epoch))


def open_dataset(read: ReadOptions, order: OrderOptions) -> OpenDataset:
    """Open a dataset of shards.

    Raises:
        FileNotFoundError, ShardError, ManifestError: it cannot be opened.
        GroupError: there is no such group, or the dataset does not have its labels.
        ValueError: no sample fits the selection.
        NeurofmxError: the selection raised.
    """
    if read.windows is not None:
        return _open_windows(read, order, read.windows)
    shards = _open_shards(read)
    selected, labels = choose_samples(shards, read.select, read.group, read.groups, read.checksums is not False)
    if read.partition is not None:
        selected, labels = _only_in(samples_of_part(shards, read.partition), selected, labels)
    reader = _open_reader(shards, read, read.modalities, selected)
    sessions = _sessions(reader, read)
    fingerprint = "".join(_fingerprint(each, selected, labels) for each in shards.fingerprints())
    block_size = _default_block_size(shards, order.buffer_size)
    ragged = ragged_fields(shards.manifest.modalities if shards.manifest else {})
    ragged = {name: empty for name, empty in ragged.items() if name in reader.fields}
    made = order.order(reader.counts, block_size)
    return OpenDataset(reader, made, fingerprint, labels, sessions, ragged=ragged)


def _only_in(
    part: np.ndarray, selected: np.ndarray | None, labels: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the selected samples, and their labels, that are in a part of the dataset.

    Raises:
        ValueError: there is none.
    """
    if selected is None:
        return part, labels
    within = np.isin(selected, part)
    if not within.any():
        raise ValueError(f"none of the {len(selected)} samples that are selected is in this part of the dataset")
    return selected[within], None if labels is None else labels[within]


def _sessions(reader: ShardReader, read: ReadOptions) -> Sessions:
    """Return the recordings of a dataset, and those of their units that are chosen."""
    sessions = Sessions.of(reader.shards.manifest, reader.where, reader.shards.n_samples)
    by_source = [name for name in ("units", "normalize", "pad_units", "fill", "vocabulary") if getattr(read, name)]
    if read.windows is None and by_source:
        sessions.require(reader.shards.n_samples, by_source[0])
    if read.units is None:
        return sessions
    if not {"spikes", "spike_units"} & set(reader.fields):
        raise ValueError(f"units: {reader.where} holds no spikes, or they are not among the modalities asked for")
    return sessions.choose(read.units, from_stored=read.windows is None)


def _open_shards(read: ReadOptions) -> ShardSet:
    cache = ShardCache(read.cache_dir, read.cache_size)
    return open_shards_anywhere(read.directory, read.shard_pattern, cache, read.storage_options)


def _open_reader(
    shards: ShardSet, read: ReadOptions, modalities: Sequence[str] | None = None, selected: np.ndarray | None = None
) -> ShardReader:
    if isinstance(shards, RemoteShardSet):
        return RemoteShardReader(shards, modalities, selected, read.checksums, int(read.prefetch_bytes))
    return ShardReader(shards, modalities, selected, read.io, checksums=read.checksums)


def _fingerprint(shards: str, selected: np.ndarray | None, labels: np.ndarray | None) -> str:
    fingerprint = _digest(f"{ORDER_VERSION} {shards}".encode())
    for chosen in (selected, labels):
        if chosen is not None:
            fingerprint = _digest(fingerprint.encode() + chosen.tobytes())
    return fingerprint


def _open_windows(read: ReadOptions, order: OrderOptions, windows: Windows) -> OpenDataset:
    """Open a dataset of segments as the windows that are cut from them."""
    shards = _open_shards(read)
    stored = _open_reader(shards, read)
    modalities = None if read.modalities is None else tuple(read.modalities)
    windows = replace(windows, modalities=modalities)
    sessions = _sessions(stored, read)
    reader = WindowReader(stored, windows, read.select, sessions, read.partition)
    spec = json.dumps(windows.to_json(), sort_keys=True).encode()
    spec += b"" if read.select is None and read.partition is None else reader.chosen
    fingerprint = "".join(_digest(f"{ORDER_VERSION} {each} ".encode() + spec) for each in shards.fingerprints())
    block_size = max(1, min(_BLOCK_BYTES // reader.sample_bytes, order.buffer_size // 32))
    return OpenDataset(reader, order.order(reader.counts, block_size), fingerprint, sessions=sessions)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _default_block_size(shards: ShardSet, buffer_size: int) -> int:
    """Return how many neighbours stay together where shuffle=True.

    That is about 1 MiB of samples, but few enough for a window to mix 32 blocks; and a shard where these are unpacked.
    """
    if shards.compressed:
        return max(1, int(shards.counts.max(initial=1)))
    return max(1, min(_BLOCK_BYTES // shards.sample_bytes, buffer_size // 32))
