"""The loader of batches: in this process, or from worker processes.

Knows the resumable pipeline and memory; knows nothing of shards.
"""

from __future__ import annotations

import copy
import functools
import logging
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.utils.data
import webdataset as wds

from ..order.grouped import GroupedOrder
from .batch import Batch
from .batch_by import padding
from .by_plan import BatchesByPlan, PlanSampler
from .dataset import OpenDataset
from .device import lane_to, on_device
from .fetcher import Fetcher
from .memory import BatchMemory
from .memory_limit import Load, within
from .options import BatchOptions, ProcessingOptions, WorkerOptions, as_device
from .pipeline import ResumablePipeline
from .plans import Start
from .prefetch import prefetched
from .slots import SlotWriter
from .workers import BUNDLE, BUNDLE_BYTES, Workers, as_is

logger = logging.getLogger("neurofmx_wds")
_MOST_WORKERS = 4  # where the number is not given


class BatchPipeline(ResumablePipeline):
    """Yields batches: what :class:`WebDatasetDataLoader` is besides a torch ``DataLoader``.

    Args:
        opened: the dataset.
        processing: what is done to its samples.
        batches: how they are dealt.
        workers: how they are read ahead.

    Raises:
        ValueError: a `memory_limit` that is too small.
    """

    def __init__(
        self, opened: OpenDataset, processing: ProcessingOptions, batches: BatchOptions, workers: WorkerOptions
    ) -> None:
        fetcher = Fetcher(opened, processing)
        num_workers, prefetch_factor = workers.num_workers, workers.prefetch_factor
        if num_workers is None:
            num_workers = min(_MOST_WORKERS, _n_cores()) if fetcher.does_work else 0
        n_threads = num_workers if workers.workers == "threads" else 0
        if n_threads:  # they lie in this process, as what one thread reads ahead
            num_workers, prefetch_factor = 0, n_threads * (prefetch_factor or 2)
        if workers.memory_limit is not None:
            ahead = (prefetch_factor or 2) if num_workers else (prefetch_factor or 0)
            batch_size = opened.order.rule.batch_size if isinstance(opened.order, GroupedOrder) else batches.batch_size
            forks = _start_method(workers.multiprocessing_context) == "fork"
            load = within(fetcher, Load(batch_size, num_workers, ahead), int(workers.memory_limit), forks)
            num_workers, prefetch_factor = load.num_workers, load.prefetch_factor
            n_threads = min(n_threads, prefetch_factor)
        super().__init__(opened, processing, batches)
        if len(self.order) and not self.n_steps:
            logger.warning(
                "there is no batch to load: drop_last=True, and %d samples do not fill batch_size=%d on %d rank(s); "
                "use a smaller batch_size or drop_last=False",
                len(self.order), self.batch_size, self.world_size,
            )  # fmt: skip
        self.num_workers = num_workers
        self._n_threads = n_threads
        self._ahead = prefetch_factor
        self.device = as_device(workers.device)
        to_gpu = self.device is not None and self.device.type == "cuda"
        self.pin_memory = to_gpu or (workers.pin_memory and torch.cuda.is_available())
        self.workers = workers
        self._memory = BatchMemory(self.pin_memory)  # kept from epoch to epoch: new memory is slow to touch
        self._persistent: Workers | None = None  # those that no iterator uses

    def _items(self, epoch: int, first: int, rank: int, world_size: int) -> Iterator[Any]:
        start = Start(epoch, first, rank, world_size)
        self.opened.reader.expect_share(0 if self.num_workers else 1 / world_size)
        batches = self._from_workers(start) if self.num_workers else self._from_this_process(start)
        return batches if self.device is None else on_device(batches, lane_to(self.device))

    def _from_this_process(self, start: Start) -> Iterator[Any]:
        fetcher, ahead = self._fetcher(start, self._memory), self._ahead or 0
        if self._n_threads:
            fetcher.threads, ahead = (self._n_threads, ahead), 0
        return prefetched(self._stages(start, fetcher.batches).iterator1(), ahead)

    def _from_workers(self, begin: Start) -> Iterator[Any]:
        # Persistent workers serve one iterator at a time: one begun meanwhile gets its own.
        workers, self._persistent = self._persistent or self._start_workers(), None
        try:
            yield from workers.batches(begin, self._memory)
        finally:
            if self.workers.persistent_workers and workers.usable:
                self._persistent = workers

    def _start_workers(self) -> Workers:
        bundle = self._bundle()
        init = getattr(self, "worker_init_fn", self.workers.worker_init_fn)  # frameworks set it on a DataLoader
        options = replace(self.workers, num_workers=self.num_workers, prefetch_factor=self._ahead, worker_init_fn=init)
        sent = {**vars(self.processing), "dataset": self.opened.reader, "worker_init_fn": init}

        def stages(start: Start, memory: SlotWriter) -> wds.DataPipeline:
            return self._stages(start, self._fetcher(start, memory).batches, bundle)

        return Workers(stages, options, bundle, sent)

    def _bundle(self) -> int:
        """Batches that a worker hands over at once: several where it only copies and they are small."""
        sample_bytes = self.opened.reader.sample_bytes
        if sample_bytes is None or not self._fetcher(Start()).only_copies or isinstance(self.order, GroupedOrder):
            return 1
        batch_bytes = self.batch_size * sample_bytes
        return max(1, min(BUNDLE, BUNDLE_BYTES // batch_bytes, self.n_steps // (4 * self.num_workers)))

    @property
    def padding(self) -> dict[str, float] | None:
        """What share of the tokens of this epoch's batches is real once each batch is padded to its longest sample.

        It is ``{"real": 0.93, "real_without": 0.55}``, the second without `batch_by`; None where batches are not by
        length.
        """
        order = self.order.of_epoch(self.epoch)
        return padding(order) if isinstance(order, GroupedOrder) else None

    def close(self) -> None:
        """Stop persistent workers; the next iteration starts others."""
        self._persistent = None

    def __copy__(self) -> BatchPipeline:
        twin = super().__copy__()
        twin.__dict__["_persistent"] = None  # workers serve one iterator at a time
        return cast(BatchPipeline, twin)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_persistent": None}


class WebDatasetDataLoader(BatchPipeline, torch.utils.data.DataLoader[Any]):  # type: ignore[misc]
    """Yields batches; made by :func:`create_webdataset_dataloader`.

    It is a webdataset pipeline and, for frameworks that ask for one, a torch ``DataLoader``: its batch sampler yields
    plans, and its dataset reads a batch by its plan.

    Args:
        dataset: the batches by plan.
        **_: ignored: arguments of ``DataLoader``, which Lightning passes when it makes the same loader again.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"spikes": np.zeros((50, 100, 96), "float32")})
        >>> loader = create_webdataset_dataloader(out, batch_size=16, num_workers=0)
        >>> isinstance(loader, torch.utils.data.DataLoader), len(loader.batch_sampler), len(loader.dataset)
        (True, 4, 50)
    """

    generator = None
    pin_memory_device = ""
    in_order = True
    _iterator = None

    def __init__(self, dataset: BatchesByPlan, **_: Any) -> None:
        self.__dict__.update(vars(copy.copy(dataset.batches)), dataset=dataset)
        options = self.workers
        self.collate_fn = as_is
        self.timeout = options.timeout
        self.worker_init_fn = options.worker_init_fn
        self.persistent_workers = options.persistent_workers and self.num_workers > 0
        self.multiprocessing_context = options.multiprocessing_context if self.num_workers else None

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Batch]: ...  # type: ignore[override]

    @functools.cached_property
    def dataset(self) -> BatchesByPlan:  # type: ignore[override]
        """The batches, to be read by their plan."""
        batches = object.__new__(BatchPipeline)
        batches.__dict__.update(self._parts())
        return BatchesByPlan(batches)

    @property
    def batch_sampler(self) -> PlanSampler:  # type: ignore[override]
        """The plans of the batches."""
        return PlanSampler(self.dataset.batches)

    @property
    def prefetch_factor(self) -> int | None:  # type: ignore[override]
        """Batches read ahead by each worker; None if there are none, as in torch."""
        return (self._ahead or 2) if self.num_workers else None

    def _parts(self) -> dict[str, Any]:
        """Return what copies have too: not the dataset, which knows the stages, nor what Lightning notes in here."""
        kept = {name: value for name, value in vars(self).items() if not name.startswith("__") and name != "dataset"}
        return {**kept, "_persistent": None}

    def __copy__(self) -> WebDatasetDataLoader:
        twin = object.__new__(type(self))
        twin.__dict__.update(self._parts())
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "dataset"}


def as_dataloader(batches: BatchPipeline) -> WebDatasetDataLoader:
    """Return a pipeline of batches as a torch ``DataLoader``."""
    return WebDatasetDataLoader(BatchesByPlan(batches))


def _n_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_method(context: Any) -> str:
    """How worker processes come to be, by torch's ``multiprocessing_context``."""
    if isinstance(context, str):
        return context
    return str((context or multiprocessing).get_start_method())
