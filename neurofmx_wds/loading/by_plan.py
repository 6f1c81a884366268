"""Batches asked for one by one, by their plan: a loader as torch's map-style dataset and batch sampler.

Frameworks that split a ``DataLoader`` among processes or skip its first batches do so with its batch sampler. Ours
yields plans, which are a few integers, so that nothing is read that is skipped or belongs to another process.
Knows pipelines of batches; knows nothing of frameworks but who deals the plans.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch.utils.data import Dataset, Sampler

from ..errors import NeurofmxError
from ..order.cursor import BatchPlan
from .accelerate_shards import dealing_wrapper
from .pipeline import ResumablePipeline
from .plans import Start
from .queued import report_unsendable
from .skipping import BadFiles, PartialBatch


class PlannedBatch(NamedTuple):
    """A batch of an epoch, not yet read."""

    epoch: int
    plan: BatchPlan


class BatchesByPlan(Dataset[Any]):
    """The batches of a pipeline as a map-style dataset, whose indices are their plans.

    Args:
        batches: a pipeline whose stages make one item of each batch.
    """

    def __init__(self, batches: ResumablePipeline) -> None:
        self.batches = batches
        self._bad_files: tuple[int, BadFiles] = (0, {})  # an epoch, and those found in it

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self.batches.order)

    def set_epoch(self, epoch: int) -> None:
        """Let the sampler's next iteration be of this epoch."""
        self.batches.set_epoch(epoch)

    def __getitem__(self, planned: PlannedBatch) -> Any:
        """Read a batch.

        Raises:
            NeurofmxError: a stage drops batches, or makes several of one or one of several.
        """
        report_unsendable()
        batches = self.batches
        # As one of two ranks: a batch of which all samples are skipped is replaced, for it cannot be left out here.
        fetcher = batches._fetcher(Start(planned.epoch, planned.plan.start, 0, 2))
        if self._bad_files[0] != planned.epoch:
            self._bad_files = planned.epoch, {}
        fetcher.bad_files = self._bad_files[1]
        items: Iterator[Any] = self._noted(fetcher.batches([planned.plan]))
        for stage in batches.pipeline:
            items = batches.invoke(stage, items)
        made = list(items)
        if len(made) != 1:
            raise NeurofmxError(
                f"the stages after the loader make {len(made)} items of a batch; batches that a framework deals or "
                "skips must stay as many",
                remedy="use stages such as .map(…), or batch_transform=",
            )
        return made[0]

    __getitems__ = __getitem__

    def _noted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, PartialBatch):
                self.batches.progress.note(item)
                yield from item.rest
            else:
                yield item


class PlanSampler(Sampler[PlannedBatch]):
    """Yields the plans of this rank's batches from the pipeline's place on; of all ranks to a wrapper that deals them.

    Args:
        batches: the pipeline.
    """

    def __init__(self, batches: ResumablePipeline) -> None:
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of this epoch."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        _, share, n_ranks = self._share()
        steps = self.batches.batching.n_steps(self.batches.epoch, 0, n_ranks)
        return steps * (1 if share is not None else n_ranks)

    def __iter__(self) -> Iterator[PlannedBatch]:
        return self._plans(*self._share())  # now: later the wrapper is not the one that calls

    def _share(self) -> tuple[ResumablePipeline, int | None, int]:
        wrapper = dealing_wrapper()
        if wrapper is not None:
            return self.batches, None, getattr(wrapper, "num_processes", 1)
        return self.batches, self.batches.rank, self.batches.world_size

    @staticmethod
    def _plans(batches: ResumablePipeline, rank: int | None, n_ranks: int) -> Iterator[PlannedBatch]:
        batches.progress.begin(by_plan=True)
        epoch, position = batches.progress.epoch, batches.progress.position
        plans = batches.batching.plans(epoch, position, n_ranks)
        for plan in plans if rank is None else itertools.islice(plans, rank, None, n_ranks):
            yield PlannedBatch(epoch, plan)
        batches.start_epoch(epoch + 1)
