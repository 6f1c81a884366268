"""Reads what plans ask for: the last stage of every loading process.

Knows the order, recipes and skipping; knows nothing of how far the trainer is.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..order.cursor import BatchPlan
from .collate import collate_webdataset
from .dataset import OpenDataset
from .expecting import expecting
from .flattening import FlattenRagged
from .interfaces import Order
from .memory import BatchMemory, Memory
from .options import ProcessingOptions
from .plans import Start
from .recipes import CollatedBatch, CopiedBatch, Recipe, SingleSample, StoredBatch
from .samples import SampleMaker
from .skipping import BadFiles, PartialBatch, Skipper
from .stand_ins import mark, stand_in
from .threads import in_threads
from .transforms import BatchTransforms, as_batch_transforms

logger = logging.getLogger("neurofmx_wds")
_ORDER_CHUNK = 1 << 14  # positions whose ids are computed at once, at most


@dataclass
class Fetcher:
    """Reads what plans ask for.

    Attributes:
        opened: what is read.
        processing: what is done to it.
        start: where the epoch begins.
        memory: where batches are made; None: in memory of their own.
        bad_files: file → its error, of those known to be bad as a whole; None: such as are found in an iteration.
        threads: threads that read batches, and batches that are read ahead or under way; (0, 0): this thread reads.
    """

    opened: OpenDataset
    processing: ProcessingOptions
    start: Start = field(default_factory=Start)
    memory: Memory | None = None
    bad_files: BadFiles | None = None
    threads: tuple[int, int] = (0, 0)

    @property
    def only_copies(self) -> bool:
        """Whether batches are delivered exactly as they are stored."""
        asked = self.processing
        changes_labels = self.opened.labels is not None or asked.target_transform is not None
        return self._as_stored and not changes_labels and not asked.batch_transform

    @property
    def does_work(self) -> bool:
        """Whether making a batch is more than copying it (and replacing labels by those of a group)."""
        functions = as_batch_transforms(self.processing.batch_transform)
        changed = self.processing.target_transform is not None
        changed |= not all(isinstance(function, FlattenRagged) for function in functions)
        return changed or not self._as_stored or self.opened.reader.sample_bytes is None

    @property
    def _as_stored(self) -> bool:
        """Whether batches are read as such, not made of samples."""
        return self.processing.transform is None and self.processing.collate_fn is collate_webdataset

    def samples(self, plans: Iterable[BatchPlan]) -> Iterator[Any]:
        """Stage: plans of one row → samples."""
        opened = self._opened_now()
        found = self._fetch(plans, opened, SingleSample(self._maker(opened)))
        yield from found if self.processing.transform is None else _warn_if_none_returned(found)

    def batches(self, plans: Iterable[BatchPlan]) -> Iterator[Any]:
        """Stage: plans → batches."""
        opened = self._opened_now()
        yield from self._fetch(plans, opened, self._recipe(opened))

    def _opened_now(self) -> OpenDataset:
        return self.opened.of_epoch(self.start.get()[0])

    def _maker(self, opened: OpenDataset) -> SampleMaker:
        return SampleMaker(opened, self.processing)

    def _recipe(self, opened: OpenDataset) -> Recipe:
        """Return how batches are made."""
        reader, asked = opened.reader, self.processing
        if self.only_copies:
            return CopiedBatch(reader, self.memory)
        # A worker's slot is written again, but a transform may keep what it was given.
        memory = self.memory if isinstance(self.memory, BatchMemory) else None
        transforms = BatchTransforms(as_batch_transforms(asked.batch_transform), reader)
        if self._as_stored:
            return StoredBatch(self._maker(opened), transforms, memory)
        ours = asked.transform is None and getattr(asked.collate_fn, "func", None) is collate_webdataset
        fields = reader.fields if ours else ()  # as in a batch that is read as such
        return CollatedBatch(self._maker(opened), asked.collate_fn, fields, transforms, memory)

    def _fetch(self, plans: Iterable[BatchPlan], opened: OpenDataset, recipe: Recipe) -> Iterator[Any]:
        """Yield what a recipe makes of all plans, or what is left of it."""
        bad_files = {} if self.bad_files is None else self.bad_files
        skipper = Skipper(self.processing.handler, recipe, opened.reader, bad_files)
        read = functools.partial(_item, skipper, self.start.get()[3], len(opened.order))
        planned = expecting(planned_ids(plans, opened.order), opened.reader, opened.order)
        for item in in_threads(read, planned, *self.threads) if self.threads[0] else map(read, planned):
            yield item
            if recipe.reuses_memory:
                del item  # the next may then lie in its memory; so in all that hand batches on
            # Others go when the next is there: malloc would give their memory back, and take new memory page by page.


def _item(skipper: Skipper, n_ranks: int, n_samples: int, planned: tuple[BatchPlan, np.ndarray]) -> Any:
    """Return what a skipper makes of one plan; where nothing is left of it and ranks step together, a stand-in.

    Args:
        skipper: reads it.
        n_ranks: number of ranks.
        n_samples: in an epoch.
        planned: the plan and the ids of its samples, shape (B,), int64.
    """
    plan, ids = planned
    item = skipper.read(ids)
    if isinstance(item, PartialBatch):
        if not item.rest and n_ranks > 1:
            item.rest = [stand_in(skipper.recipe, ids, n_samples)]
        if plan.fresh is False:
            item.n_skipped = 0  # counted where the row came first
    if plan.fresh is not None:
        left, n_skipped = (item.rest, item.n_skipped) if isinstance(item, PartialBatch) else ([item], 0)
        for each in left:  # of a plan of one row: that, or one that stands in for it
            mark(each, plan.fresh and n_skipped == 0)
    return item


def planned_ids(plans: Iterable[BatchPlan], order: Order) -> Iterator[tuple[BatchPlan, np.ndarray]]:
    """Yield each plan with the ids of its samples; they are computed for more and more positions at once."""
    first, ids = 0, np.empty(0, np.int64)
    for plan in plans:
        stop = plan.start + plan.n
        if not (first <= plan.start and stop <= first + len(ids)):
            first = plan.start
            ids = order.sample_ids(first, min(len(order), max(stop, first + min(_ORDER_CHUNK, 8 * len(ids)))))
        yield plan, ids[plan.start - first : stop - first]


def _warn_if_none_returned(samples: Iterator[Any]) -> Iterator[Any]:
    """Warn once that a transform has returned None: a stage behind may drop it, so it is no error."""
    warned = False
    for sample in samples:
        if sample is None and not warned:
            warned = True
            logger.warning("the transform returned None, and that is delivered: let it return the sample")
        yield sample
