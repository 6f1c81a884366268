"""How much memory loading takes, and how many workers and batches ahead fit into a limit.

Knows what reads batches, and how many of them lie where; knows nothing of files.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..format.info import human_size
from ..order.cursor import BatchPlan
from .collate import MetadataList
from .fetcher import Fetcher
from .memory import KEPT
from .skipping import PartialBatch
from .workers import BUNDLE_BYTES

_PROBED = 8  # samples that are read to see how large they are
_FORKED, _STARTED = 40 << 20, 256 << 20  # what a worker process takes itself: measured 8 to 20, and 157 MB
_READING = 2 << 20  # what a process that reads takes beside batches and indexes: measured 0.6 MB


@dataclass(frozen=True)
class Load:
    """How many samples are under way: the loader's arguments of these names (`prefetch_factor` a number)."""

    batch_size: int
    num_workers: int
    prefetch_factor: int


@dataclass(frozen=True)
class Cost:
    """What loading takes, in bytes.

    Attributes:
        stored: of a sample as it is read.
        delivered: of a sample as it is delivered.
        reading: in each process that reads, whatever the number of samples under way: the shards' indexes for the most.
        process: of a worker itself.
        in_place: whether batches are read straight to where they are delivered from.
    """

    stored: int
    delivered: int
    reading: int
    process: int
    in_place: bool

    def of(self, load: Load) -> int:
        """Return the bytes that are in use at most, beside the trainer's own.

        Pages of mapped shards, which the system takes back whenever it needs them, do not count.

        A thread reads `prefetch_factor` batches ahead, while the trainer has one and asks for the next; memory of
        other batches, such as the smaller last one of an epoch, is kept too. A worker has a slot more than that (of
        small batches: a bundle) and the trainer copies out of them; the worker also has a batch outside them. What is
        transformed and collated is there several times, and what was freed is not given back at once.
        """
        more = 0 if self.in_place else 2 * self.stored + 4 * self.delivered
        if load.num_workers == 0:
            batches = math.ceil(KEPT * (load.prefetch_factor + 2))
            return self.reading + load.batch_size * (batches * self.delivered + more)
        worker = self.process + self.reading
        worker += load.batch_size * ((load.prefetch_factor + 1 + 1) * self.delivered + more)
        if self.in_place and 2 * load.batch_size * self.delivered <= BUNDLE_BYTES:
            worker += (load.prefetch_factor + 1) * BUNDLE_BYTES
        return 3 * load.batch_size * self.delivered + load.num_workers * worker


def cost_of(fetcher: Fetcher, forks: bool) -> Cost:
    """Return what a loader takes, judged by a few samples, which are read, transformed and collated for that.

    Args:
        fetcher: what reads.
        forks: whether workers are forked from the trainer.
    """
    opened = replace(fetcher.opened, reader=copy.copy(fetcher.opened.reader))  # whose shards do not stay open
    probe = replace(fetcher, opened=opened)
    n = len(opened.order)
    evenly = np.linspace(0, n - 1, min(n, _PROBED)).astype(np.int64)
    places = np.unique(np.concatenate([evenly, opened.order.first_positions])).tolist()
    stored, delivered = [1], [1]
    for place in places:
        ids = opened.order.sample_ids(place, place + 1)
        batch = next(probe.batches([BatchPlan(place, 1)]))
        if not isinstance(batch, PartialBatch):
            delivered.append(_size_of(batch))
            stored.append(_size_of(opened.reader.read_batch(ids)))
    return Cost(
        max(stored),
        max(delivered),
        _READING + opened.reader.open_bytes,
        _FORKED if forks else _STARTED,
        fetcher.only_copies,
    )


def _size_of(value: Any) -> int:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(map(_size_of, value.values()))
    if isinstance(value, (list, tuple, MetadataList)):
        return sum(map(_size_of, value))
    return sys.getsizeof(value)


def reduced(cost: Cost, load: Load, limit: int) -> Load:
    """Return what fits into `limit` bytes: with fewer batches ahead, then with fewer workers.

    Raises:
        ValueError: batches of this size do not fit at all; the message says which would.

    Example:
        >>> cost = Cost(stored=1000, delivered=1000, reading=10**6, process=10**7, in_place=True)
        >>> reduced(cost, Load(batch_size=100, num_workers=2, prefetch_factor=4), 50 * 10**6)
        Load(batch_size=100, num_workers=1, prefetch_factor=3)
        >>> reduced(cost, Load(batch_size=100, num_workers=2, prefetch_factor=4), 1_200_000)
        Traceback (most recent call last):
        ValueError: memory_limit=1.2 MB is too little for batch_size=100, which takes 1.3 MB; batch_size=66 would fit
    """
    for workers in range(load.num_workers, -1, -1):
        for ahead in range(load.prefetch_factor, min(load.prefetch_factor, 1 if workers else 0) - 1, -1):
            fewer = replace(load, num_workers=workers, prefetch_factor=ahead)
            if cost.of(fewer) <= limit:
                return fewer
    none, one = cost.of(Load(0, 0, 0)), cost.of(Load(1, 0, 0))
    least = cost.of(Load(load.batch_size, 0, 0))
    problem = f"memory_limit={human_size(limit)} is too little for batch_size={load.batch_size}"
    if limit < one:
        raise ValueError(f"{problem}: a single sample takes {human_size(one)}, {human_size(none)} of it for any number")
    fits = (limit - none) // (one - none)
    raise ValueError(f"{problem}, which takes {human_size(least)}; batch_size={fits} would fit")


def within(fetcher: Fetcher, load: Load, limit: int, forks: bool) -> Load:
    """Return what fits into `limit` bytes, and warn where that is less than asked for.

    Args:
        fetcher: reads a few samples, to see what they take.
        load: what is asked for.
        limit: bytes.
        forks: whether workers are forked from the trainer.

    Raises:
        ValueError: batches of this size do not fit at all.
    """
    if not len(fetcher.opened.order):
        return load
    cost = cost_of(fetcher, forks)
    fitting = reduced(cost, load, limit)
    if fitting != load:
        changes = [
            f"{name} {before} → {after}"
            for name, before in vars(load).items()
            if (after := getattr(fitting, name)) != before
        ]
        logging.getLogger("neurofmx_wds").warning(
            "memory_limit=%s: %s; loading then takes up to about %s, not %s",
            human_size(limit), ", ".join(changes), human_size(cost.of(fitting)), human_size(cost.of(load)),
        )  # fmt: skip
    return fitting
