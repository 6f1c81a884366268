"""Batch plans, dealt over ranks and workers: the first stages that every loading process runs.

Knows positions; knows nothing of samples, readers or how far the trainer is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import webdataset as wds

from ..order.batching import Batching
from ..order.cursor import BatchPlan
from .ranks import worker_info


class Start:
    """Where an epoch's iteration begins, written by the trainer and read by the workers that it starts.

    It is a tensor: in shared memory, persistent workers see the next epoch too.

    Args:
        epoch: the epoch.
        position: of its first sample that is to be delivered.
        rank, world_size: the share of the trainer's process.
    """

    def __init__(self, epoch: int = 0, position: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self._values = torch.tensor([epoch, position, rank, world_size, 0])

    def share(self) -> Start:
        """Let worker processes see later changes too; return itself."""
        self._values.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def set(self, epoch: int, position: int, rank: int, world_size: int) -> None:
        """Begin another iteration."""
        self._values.copy_(torch.tensor([epoch, position, rank, world_size, self.run + 1]))

    def get(self) -> tuple[int, int, int, int]:
        """Return epoch, position, rank and world size."""
        epoch, position, rank, world_size, _ = self._values.tolist()
        return epoch, position, rank, world_size

    @property
    def run(self) -> int:
        """How many iterations have begun."""
        return int(self._values[-1])


@dataclass
class PlanSource(wds.PipelineStage):  # type: ignore[misc]
    """First stage: the batch plans of the rest of an epoch, for all ranks, in global order.

    Attributes:
        start: where it begins.
        batching: how the epoch is cut.
    """

    start: Start
    batching: Batching

    def run(self) -> Iterator[BatchPlan]:
        """Yield the plans."""
        epoch, position, _, world_size = self.start.get()
        yield from self.batching.plans(epoch, position, world_size)


@dataclass
class SplitByNode:
    """webdataset's ``split_by_node``, for the rank that the trainer's process found: spawned workers cannot.

    Attributes:
        start: says which rank that is.
    """

    start: Start

    def __call__(self, plans: Iterable[BatchPlan]) -> Iterator[BatchPlan]:
        """Yield the plans of this rank."""
        _, _, rank, world_size = self.start.get()
        if worker_info()[:2] == (rank, world_size):
            yield from wds.split_by_node(plans)
        else:
            yield from itertools.islice(plans, rank, None, world_size)


@dataclass
class Chunks:
    """Stage: plans → lists of neighbouring plans, which stay together when plans are dealt to workers.

    Attributes:
        size: plans in a list.
    """

    size: int

    def __call__(self, plans: Iterable[BatchPlan]) -> Iterator[list[BatchPlan]]:
        """Yield the lists; the last may be shorter."""
        plans = iter(plans)
        while chunk := list(itertools.islice(plans, self.size)):
            yield chunk


flatten = itertools.chain.from_iterable  # stage: lists of plans → plans
