"""The stages that every loading process runs: batch plans, dealt over ranks and workers, and what reads them.

Knows order, cursor and readers; knows nothing of how far the trainer is.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.utils.data
import webdataset as wds
from webdataset.utils import pytorch_worker_info

from ..errors import NeurofmxError
from ..format.groups import Groups
from ..format.shards import ShardDir, ShardSet, open_shards
from ..order import cursor as cursors
from ..order.cursor import BatchPlan
from ..order.epoch import ORDER_VERSION, EpochOrder
from .collate import collate_webdataset
from .memory import BatchMemory, Memory
from .readers import Handler, IOMode, ShardReader, skipping
from .selection import Select, choose_samples
from .transforms import BatchTransform, SampleRngs, Transform, label_column, labels_of, takes_rng

logger = logging.getLogger("neurofmx_wds")

Shuffle = bool | Literal["full"]
Collate = Callable[[Sequence[Any]], Any]
Read = Callable[[np.ndarray], Any]

_ORDER_CHUNK = 1 << 14  # positions whose ids are worked out at once
_BLOCK_BYTES = 1 << 20  # samples that are read in one go with shuffle=True


@dataclass(frozen=True, eq=False)
class EpochSpec:
    """What fixes the order of every epoch of a dataset."""

    shard_counts: np.ndarray
    seed: int
    shuffle: Shuffle
    buffer_size: int
    block_size: int

    def __post_init__(self) -> None:
        checked = self.order(0)  # refuses bad values now, not in a worker; of numpy's integers it makes Python's
        for name in ("seed", "buffer_size", "block_size"):
            object.__setattr__(self, name, getattr(checked, name))

    def order(self, epoch: int) -> EpochOrder:
        """The order of one epoch."""
        return EpochOrder(
            shard_counts=self.shard_counts,
            seed=self.seed,
            epoch=epoch,
            shuffle=self.shuffle,
            buffer_size=self.buffer_size,
            block_size=self.block_size,
        )

    @functools.cached_property
    def n_samples(self) -> int:
        """Samples in an epoch."""
        return int(self.shard_counts.sum())


class Start:
    """Where an epoch's iteration begins, written by the trainer and read by the workers that it starts.

    A tensor: in shared memory, persistent workers see the next epoch too.
    """

    def __init__(self, epoch: int = 0, position: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self._values = torch.tensor([epoch, position, rank, world_size])

    def share(self) -> Start:
        """Let worker processes see what is set later, too."""
        self._values.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def set(self, epoch: int, position: int, rank: int, world_size: int) -> None:
        """Set all four at once."""
        self._values.copy_(torch.tensor([epoch, position, rank, world_size]))

    def get(self) -> tuple[int, int, int, int]:
        """Epoch, position, rank and world size."""
        epoch, position, rank, world_size = self._values.tolist()
        return epoch, position, rank, world_size


@dataclass
class PlanSource(wds.PipelineStage):  # type: ignore[misc]
    """First stage: the batch plans of the rest of an epoch, for all ranks, in global order."""

    start: Start
    n_samples: int
    batch_size: int
    drop_last: bool

    def run(self) -> Iterator[BatchPlan]:
        """Yield the plans."""
        _, position, _, world_size = self.start.get()
        yield from cursors.batch_plans(position, self.n_samples, self.batch_size, world_size, self.drop_last)


@dataclass
class SplitByNode:
    """webdataset's ``split_by_node``, for the rank that the trainer's process found: spawned workers cannot."""

    start: Start

    def __call__(self, plans: Iterable[BatchPlan]) -> Iterator[BatchPlan]:
        _, _, rank, world_size = self.start.get()
        if pytorch_worker_info()[:2] == (rank, world_size):
            yield from wds.split_by_node(plans)
        else:
            yield from itertools.islice(plans, rank, None, world_size)


class Reader(Protocol):
    """What a fetcher reads from: samples and batches by sample id."""

    @property
    def where(self) -> str:
        """Where the samples are, for people."""

    @property
    def fields(self) -> Sequence[str]:
        """Fields that every batch has, if only as a list of None."""

    @property
    def sample_bytes(self) -> int | None:
        """About how many bytes are copied for a sample; None where reading one is more than copying."""

    @property
    def open_bytes(self) -> int:
        """Memory that what is open for reading takes, roughly."""

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> dict[str, Any]:
        """As :meth:`ShardReader.read_batch`."""

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """As :meth:`ShardReader.read_samples`."""

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """As :meth:`ShardReader.dataset_ids`."""

    def name(self, sample_id: int) -> tuple[Path | None, str]:
        """As :meth:`ShardReader.name`."""


@dataclass(frozen=True)
class RetryPlan:
    """How a plan is read again that could not be read at once: each of its samples, then those that can be together.

    Attributes:
        read: any samples to what is delivered.
        make: a single sample to something that `join` takes; where that is all the work, it is not done once more.
        join: the ids of some samples and what `make` made of each, to what is delivered.
    """

    read: Read
    make: Read
    join: Callable[[np.ndarray, Sequence[Any]], Any]


@dataclass
class Fetcher:
    """Reads what the plans ask for.

    Attributes:
        labels: what stands for each sample's label, int64, where the samples are a group's.
    """

    spec: EpochSpec
    reader: Reader
    handler: Handler = wds.reraise_exception
    transform: Transform | None = None
    target_transform: Callable[[Any], Any] | None = None
    collate_fn: Collate | None = None
    batch_transforms: Sequence[BatchTransform] = ()
    labels: np.ndarray | None = None
    start: Start = field(default_factory=Start)
    memory: Memory | None = None

    @property
    def only_copies(self) -> bool:
        """Whether nothing but copying is done to samples."""
        return self._as_stored and not self._relabels and not self.batch_transforms

    def planned_ids(self, plans: Iterable[BatchPlan]) -> Iterator[tuple[BatchPlan, np.ndarray]]:
        """Each plan with the ids of its samples; the order is worked out for many positions at once."""
        order = self.spec.order(self.start.get()[0])
        first, ids = 0, np.empty(0, np.int64)
        for plan in plans:
            stop = plan.start + plan.n
            if not (first <= plan.start and stop <= first + len(ids)):
                first = plan.start
                ids = order.sample_ids(first, min(len(order), max(stop, first + _ORDER_CHUNK)))
            yield plan, ids[plan.start - first : stop - first]

    def samples(self, plans: Iterable[BatchPlan]) -> Iterator[Any]:
        """Stage: plans of one row → samples, transformed."""
        one: Read = lambda ids: self._samples(ids, self._rngs(ids))[0]  # noqa: E731
        found = self._fetch(plans, one, RetryPlan(one, one, lambda _, made: made[0]))
        yield from found if self.transform is None else _warn_if_none_returned(found)

    def batches(self, plans: Iterable[BatchPlan]) -> Iterator[Any]:
        """Stage: plans → batches, transformed."""
        if self.only_copies:
            fast = functools.partial(self.reader.read_batch, memory=self.memory)
            read: Read = self.reader.read_batch  # what is left of a batch must not lie in a worker's slot
            yield from self._fetch(plans, fast, RetryPlan(read, read, lambda ids, _: read(ids)))
        else:
            # A worker's slot is written again, but a transform may keep what it was given.
            memory = self.memory if isinstance(self.memory, BatchMemory) else None
            read = functools.partial(self._batch, memory=memory)
            join = functools.partial(self._batch, memory=memory)
            again = (
                RetryPlan(read, read, lambda ids, _: read(ids))
                if self._as_stored
                else RetryPlan(read, self._made, join)
            )
            yield from self._fetch(plans, read, again)

    @property
    def _as_stored(self) -> bool:
        """Whether batches are read as such, not made of samples."""
        return self.transform is None and self.collate_fn is collate_webdataset

    def _fetch(self, plans: Iterable[BatchPlan], read: Read, again: RetryPlan) -> Iterator[Any]:
        """Read all plans; `again` says how, where that fails."""
        only_copies = self.only_copies
        for plan, ids in self.planned_ids(plans):
            try:
                item: Any = read(ids)
            except Exception as error:
                if self.handler is wds.reraise_exception:
                    raise
                item = self._remnant(again, ids, error)
                if plan.fresh is False:
                    item.n_skipped = 0  # counted where the row came first
            if plan.fresh is not None:
                left, n_skipped = (item.rest, item.n_skipped) if isinstance(item, PartialBatch) else ([item], 0)
                for each in left:  # of a plan of one row: that, or one that stands in for it
                    _mark(each, plan.fresh and n_skipped == 0)
            yield item
            if only_copies:
                del item  # the next may then lie in its memory; so in all that hand batches on
            # Others go when the next is there: malloc would give their memory back, and take new memory page by page.

    def _remnant(self, again: RetryPlan, ids: np.ndarray, error: Exception) -> PartialBatch:
        """What is left of a plan when `handler` has been asked about each sample that cannot be read."""
        causes: dict[str, str] = {}

        def may_skip(error: Exception) -> bool:
            if not self.handler(error):  # stopping one rank or worker would lose samples silently, or hang the others
                raise error
            causes.setdefault(getattr(error, "file", None) or "", str(error))
            return True

        made: list[Any] = []
        left = ids[skipping(lambda one: made.append(again.make(one)), ids, may_skip)]
        rest: list[Any] = []
        try:
            rest = [again.join(left, made)] if made else []
        except Exception:
            left, rest = _fitting(again.read, left, may_skip)
        if not rest and self.start.get()[3] > 1:
            rest = [self._stand_in(again.read, ids, error)]
        return PartialBatch(len(ids) - len(left), rest, causes)

    def _stand_in(self, read: Read, ids: np.ndarray, error: Exception) -> Any:
        """A sample that can be read, marked as repeated: all ranks must step together."""
        n = self.spec.n_samples
        leaps = (1 << k for k in range(n.bit_length()))  # soon out of a shard that cannot be read
        for i in (int(ids[-1]) + step for step in itertools.chain(leaps, range(1, n))):
            try:
                item = read(np.array([i % n]))
            except Exception as another:
                logger.debug("no stand-in: %s", another)
                continue
            _mark(item, False)
            return item
        raise error

    def _rngs(self, ids: np.ndarray) -> SampleRngs:
        return SampleRngs(self.spec.seed, self.start.get()[0], self.reader.dataset_ids(ids))

    def _made(self, ids: np.ndarray) -> tuple[Any, SampleRngs]:
        """A single sample, transformed, and what goes on giving its random numbers."""
        rngs = self._rngs(ids)
        return self._samples(ids, rngs)[0], rngs

    def _batch(
        self,
        ids: np.ndarray,
        made: Sequence[tuple[Any, SampleRngs]] | None = None,
        *,
        memory: BatchMemory | None,
    ) -> Any:
        """A batch of the samples with these ids; of those that are `made` already, where they are given."""
        rngs = self._rngs(ids) if made is None else SampleRngs.joined([rngs for _, rngs in made])
        if self._as_stored:
            batch: Any = self.reader.read_batch(ids, memory)
            if self._relabels:
                batch["label"] = label_column(self._labels(ids, batch.get("label"), batch["metadata"]))
        else:
            samples = self._samples(ids, rngs) if made is None else [sample for sample, _ in made]
            batch = self._collated(ids, samples)
        for transform in self.batch_transforms:
            try:
                batch = transform(batch, rngs) if takes_rng(transform) else transform(batch)
            except Exception as error:
                raise self._blamed("batch_transform", error, ids[0]) from error
            if batch is None:
                raise self._wrong_return("batch_transform", "batch", None, ids[0])
        return memory.pin(batch) if memory is not None else batch

    def _collated(self, ids: np.ndarray, samples: list[Any]) -> Any:
        if self.collate_fn is None:
            return samples
        try:
            batch = self.collate_fn(samples)
        except Exception as error:
            # Only now: a user's own collate_fn may take what is no dict.
            for sample_id, sample in zip(ids, samples, strict=True):
                if not isinstance(sample, Mapping):
                    raise self._wrong_return("transform", "sample", sample, sample_id) from error
            raise
        if self.transform is None and getattr(self.collate_fn, "func", None) is collate_webdataset:  # as in read_batch
            batch = {**{name: [None] * len(samples) for name in self.reader.fields}, **batch}
        return batch

    def _samples(self, ids: np.ndarray, rngs: SampleRngs) -> list[Any]:
        samples = self.reader.read_samples(ids)
        if self._relabels:
            fields = [sample.get("label") for sample in samples]
            labels = self._labels(ids, fields, [sample["metadata"] for sample in samples])
            for sample, label in zip(samples, labels, strict=True):
                sample["label"] = np.asarray(label) if isinstance(label, (int, float)) else label
        if self.transform is None:
            return samples
        transform = self.transform
        if self._takes_rng:
            return self._each("transform", ids, (transform(each, rngs[i]) for i, each in enumerate(samples)))
        return self._each("transform", ids, (transform(each) for each in samples))

    @property
    def _relabels(self) -> bool:
        return self.labels is not None or self.target_transform is not None

    def _labels(self, ids: np.ndarray, column: Any, metadata: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The samples' labels as they are delivered, by their group and `target_transform`."""
        given = labels_of(column, metadata) if self.labels is None else self.labels[ids].tolist()
        if self.target_transform is None:
            return given
        target_transform = self.target_transform
        return self._each("target_transform", ids, (target_transform(label) for label in given))

    @functools.cached_property
    def _takes_rng(self) -> bool:
        return self.transform is not None and takes_rng(self.transform)

    def _each(self, what: str, ids: np.ndarray, results: Generator[Any, None, None]) -> list[Any]:
        """What a user's function makes of each sample. A generator: in it StopIteration is an error, not the end."""
        done: list[Any] = []
        try:
            for result in results:
                done.append(result)
        except Exception as error:
            raise self._blamed(what, error, ids[len(done)]) from error
        return done

    def _blamed(self, what: str, error: Exception, place: np.int64) -> NeurofmxError:
        """An error in a user's function, with the sample at which it came up."""
        file, key = self.reader.name(int(place))
        return NeurofmxError(f"the {what} raised {type(error).__name__}: {error}", file=file, sample=key)

    def _wrong_return(self, what: str, wanted: str, returned: Any, place: np.int64) -> NeurofmxError:
        """An error for a user's function that returns something else than it was given, mostly nothing."""
        file, key = self.reader.name(int(place))
        problem = f"the {what} returned {'None' if returned is None else type(returned).__name__}, not a {wanted}"
        remedy = f"let it return the {wanted}, even if changed in place"
        return NeurofmxError(problem, file=file, sample=key, remedy=remedy)


@dataclass
class PartialBatch:
    """What is left of a plan some of whose samples cannot be read.

    Attributes:
        n_skipped: how many.
        rest: the batch (or sample) of the others; none where nothing is left and no other rank waits.
        causes: what is wrong first in each file.
    """

    n_skipped: int
    rest: list[Any]
    causes: Mapping[str, str]


def _warn_if_none_returned(samples: Iterator[Any]) -> Iterator[Any]:
    """Say once that a transform has returned nothing: a stage behind may drop it, so it is no error."""
    told = False
    for sample in samples:
        if sample is None and not told:
            told = True
            logger.warning("the transform returned None, and that is delivered: let it return the sample")
        yield sample


def _fitting(read: Read, ids: np.ndarray, may_skip: Handler) -> tuple[np.ndarray, list[Any]]:
    """What is left of samples that can be made, but not into a batch: those that can be one alone, or none."""
    while len(ids):
        kept = ids[skipping(read, ids, may_skip)]
        try:
            return kept, [read(kept)] if len(kept) else []
        except Exception as error:
            if len(kept) == len(ids) and may_skip(error):  # no single one is at fault
                break
        ids = kept
    return ids[:0], []


def _mark(item: Any, fresh: bool) -> None:
    """Say in the last step of an epoch, or of a stand-in, whether it is new."""
    if isinstance(item, dict):
        single = isinstance(item.get("__key__"), str)
        item["__mask__"] = fresh if single else torch.tensor([fresh])


def open_dataset(
    shard_dir: ShardDir,
    shard_pattern: str,
    shuffle: Shuffle,
    buffer_size: int,
    seed: int,
    modalities: Sequence[str] | None,
    select: Select | None,
    group: str | None,
    groups: Groups | None,
    block_size: int | None,
    io: IOMode,
    cache_dir: str | os.PathLike[str] | None,
    cache_size: int,
    checksums: bool | None,
) -> tuple[Fetcher, str]:
    """Open a dataset for loading; arguments and errors as :class:`WebDatasetLoader`.

    Returns:
        What reads it, and the fingerprint of dataset and selection.
    """
    shards = open_shards(shard_dir, shard_pattern, cache_dir, cache_size)
    fingerprint = hashlib.sha256(f"{ORDER_VERSION} {shards.fingerprint()}".encode()).hexdigest()[:32]
    selected, labels = choose_samples(shards, select, group, groups, checksums is not False)
    for chosen in (selected, labels):
        if chosen is not None:
            fingerprint = hashlib.sha256(fingerprint.encode() + chosen.tobytes()).hexdigest()[:32]
    reader = ShardReader(shards, modalities, selected, io, checksums=checksums)
    if block_size is None:
        block_size = _default_block_size(shards, buffer_size)
    spec = EpochSpec(reader.counts, seed, shuffle, buffer_size, block_size)
    return Fetcher(spec, reader, labels=labels), fingerprint


def _default_block_size(shards: ShardSet, buffer_size: int) -> int:
    """About 1 MiB of samples, but few enough for a window to mix 32 blocks; a shard where shards are unpacked first."""
    if shards.compressed:
        return max(1, int(shards.counts.max(initial=1)))
    return max(1, min(_BLOCK_BYTES // shards.sample_bytes, buffer_size // 32))
