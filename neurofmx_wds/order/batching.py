"""How an epoch is cut into the batches of all ranks: batches of one size, or of samples that belong together.

Pure arithmetic: knows neither files nor torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from . import cursor as cursors
from .cursor import BatchPlan
from .grouped import GroupedOrder


class Batching(Protocol):
    """The batches of an epoch, from any position on, for any number of ranks; every rank has equally many."""

    def plans(self, epoch: int, position: int, world_size: int) -> Iterator[BatchPlan]:
        """Yield the plans of all ranks, in global order: rank r takes plans r, r + world_size, …."""

    def n_steps(self, epoch: int, position: int, world_size: int) -> int:
        """Return the number of plans of each rank."""

    def ends(self, epoch: int, position: int, world_size: int) -> Iterator[int]:
        """Yield the position of the next sample after each step; after the last it is the epoch's end."""


@dataclass(frozen=True)
class EvenBatches:
    """Batches of one size.

    Attributes:
        n_samples: samples in an epoch.
        batch_size: samples per batch and rank.
        drop_last: whether samples that do not fill a batch on every rank are left out.
    """

    n_samples: int
    batch_size: int
    drop_last: bool

    def plans(self, epoch: int, position: int, world_size: int) -> Iterator[BatchPlan]:
        """Yield the plans of all ranks."""
        return cursors.batch_plans(position, self.n_samples, self.batch_size, world_size, self.drop_last)

    def n_steps(self, epoch: int, position: int, world_size: int) -> int:
        """Return the number of plans of each rank."""
        return cursors.n_steps(position, self.n_samples, self.batch_size, world_size, self.drop_last)

    def ends(self, epoch: int, position: int, world_size: int) -> Iterator[int]:
        """Yield the position after each step."""
        size = (self.n_samples, self.batch_size, world_size, self.drop_last)
        steps = range(1, cursors.n_steps(position, *size) + 1)
        return (cursors.position_after(position, step, *size) for step in steps)


@dataclass(frozen=True, eq=False)
class GroupedBatches:
    """Batches of samples that belong together.

    Ranks take the batches in turn. Batches that are left for fewer than all ranks are halved until each rank has one,
    so that none mixes what does not belong together.

    Attributes:
        order: of any epoch.
        drop_last: whether batches that are left for fewer than all ranks are left out.
    """

    order: GroupedOrder
    drop_last: bool
    _counts: dict[int, int] = field(default_factory=dict)

    def plans(self, epoch: int, position: int, world_size: int) -> Iterator[BatchPlan]:
        """Yield the plans of all ranks."""
        return itertools.chain.from_iterable(self._steps(epoch, position, world_size))

    def _steps(self, epoch: int, position: int, world_size: int) -> Iterator[list[BatchPlan]]:
        batches = self.order.of_epoch(epoch).batches(position)
        while step := list(itertools.islice(batches, world_size)):
            if len(step) == world_size:
                yield [BatchPlan(start, n) for start, n in step]
            elif not self.drop_last:
                yield self._last(step, world_size)

    def _last(self, batches: list[tuple[int, int]], world_size: int) -> list[BatchPlan]:
        start, n_samples = batches[0][0], len(self.order)
        if n_samples - start < world_size:  # as of batches of one size
            return list(cursors.batch_plans(start, n_samples, 1, world_size, False))
        while len(batches) < world_size:
            i = max(range(len(batches)), key=lambda k: batches[k][1])
            first, n = batches[i]
            batches[i : i + 1] = [(first, n - n // 2), (first + n - n // 2, n // 2)]
        return [BatchPlan(first, n) for first, n in batches]

    def n_steps(self, epoch: int, position: int, world_size: int) -> int:
        """Return the number of plans of each rank; it takes a look at the rest of the epoch."""
        if position or epoch not in self._counts:
            n = sum(1 for _ in self.order.of_epoch(epoch).batches(position))
            if not position:
                self._counts[epoch] = n
        else:
            n = self._counts[epoch]
        full, tail = divmod(n, world_size)
        return full + (tail > 0 and not self.drop_last)

    def ends(self, epoch: int, position: int, world_size: int) -> Iterator[int]:
        """Yield the position after each step."""
        steps = self._steps(epoch, position, world_size)
        step = next(steps, None)
        while step is not None:
            following = next(steps, None)
            yield len(self.order) if following is None else following[0].start
            step = following
