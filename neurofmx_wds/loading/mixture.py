"""Mixtures of datasets: what they are made of, and batches read from several datasets at once.

Knows readers and the order of mixtures; knows nothing of batches' sizes, ranks or training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..format.finding import ShardDir
from ..order.mixture import Length, MixtureOrder, Stage, Weight, block_counts
from .collate import MetadataList, stack
from .memory import BatchMemory, Memory
from .readers import JoinedShards, ShardReader
from .window_reader import WindowReader

DATASET = "__dataset__"  # the field with the name of the dataset of each sample

Part = ShardDir | Mapping[str, Any]
Weights = Mapping[str, Weight] | Mapping[int, Mapping[str, Weight]]
PartReader = ShardReader | WindowReader


@dataclass(frozen=True)
class Mixture:
    """Datasets that are mixed, made by :func:`mix`.

    Attributes:
        datasets: name → its directory, or a dictionary of arguments of the loader that are its own.
        weights: name → its share of the samples; or epoch → weights from that on; None: equal shares.
        epoch: "longest", "shortest" or a number of samples.

    Example:
        >>> mixture = mix({"mouse": "shards_of_mice", "monkey": "shards_of_monkeys"}, weights={"mouse": 2, "monkey": 1})
        >>> mixture.weights, mixture.epoch
        ({'mouse': 2, 'monkey': 1}, 'longest')
    """

    datasets: Mapping[str, Part]
    weights: Weights | None = None
    epoch: Length = "longest"

    def stages(self) -> list[Stage]:
        """Return the proportions, by ascending epochs.

        Raises:
            ValueError: weights that do not go with the datasets.
        """
        return stages_of(self.weights, list(self.datasets))


def mix(
    datasets: Mapping[str, Part] | Sequence[Part], weights: Weights | Sequence[Weight] | None = None,
    epoch: Length = "longest",
) -> Mixture:  # fmt: skip
    """Mix datasets, or selections of one, for a loader's first argument.

    Args:
        datasets: name → directory, or → a dictionary of loader arguments of its own, such as
            ``{"shard_dir": "shards", "select": {"label": 3}}``. Datasets of a list are called "0", "1", ….
        weights: name → share of the samples (of a list: a list); by default all are equal. ``{0: {…}, 5: {…}}`` gives
            other weights from epoch 5 on. Where weights are 2 and 1, each three samples in a row are 2 of the first and
            1 of the second.
        epoch: what an epoch of the mixture is: "longest" (until each dataset was read at least once), "shortest" (no
            sample comes twice) or a number of samples. Each dataset goes on where the epoch before has left it.

    Raises:
        ValueError: no dataset, or weights that do not go with the datasets.

    Example:
        >>> mixture = mix(["a", {"shard_dir": "b", "select": {"label": 3}}], weights=[3, 1])
        >>> list(mixture.datasets), mixture.stages()
        (['0', '1'], [Stage(first_epoch=0, counts=(3, 1))])
    """
    if not isinstance(datasets, Mapping):
        if isinstance(datasets, str) or not isinstance(datasets, Sequence):
            raise ValueError(f"mix() takes a mapping or a list of datasets, not {datasets!r}")
        if weights is not None and not isinstance(weights, Mapping):
            if len(weights) != len(datasets):
                raise ValueError(f"there are {len(datasets)} datasets and {len(weights)} weights")
            weights = {str(i): weight for i, weight in enumerate(weights)}
        datasets = {str(i): dataset for i, dataset in enumerate(datasets)}
    if not datasets or not all(isinstance(name, str) for name in datasets):
        raise ValueError(f"a mixture needs datasets with names, not {datasets!r}")
    if not (weights is None or isinstance(weights, Mapping)):
        raise ValueError(f"weights must give a number for each name of a dataset, not {weights!r}")
    mixture = Mixture(datasets, weights, epoch)
    mixture.stages()
    return mixture


def stages_of(weights: Mapping[Any, Any] | None, names: Sequence[Any]) -> list[Stage]:
    """Return the proportions that weights mean, by ascending epochs.

    Args:
        weights: as of :func:`mix`.
        names: of the datasets, in their order.

    Raises:
        ValueError: weights that do not go with the names, or epochs that are none.

    Example:
        >>> stages_of({0: {"a": 1, "b": 0}, 4: {"a": 1, "b": 1}}, ["a", "b"])
        [Stage(first_epoch=0, counts=(1, 0)), Stage(first_epoch=4, counts=(1, 1))]
    """
    if weights is None:
        weights = dict.fromkeys(names, 1)
    if not (weights and all(isinstance(each, Mapping) for each in weights.values())):
        weights = {0: weights}
    epochs = list(weights)
    if not all(isinstance(e, (int, np.integer)) and not isinstance(e, bool) and e >= 0 for e in epochs):
        raise ValueError(f"weights that change must be given by the epoch from which they hold, not by {epochs!r}")
    if 0 not in epochs:
        raise ValueError("weights that change must begin with those of epoch 0")
    return [Stage(int(epoch), _counts(weights[epoch], names)) for epoch in sorted(epochs)]


def _counts(weights: Mapping[Any, Weight], names: Sequence[Any]) -> tuple[int, ...]:
    missing, unknown = [n for n in names if n not in weights], [n for n in weights if n not in names]
    if missing or unknown:
        wrong = f"{missing[0]!r} has none" if missing else f"there is no {unknown[0]!r}"
        raise ValueError(f"weights={dict(weights)!r}: {wrong}; give one for each of {', '.join(map(repr, names))}")
    return block_counts([weights[name] for name in names])


class MixtureReader:
    """Reads batches whose samples come from several datasets.

    Args:
        order: says which dataset an id is of.
        readers: of the datasets; several may be the same one.
        chosen: for each dataset the ids of its samples in its reader; None: all.
        n_sources: of each dataset, how many sources its manifest lists.

    Attributes:
        fields: those of any of them: every batch has them, a list of None where its samples lack one.
    """

    def __init__(
        self,
        order: MixtureOrder,
        readers: Sequence[PartReader],
        chosen: Sequence[np.ndarray | None],
        n_sources: Sequence[int] = (),
    ) -> None:
        self.order = order
        self._first_sources = np.cumsum([0, *n_sources])
        self.fields = list(dict.fromkeys(name for reader in readers for name in reader.fields))
        given = list({id(reader): reader for reader in readers}.values())
        self.readers: list[PartReader] = [each.with_fields(self.fields) for each in given]
        self._alike = len({each.kind for each in self.readers}) == 1
        self._reader_of = np.array([next(i for i, each in enumerate(given) if each is reader) for reader in readers])
        self._chosen = list(chosen)
        self._any_chosen = any(each is not None for each in chosen)
        self._moves = np.array([isinstance(each, WindowReader) and each.windows.jitter for each in self.readers])
        self._any_moves = bool(self._moves.any())
        self._names = np.array([*order.names, None], object)[:-1]
        self._memory = BatchMemory()
        if not self._alike and any(isinstance(r, WindowReader) and r.windows.spikes != "dense" for r in self.readers):
            raise ValueError("spikes that are not dense need the same windows= for all datasets of a mixture")
        self._join()

    def _join(self) -> None:
        """See to it that stored samples of several datasets are read like those of one."""
        self._shards: JoinedShards | None = None
        self._numbers: np.ndarray | None = None  # of each sample among those of all readers; None: its id
        stored = [reader for reader in self.readers if type(reader) is ShardReader]
        if not self._alike or len(stored) < len(self.readers):
            return
        self._shards = JoinedShards(stored)
        if self._any_chosen or any(reader.selected is not None for reader in stored):
            self._numbers = np.concatenate([
                stored[r].dataset_ids(np.arange(len(part)) if ids is None else ids) + self._shards.bases[r]
                for part, ids, r in zip(self.order.parts, self._chosen, self._reader_of.tolist(), strict=True)
            ])  # fmt: skip

    @property
    def where(self) -> str:
        """Where the datasets are."""
        return ", ".join(dict.fromkeys(reader.where for reader in self.readers))

    @property
    def sample_bytes(self) -> int:
        """About how many bytes are copied for a sample: of the largest."""
        return max(reader.sample_bytes for reader in self.readers)

    @property
    def open_bytes(self) -> int:
        """Bytes of memory that everything kept open for reading takes, roughly."""
        return sum(reader.open_bytes for reader in self.readers)

    def expect_share(self, share: float) -> None:
        """Do nothing: how much of each dataset an epoch reads depends on its weight."""

    @property
    def prefetch_bytes(self) -> int:
        """How much is requested before it is needed, where a dataset is behind a URL."""
        return max(getattr(reader, "prefetch_bytes", 0) for reader in self.readers)

    def expect(self, ids: np.ndarray, _: object = None) -> None:
        """Begin to fetch the samples with these ids from datasets behind URLs, and return at once."""
        for each in self._reads(ids)[1]:
            if getattr(each.reader, "prefetch_bytes", 0):
                each.reader.expect(each.ids)  # type: ignore[union-attr]

    def of_epoch(self, seed: int, epoch: int) -> MixtureReader:
        """Return the reader of an epoch of the mixture."""
        if not self._any_moves:
            return self
        twin = object.__new__(MixtureReader)
        twin.__dict__.update(self.__dict__, order=self.order.of_epoch(epoch))
        return twin

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> dict[str, Any]:
        """Return the samples with these ids as one batch, with ``__dataset__``, a list of B names.

        Args:
            ids: shape (B,), int64.
            memory: where its tensors are made.

        Raises:
            NeurofmxError: a sample cannot be read.
        """
        if not len(ids):
            return {}
        if self._shards is not None:
            datasets, own = self.order.numbers(ids)
            numbers = own if self._numbers is None else self._numbers[own]
            joined = self._shards.read_batch(numbers, memory or self._memory)
            if joined is not None:
                joined[DATASET] = self._names[datasets].tolist()
                return joined
        datasets, reads = self._reads(ids)
        batch = reads[0].reader.read_batch(reads[0].ids, memory) if len(reads) == 1 else self._joined(reads, memory)
        batch[DATASET] = self._names[datasets].tolist()
        return batch

    def _joined(self, reads: Sequence[_Read], memory: Memory | None) -> dict[str, Any]:
        order = np.argsort(np.concatenate([each.rows for each in reads]))
        if self._alike:
            parts: Any = [(each.reader, each.ids) for each in reads]
            batch = reads[0].reader.read_together(parts, order, memory or self._memory)
            if batch is not None:
                return batch
        columns: dict[str, list[Any]] = {}
        samples = [sample for each in reads for sample in each.reader.read_samples(each.ids)]
        samples = [samples[i] for i in order.tolist()]
        names = dict.fromkeys([*self.fields, *(name for sample in samples for name in sample)])
        columns = {name: [sample.get(name) for sample in samples] for name in names}
        keys, metadata = columns.pop("__key__"), columns.pop("metadata")
        batch = {name: stack(values) for name, values in columns.items()}
        batch |= {"metadata": MetadataList(metadata), "__key__": keys}
        return memory.pin(batch) if isinstance(memory, BatchMemory) else batch

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Return the samples with these ids, each with ``__dataset__``, the name of its dataset.

        Raises:
            NeurofmxError: a sample cannot be read.
        """
        datasets, reads = self._reads(ids)
        samples: list[Any] = [None] * len(ids)
        for each in reads:
            for row, sample in zip(each.rows.tolist(), each.reader.read_samples(each.ids), strict=True):
                samples[row] = sample
        for sample, name in zip(samples, self._names[datasets].tolist(), strict=True):
            sample[DATASET] = name
        return samples

    def shares(self, ids: np.ndarray) -> list[tuple[PartReader, np.ndarray, np.ndarray]]:
        """Return which of the readers reads which samples: readers, own ids and places among these ids."""
        return [(each.reader, each.ids, each.rows) for each in self._reads(ids)[1]]

    def _reads(self, ids: np.ndarray) -> tuple[np.ndarray, list[_Read]]:
        """Return the dataset of each sample, and which reader reads which of them."""
        datasets, places, laps = self.order.split(ids)
        which = self._reader_of[datasets]
        if self._any_moves:  # windows that another own epoch moves elsewhere are read apart
            moved = self._moves[which]
            which = np.where(moved, len(self.readers) + datasets + laps * len(self._names), which)
        reads = []
        groups = set(which.tolist())
        for group in sorted(groups):
            rows = np.flatnonzero(which == group) if len(groups) > 1 else np.arange(len(ids))
            dataset, lap = int(datasets[rows[0]]), int(laps[rows[0]])
            reader = self.readers[self._reader_of[dataset]]
            if group >= len(self.readers):
                part = self.order.parts[dataset]
                reader = reader.of_epoch(part.seed, self.order.own_epochs[dataset] + lap)
            reads.append(_Read(reader, self._in_reader(datasets[rows], places[rows]), rows))
        return datasets, reads

    def _in_reader(self, datasets: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the ids that samples have in their reader."""
        ids = places
        if not self._any_chosen:
            return ids
        for i in dict.fromkeys(datasets.tolist()):
            chosen = self._chosen[i]
            if chosen is not None:
                here = datasets == i
                ids = np.where(here, chosen[np.where(here, places, 0)], ids)
        return ids

    def sources(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each sample's source among those of all datasets, in their order: int64 (B,)."""
        datasets, reads = self._reads(ids)
        numbers = np.empty(len(ids), np.int64)
        for each in reads:
            numbers[each.rows] = each.reader.sources(each.ids)
        return numbers + self._first_sources[datasets]

    def _one(self, sample_id: int) -> tuple[PartReader, int]:
        _, (read,) = self._reads(np.array([sample_id]))
        return read.reader, int(read.ids[0])

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return the ids, for random numbers; a sample that comes again within an epoch has another."""
        return ids

    def file(self, sample_id: int) -> Path | None:
        """Return the file that holds a sample; None where no single file does."""
        reader, own = self._one(sample_id)
        return reader.file(own)

    def name(self, sample_id: int) -> tuple[Path | None, str]:
        """Return the file and the key of a sample, for error messages."""
        reader, own = self._one(sample_id)
        return reader.name(own)

    def __copy__(self) -> MixtureReader:
        twin = object.__new__(MixtureReader)
        twin.__dict__.update(self.__dict__, readers=[copy.copy(reader) for reader in self.readers])
        twin._join()
        return twin


@dataclass(frozen=True)
class _Read:
    """Samples that one reader reads.

    Attributes:
        reader: the reader.
        ids: of the samples in it.
        rows: their places in the batch, ascending.
    """

    reader: PartReader
    ids: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class MixedLabels:
    """The labels of a mixture's samples, where all its datasets are those of a group.

    Attributes:
        order: says which dataset an id is of.
        labels: of each dataset, int64.
    """

    order: MixtureOrder
    labels: Sequence[np.ndarray]

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        datasets, places, _ = self.order.split(ids)
        return np.array([self.labels[i][k] for i, k in zip(datasets.tolist(), places.tolist(), strict=True)], np.int64)
