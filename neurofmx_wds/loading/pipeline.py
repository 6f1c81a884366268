"""A webdataset pipeline that knows how far the trainer is, and goes on from there in another process.

Knows the stages and the cursor; knows nothing of files.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.data
import webdataset as wds
from webdataset.utils import pytorch_worker_info

from ..order import cursor as cursors
from ..order.cursor import BatchPlan, Cursor
from .dataset import OpenDataset
from .memory import Memory
from .options import BatchOptions, Collate, ProcessingOptions
from .stages import Fetcher, PartialBatch, PlanSource, SplitByNode, Start, logger


class Progress:
    """How far the trainer is: which epoch, where it began, and what has been delivered since.

    In somebody else's DataLoader each worker has its own, of its share of an epoch. Only the trainer knows when all
    are done, so a worker moves on to another epoch only where the trainer said so, through shared memory.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0
        self.skipped = 0
        self._warned_files: set[str] = set()
        self._resume_at = 0
        self._run: object = None
        self._taken: tuple[int, bool] | None = None
        self._heard = 0
        self._tell()

    def _tell(self) -> None:
        """Give this process's workers, now and later, something of their own to listen to."""
        told = torch.tensor([self.epoch, self.position, self._heard])  # and how often it was set
        self._told, self._teller = told.share_memory_(), os.getpid()  # type: ignore[no-untyped-call]

    def begin(self) -> object:
        """Start an iteration, at the epoch's start or once where a loaded state says. Returns its token."""
        epoch, position, times = self._told.tolist()
        if in_worker() and times != self._heard:
            self.epoch, self._resume_at, self._heard = epoch, position, times
        self.position, self._resume_at = self._resume_at, 0
        self._run, self._taken = object(), None
        return self._run

    def take(self, run: object, position: int, last: bool) -> None:
        """Note that iteration `run` is making something of all before `position`; with the `last` its epoch is over."""
        if run is self._run:
            self._taken = position, last

    def deliver(self, run: object) -> None:
        """Note that what iteration `run` has made of all that it took is handed over."""
        if run is self._run and self._taken is not None:
            self.position, last = self._taken
            if last and not in_worker():
                self.set(Cursor(self.epoch + 1, 0))

    def note(self, remnant: PartialBatch) -> None:
        """Count what was skipped, and say of each shard once why."""
        self.skipped += remnant.n_skipped
        for file, cause in remnant.causes.items():
            if file not in self._warned_files:
                logger.warning("skipping samples that cannot be read, the first: %s", cause)
        self._warned_files.update(remnant.causes)

    def set(self, cursor: Cursor) -> None:
        """Let the next iteration start at `cursor`."""
        self.epoch, self.position, self._resume_at = cursor.epoch, cursor.position, cursor.position
        self._run = None
        if not in_worker():
            self._heard += 1
            if self._teller != os.getpid():  # made by a process that has started this one and others as ranks
                self._tell()
            self._told.copy_(torch.tensor([cursor.epoch, cursor.position, self._heard]))


def in_worker() -> bool:
    """Whether this is a worker process of a DataLoader."""
    return torch.utils.data.get_worker_info() is not None


class ResumablePipeline(wds.DataPipeline, wds.FluidInterface):  # type: ignore[misc]
    """A webdataset pipeline that knows where it is. Base of the loaders; not made directly.

    ``state_dict()``, ``load_state_dict()``, ``set_epoch()`` and ``len()`` are exact; ``.map(...)``, ``.compose(...)``
    and the other webdataset methods give a pipeline that goes on from here and shares the same state. It has a length
    where every stage is known to keep the number of items, as ``map`` (of what returns no None), or is ``batched``. A
    stage that holds samples back, such as ``.shuffle(…)``, has taken more than it has handed on, and the state counts
    these too. Where a stage fails, the state is that of the last item that came out of all of them.
    """

    def __init__(self, opened: OpenDataset, processing: ProcessingOptions, batches: BatchOptions) -> None:
        super().__init__()
        self.opened = opened
        self.order = opened.order
        self.processing = processing
        self.batch_size = batches.batch_size
        self.drop_last = batches.drop_last
        self.progress = Progress()
        self.samples_per_worker_chunk = 1  # neighbours in the order that one worker of somebody else's DataLoader gets
        self._rank, self._world_size = batches.rank, batches.world_size

    def _fetcher(self, start: Start, memory: Memory | None = None) -> Fetcher:
        return Fetcher(self.opened, self.processing, start, memory)

    @property
    def samples_in_item(self) -> int:
        """Samples of which an item is made, if all stages but ``batched`` make one of one."""
        return math.prod(stage.size for stage in self.pipeline if isinstance(stage, Batched))

    @property
    def rank(self) -> int:
        """This process's rank: as given, or as webdataset finds it now."""
        return pytorch_worker_info()[0] if self._rank is None else self._rank

    @property
    def world_size(self) -> int:
        """Number of ranks: as given, or as webdataset finds it now."""
        return pytorch_worker_info()[1] if self._world_size is None else self._world_size

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of, or the running one."""
        return int(self.state_dict()["epoch"])

    @property
    def skipped(self) -> int:
        """Samples that this rank has skipped, by `handler`'s leave (in somebody else's DataLoader: not counted)."""
        return self.progress.skipped

    def __repr__(self) -> str:
        size = f"samples={len(self.order)}, batch_size={self.batch_size}, steps={self.n_steps}"
        place = f"epoch={self.progress.epoch}, position={self.progress.position}"
        return f"{type(self).__name__}({self.opened.reader.where!r}, {size}, {place})"

    @property
    def n_steps(self) -> int:
        """Batches (or samples) of this rank in a whole epoch, before any composed stage."""
        return cursors.n_steps(0, len(self.order), self.batch_size, self.world_size, self.drop_last)

    def __len__(self) -> int:
        """Items that this rank gets in a whole epoch, those included that `handler` will skip.

        Raises:
            TypeError: a composed stage may drop items or make several of one; ``with_length(n)`` says how many.
        """
        if self.repetitions == sys.maxsize:
            if self.nsamples < 1:
                raise TypeError("what is repeated without end has no length")
            return int(self.nsamples)
        length = self.n_steps
        for stage in self.pipeline:
            length = _length_after(stage, length)
        length *= self.repetitions
        return min(length, self.nsamples) if self.repetitions > 1 and self.nsamples > 0 else length

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of this epoch, from its start; a state loaded for this very epoch stays.

        Raises:
            ValueError: `epoch` is not a whole number, or negative.
        """
        epoch = self.order.of_epoch(epoch).epoch  # refuses what is none; numpy's integers are not for JSON
        if epoch != self.epoch:
            self.progress.set(Cursor(epoch, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: one JSON object under 1 KiB, the same on every rank.

        It counts what has been delivered, not what workers have read ahead. With it another process goes on with the
        next sample, whatever its number of ranks, workers or its batch size.
        """
        cursor = Cursor(self.progress.epoch, self.progress.position)
        state = cursors.to_state(cursor, self.order.of_epoch(cursor.epoch), self.opened.fingerprint)
        if in_worker() and cursor.position == len(self.order):  # this worker is done; others may not be
            state |= {"epoch": cursor.epoch, "position": cursor.position}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Args:
            state: what :meth:`state_dict` returned, or a bare ``{"shard_idx", "sample_offset"}``.

        Raises:
            StateError: it is of another dataset, selection, seed, shuffle or version, or damaged.
        """
        cursor = cursors.from_state(state, self.order.of_epoch, self.opened.fingerprint)
        if in_worker() and state.get("position") == len(self.order):
            cursor = Cursor(state["epoch"], state["position"])
        self.progress.set(cursor)

    get_state = state_dict
    set_state = load_state_dict

    def batched(
        self, batchsize: int, collation_fn: Collate | None = wds.filters.default_collation_fn, partial: bool = True
    ) -> ResumablePipeline:
        """webdataset's ``batched``, but a batch is handed on once it is full: theirs first takes one sample more."""
        return self.compose(Batched(batchsize, collation_fn, partial))

    def iterator(self) -> Iterator[Any]:
        """As webdataset's, which holds on to an item while the next is made."""
        yield from self.iterator1() if self.repetitions == 1 else super().iterator()

    def iterator1(self) -> Iterator[Any]:
        """One epoch, or its rest: what is delivered here, through the stages that were composed."""
        # Not a first stage in the list: bound to this object it would make a reference cycle, and workers that are
        # left to the garbage collector take torch five seconds each to stop.
        run = self.progress.begin()
        items = self._deliver(run)
        for stage in self.pipeline:
            items = self.invoke(stage, items)
        for item in items:
            self.progress.deliver(run)  # only now: were a stage to fail, what it took would be lost
            yield item
            del item
        self.progress.deliver(run)  # also what stages have made nothing of

    def _deliver(self, run: object) -> Iterator[Any]:
        """What this rank gets, noted as it is taken."""
        epoch, first = self.progress.epoch, self.progress.position
        rank, world_size = self.rank, self.world_size
        size = (len(self.order), self.batch_size, world_size, self.drop_last)
        # Inside somebody's DataLoader worker, a step here stands for one in each of the workers.
        workers = pytorch_worker_info()[3]
        last = cursors.n_steps(first, *size)
        if last == 0:
            self.progress.take(run, len(self.order), True)
        done = 0
        for item in self._items(epoch, first, rank, world_size):
            done = min(done + workers, last)
            self.progress.take(run, cursors.position_after(first, done, *size), done == last)
            if isinstance(item, PartialBatch):
                self.progress.note(item)
                yield from item.rest
            else:
                yield item
            del item

    def _items(self, epoch: int, first: int, rank: int, world_size: int) -> Iterator[Any]:
        raise NotImplementedError

    def _stages(
        self, start: Start, fetch: Callable[[Iterable[BatchPlan]], Iterator[Any]], bundle: int = 1
    ) -> wds.DataPipeline:
        """What a process runs to get its share: plans, split over ranks, split over workers in bundles, fetched."""
        source = PlanSource(start, len(self.order), self.batch_size, self.drop_last)
        bundles = functools.partial(_bundled, size=bundle)
        return wds.DataPipeline(source, SplitByNode(start), bundles, wds.split_by_worker, _unbundled, fetch)

    def __copy__(self) -> ResumablePipeline:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker may not be able to look them up. A process that is one of several can; before there are
        # several (a loader handed to torch.multiprocessing.spawn) each will have to look for itself.
        if self.world_size == 1:
            return self.__dict__
        return {**self.__dict__, "_rank": self.rank, "_world_size": self.world_size}


def _bundled(plans: Iterable[BatchPlan], size: int) -> Iterator[list[BatchPlan]]:
    plans = iter(plans)
    while bundle := list(itertools.islice(plans, size)):
        yield bundle


_unbundled = itertools.chain.from_iterable
_ONE_FOR_ONE = (  # stages of webdataset's that hand on an item for each that they take
    wds.filters._decode, wds.filters._extract_keys, wds.filters._map, wds.filters._map_dict, wds.filters._map_tuple,
    wds.filters._rename, wds.filters._rename_keys, wds.filters._shuffle, wds.filters._to_tuple,
)  # fmt: skip


@dataclass(frozen=True)
class Batched:
    """Stage: samples → batches.

    Attributes:
        size: samples in a batch.
        collate: what makes a batch of them; None: it is their list.
        partial: whether the last batch may have fewer.
    """

    size: int
    collate: Collate | None
    partial: bool

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"batchsize must be positive, not {self.size}")

    def __call__(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches."""
        samples = iter(samples)
        while batch := list(itertools.islice(samples, self.size)):
            if self.partial or len(batch) == self.size:
                yield batch if self.collate is None else self.collate(batch)


def _length_after(stage: Any, length: int) -> int:
    """How many items come out of a stage that gets so many.

    Raises:
        TypeError: that is not known.
    """
    if isinstance(stage, Batched):
        return length // stage.size + (stage.partial and length % stage.size > 0)
    if isinstance(stage, wds.filters.FilterFunction) and stage.f in _ONE_FOR_ONE:
        return length
    remedy = "count them, and say it by with_length(n)"
    raise TypeError(f"the length is not known after {stage!r}, which may drop items or make several of one: {remedy}")
