"""The stages that every loading process runs: batch plans, dealt over ranks and workers, and what reads them.

Knows order, cursor and readers; knows nothing of how far the trainer is.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.utils.data
import webdataset as wds
from webdataset.utils import pytorch_worker_info

from ..errors import NeurofmxError
from ..order import cursor as cursors
from ..order.cursor import BatchPlan
from .collate import collate_webdataset
from .dataset import OpenDataset
from .memory import BatchMemory, Memory
from .options import ProcessingOptions
from .readers import Handler, skipping
from .transforms import SampleRngs, as_batch_transforms, as_target_transform, label_column, labels_of, takes_rng

logger = logging.getLogger("neurofmx_wds")

Read = Callable[[np.ndarray], Any]

_ORDER_CHUNK = 1 << 14  # positions whose ids are worked out at once


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
        opened: what is read.
        processing: what is done to it.
        start: where the epoch begins.
        memory: where batches are made; None: in memory of their own.
    """

    opened: OpenDataset
    processing: ProcessingOptions
    start: Start = field(default_factory=Start)
    memory: Memory | None = None

    @property
    def only_copies(self) -> bool:
        """Whether nothing but copying is done to samples."""
        return self._as_stored and not self._relabels and not self.processing.batch_transform

    @property
    def does_work(self) -> bool:
        """Whether making a batch is more than copying it (and replacing labels by those of a group)."""
        processing = self.processing
        changed = processing.batch_transform or processing.target_transform is not None or not self._as_stored
        return bool(changed) or self.opened.reader.sample_bytes is None

    def planned_ids(self, plans: Iterable[BatchPlan]) -> Iterator[tuple[BatchPlan, np.ndarray]]:
        """Each plan with the ids of its samples; the order is worked out for many positions at once."""
        order = self.opened.order.of_epoch(self.start.get()[0])
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
        yield from found if self.processing.transform is None else _warn_if_none_returned(found)

    def batches(self, plans: Iterable[BatchPlan]) -> Iterator[Any]:
        """Stage: plans → batches, transformed."""
        if self.only_copies:
            fast = functools.partial(self.opened.reader.read_batch, memory=self.memory)
            read: Read = self.opened.reader.read_batch  # what is left of a batch must not lie in a worker's slot
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
        return self.processing.transform is None and self.processing.collate_fn is collate_webdataset

    def _fetch(self, plans: Iterable[BatchPlan], read: Read, again: RetryPlan) -> Iterator[Any]:
        """Read all plans; `again` says how, where that fails."""
        only_copies = self.only_copies
        for plan, ids in self.planned_ids(plans):
            try:
                item: Any = read(ids)
            except Exception as error:
                if self.processing.handler is wds.reraise_exception:
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
            if not self.processing.handler(
                error
            ):  # stopping one rank or worker would lose samples silently, or hang the others
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
        n = len(self.opened.order)
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
        return SampleRngs(self.opened.order.seed, self.start.get()[0], self.opened.reader.dataset_ids(ids))

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
            batch: Any = self.opened.reader.read_batch(ids, memory)
            if self._relabels:
                batch["label"] = label_column(self._labels(ids, batch.get("label"), batch["metadata"]))
        else:
            samples = self._samples(ids, rngs) if made is None else [sample for sample, _ in made]
            batch = self._collated(ids, samples)
        for transform in as_batch_transforms(self.processing.batch_transform):
            try:
                batch = transform(batch, rngs) if takes_rng(transform) else transform(batch)
            except Exception as error:
                raise self._blamed("batch_transform", error, ids[0]) from error
            if batch is None:
                raise self._wrong_return("batch_transform", "batch", None, ids[0])
        return memory.pin(batch) if memory is not None else batch

    def _collated(self, ids: np.ndarray, samples: list[Any]) -> Any:
        if self.processing.collate_fn is None:
            return samples
        try:
            batch = self.processing.collate_fn(samples)
        except Exception as error:
            # Only now: a user's own collate_fn may take what is no dict.
            for sample_id, sample in zip(ids, samples, strict=True):
                if not isinstance(sample, Mapping):
                    raise self._wrong_return("transform", "sample", sample, sample_id) from error
            raise
        if (
            self.processing.transform is None
            and getattr(self.processing.collate_fn, "func", None) is collate_webdataset
        ):  # as in read_batch
            batch = {**{name: [None] * len(samples) for name in self.opened.reader.fields}, **batch}
        return batch

    def _samples(self, ids: np.ndarray, rngs: SampleRngs) -> list[Any]:
        samples = self.opened.reader.read_samples(ids)
        if self._relabels:
            fields = [sample.get("label") for sample in samples]
            labels = self._labels(ids, fields, [sample["metadata"] for sample in samples])
            for sample, label in zip(samples, labels, strict=True):
                sample["label"] = np.asarray(label) if isinstance(label, (int, float)) else label
        if self.processing.transform is None:
            return samples
        transform = self.processing.transform
        if self._takes_rng:
            return self._each("transform", ids, (transform(each, rngs[i]) for i, each in enumerate(samples)))
        return self._each("transform", ids, (transform(each) for each in samples))

    @property
    def _relabels(self) -> bool:
        return self.opened.labels is not None or self.processing.target_transform is not None

    def _labels(self, ids: np.ndarray, column: Any, metadata: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The samples' labels as they are delivered, by their group and `target_transform`."""
        given = labels_of(column, metadata) if self.opened.labels is None else self.opened.labels[ids].tolist()
        target_transform = as_target_transform(self.processing.target_transform)
        if target_transform is None:
            return given
        return self._each("target_transform", ids, (target_transform(label) for label in given))

    @functools.cached_property
    def _takes_rng(self) -> bool:
        return self.processing.transform is not None and takes_rng(self.processing.transform)

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
        file, key = self.opened.reader.name(int(place))
        return NeurofmxError(f"the {what} raised {type(error).__name__}: {error}", file=file, sample=key)

    def _wrong_return(self, what: str, wanted: str, returned: Any, place: np.int64) -> NeurofmxError:
        """An error for a user's function that returns something else than it was given, mostly nothing."""
        file, key = self.opened.reader.name(int(place))
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
