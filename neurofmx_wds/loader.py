"""The road from shards to training: a webdataset pipeline of batch plans, and the cursor that makes it resumable.

Knows order, cursor, readers and torch; knows nothing of recordings.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.utils.data
import webdataset as wds
from webdataset.utils import pytorch_worker_info

from . import cursor as cursors
from .atomic import write_atomic
from .cache import DEFAULT_CACHE_SIZE
from .collate import collate_webdataset
from .cursor import BatchPlan, Cursor
from .errors import NeurofmxError, StateError
from .memory import BatchMemory, Memory, Slots, unpack
from .order import ORDER_VERSION, EpochOrder
from .readers import Handler, IOMode, ShardReader, skipping
from .shards import DEFAULT_SHARD_PATTERN, ShardDir, ShardSet, open_shards

logger = logging.getLogger("neurofmx_wds")

Shuffle = bool | Literal["full"]
Select = Mapping[str, Any] | Callable[[dict[str, Any]], bool]
Transform = Callable[..., Any]
Collate = Callable[[Sequence[Any]], Any]
Read = Callable[[np.ndarray], Any]

_ORDER_CHUNK = 4096  # positions whose ids are worked out at once
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class EpochSpec:
    """What fixes the order of every epoch of a dataset."""

    shard_counts: np.ndarray
    seed: int
    shuffle: Shuffle
    buffer_size: int
    block_size: int

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


@dataclass
class Fetcher:
    """Reads what the plans ask for."""

    spec: EpochSpec
    reader: ShardReader
    handler: Handler = wds.reraise_exception
    transform: Transform | None = None
    collate_fn: Collate | None = None
    start: Start = field(default_factory=Start)
    memory: Memory | None = None

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
        one: Read = lambda ids: self._samples(ids)[0]  # noqa: E731
        yield from self._fetch(plans, one, one)

    def batches(self, plans: Iterable[BatchPlan]) -> Iterator[Any]:
        """Stage: plans → batches."""
        if self.transform is None and self.collate_fn is collate_webdataset:
            fast = functools.partial(self.reader.read_batch, memory=self.memory)
            yield from self._fetch(plans, fast, self.reader.read_batch)
        else:
            yield from self._fetch(plans, self._collated, self._collated)

    def _fetch(self, plans: Iterable[BatchPlan], read: Read, read_again: Read) -> Iterator[Any]:
        """Read all plans; `read_again` reads what is left of one: a remnant must not lie in a worker's slot."""
        for plan, ids in self.planned_ids(plans):
            try:
                item: Any = read(ids)
            except Exception as error:
                if self.handler is wds.reraise_exception:
                    raise
                item = self._remnant(read_again, ids, error)
            if plan.fresh is not None:
                for each in item.rest if isinstance(item, Remnant) else [item]:
                    _mark(each, plan.fresh)
            yield item

    def _remnant(self, read: Read, ids: np.ndarray, error: Exception) -> Remnant:
        """What is left of a plan when `handler` has been asked about each sample that cannot be read."""
        kept = skipping(read, ids, self._may_skip)
        if kept:
            return Remnant(len(ids) - len(kept), [read(ids[kept])])
        world_size = self.start.get()[3]
        return Remnant(len(ids), [] if world_size == 1 else [self._stand_in(read, ids, error)])

    def _may_skip(self, error: Exception) -> bool:
        if not self.handler(error):  # stopping one rank or worker would lose samples silently, or hang the others
            raise error
        return True

    def _stand_in(self, read: Read, ids: np.ndarray, error: Exception) -> Any:
        """The next sample that can be read, marked as repeated: all ranks must step together."""
        for i in range(int(ids[-1]) + 1, int(ids[-1]) + self.spec.n_samples):
            try:
                item = read(np.array([i % self.spec.n_samples]))
            except Exception as another:
                logger.debug("no stand-in: %s", another)
                continue
            _mark(item, False)
            return item
        raise error

    def _samples(self, ids: np.ndarray) -> list[Any]:
        samples = self.reader.read_samples(ids)
        if self.transform is None:
            return samples
        numbers = self.reader.dataset_ids(ids).tolist()
        return [self._transformed(self.transform, *each) for each in zip(samples, numbers, ids, strict=True)]

    def _transformed(self, transform: Transform, sample: dict[str, Any], number: int, place: np.int64) -> Any:
        key = sample["__key__"]
        try:
            if _takes_rng(transform):
                return transform(sample, sample_rng(self.spec.seed, self.start.get()[0], number))
            return transform(sample)
        except Exception as error:
            shard = self.reader.shards.paths[self.reader.locate(np.array([place]))[0][0]]
            problem = f"the transform raised {type(error).__name__}: {error}"
            raise NeurofmxError(problem, file=shard, sample=key) from error

    def _collated(self, ids: np.ndarray) -> Any:
        samples = self._samples(ids)
        return samples if self.collate_fn is None else self.collate_fn(samples)


@dataclass
class Remnant:
    """What is left of a plan some of whose samples cannot be read.

    Attributes:
        n_skipped: how many.
        rest: the batch (or sample) of the others; none where nothing is left and no other rank waits.
    """

    n_skipped: int
    rest: list[Any]


def _mark(item: Any, fresh: bool) -> None:
    """Say in the last step of an epoch, or of a stand-in, whether it is new."""
    if isinstance(item, dict):
        single = isinstance(item.get("__key__"), str)
        item["__mask__"] = fresh if single else torch.tensor([fresh])


def sample_rng(seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """The random numbers that a sample's augmentation gets in an epoch, wherever and whenever it is loaded.

    Args:
        seed: the loader's seed.
        epoch: the epoch.
        sample_id: the sample's place in the whole dataset.
    """
    words = np.array([seed & (2**64 - 1), epoch, sample_id], np.uint64)
    key = np.frombuffer(hashlib.blake2b(words.tobytes(), digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


@functools.lru_cache(maxsize=64)
def _takes_rng(transform: Transform) -> bool:
    """Whether a transform is ``transform(sample, rng)``."""
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in positional if p.default is p.empty or p.name == "rng"]) >= 2


class Progress:
    """How far the trainer is: which epoch, where it began, and what has been delivered since.

    In somebody else's DataLoader each worker has its own, of its share of an epoch. Only the trainer knows when all
    are done, so a worker moves on to another epoch only where the trainer said so, through shared memory.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0
        self.skipped = 0
        self._resume_at = 0
        self._run: object = None
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
        self._run = object()
        return self._run

    def delivered(self, run: object, position: int, last: bool) -> None:
        """Note that iteration `run` has delivered all before `position`; with the `last` its epoch is over."""
        if run is self._run:
            self.position = position
            if last and not in_worker():
                self.set(Cursor(self.epoch + 1, 0))

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
    and the other webdataset methods give a pipeline that goes on from here and shares the same state. A stage that
    holds samples back, such as ``.shuffle(…)``, has taken more than it has handed on, and the state counts these too.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        fingerprint: str,
        batch_size: int,
        drop_last: bool,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        super().__init__()
        self.spec = fetcher.spec
        self.fetcher = fetcher
        self.fingerprint = fingerprint
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.progress = Progress()
        self._rank, self._world_size = _check_rank(rank, world_size)

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

    def __len__(self) -> int:
        """Batches (or samples) that this rank gets in a whole epoch."""
        return cursors.n_steps(0, self.spec.n_samples, self.batch_size, self.world_size, self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of this epoch, from its start; a state loaded for this very epoch stays.

        Raises:
            ValueError: `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, not {epoch}")
        if epoch != self.epoch:
            self.progress.set(Cursor(epoch, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: one JSON object under 1 KiB, the same on every rank.

        It counts what has been delivered, not what workers have read ahead. With it another process goes on with the
        next sample, whatever its number of ranks, workers or its batch size.
        """
        cursor = Cursor(self.progress.epoch, self.progress.position)
        state = cursors.to_state(cursor, self.spec.order(cursor.epoch), self.fingerprint)
        if in_worker() and cursor.position == self.spec.n_samples:  # this worker is done; others may not be
            state |= {"epoch": cursor.epoch, "position": cursor.position}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Args:
            state: what :meth:`state_dict` returned, or a bare ``{"shard_idx", "sample_offset"}``.

        Raises:
            StateError: it is of another dataset, selection, seed, shuffle or version, or damaged.
        """
        cursor = cursors.from_state(state, self.spec.order, self.fingerprint)
        if in_worker() and state.get("position") == self.spec.n_samples:
            cursor = Cursor(state["epoch"], state["position"])
        self.progress.set(cursor)

    get_state = state_dict
    set_state = load_state_dict

    def batched(
        self, batchsize: int, collation_fn: Collate | None = wds.filters.default_collation_fn, partial: bool = True
    ) -> ResumablePipeline:
        """webdataset's ``batched``, but a batch is handed on once it is full: theirs first takes one sample more."""
        return self.compose(functools.partial(_batched, size=batchsize, collate=collation_fn, partial=partial))

    def iterator1(self) -> Iterator[Any]:
        """One epoch, or its rest: what is delivered here, through the stages that were composed."""
        # Not a first stage in the list: bound to this object it would make a reference cycle, and workers that are
        # left to the garbage collector take torch five seconds each to stop.
        items = self._deliver()
        for stage in self.pipeline:
            items = self.invoke(stage, items)
        return items

    def _deliver(self) -> Iterator[Any]:
        """What this rank gets, counted as it is handed over."""
        run = self.progress.begin()
        epoch, first = self.progress.epoch, self.progress.position
        rank, world_size = self.rank, self.world_size
        size = (self.spec.n_samples, self.batch_size, world_size, self.drop_last)
        # Inside somebody's DataLoader worker, a step here stands for one in each of the workers.
        workers = pytorch_worker_info()[3]
        last = cursors.n_steps(first, *size)
        if last == 0:
            self.progress.delivered(run, self.spec.n_samples, True)
        for step, item in enumerate(self._items(epoch, first, rank, world_size), 1):
            done = min(step * workers, last)
            self.progress.delivered(run, cursors.position_after(first, done, *size), done == last)
            if isinstance(item, Remnant):
                self.progress.skipped += item.n_skipped
                yield from item.rest
            else:
                yield item

    def _items(self, epoch: int, first: int, rank: int, world_size: int) -> Iterator[Any]:
        raise NotImplementedError

    def _stages(self, start: Start, fetch: Callable[[Iterable[BatchPlan]], Iterator[Any]]) -> wds.DataPipeline:
        """What a process runs to get its share: plans, split over ranks, split over workers, fetched."""
        source = PlanSource(start, self.spec.n_samples, self.batch_size, self.drop_last)
        return wds.DataPipeline(source, SplitByNode(start), wds.split_by_worker, fetch)

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


def _batched(samples: Iterator[Any], size: int, collate: Collate | None, partial: bool) -> Iterator[Any]:
    while batch := list(itertools.islice(samples, size)):
        if partial or len(batch) == size:
            yield batch if collate is None else collate(batch)


def _check_rank(rank: int | None, world_size: int | None) -> tuple[int | None, int | None]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"give rank and world_size together, not rank={rank} and world_size={world_size}")
    if rank is not None and world_size is not None and not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), not {rank} of {world_size}")
    return rank, world_size


class WebDatasetLoader(ResumablePipeline):
    """Yields the samples of a dataset, in a reproducible order, resumable after any of them.

    Each sample is a dict of writable numpy arrays, ``metadata`` (dict) and ``__key__`` (str). It is a webdataset
    pipeline (``.map``, ``.compose``, …) and a torch ``IterableDataset``: several DataLoader workers or DDP ranks share
    the samples among them. With several ranks all get the same number; the few that come again to fill the last step
    have ``sample["__mask__"] == False``.

    Args:
        shard_dir: a dataset's directory, or what webdataset takes: a brace pattern or a list of tars.
        shard_pattern: which files of the directory are shards.
        shuffle: False (as stored), True (blocks over the whole dataset, then samples within `buffer_size`), or
            ``"full"`` (uniform over the whole dataset).
        buffer_size: positions among which samples are mixed when `shuffle` is True.
        seed: fixes the order of every epoch, and the random numbers of `transform`.
        modalities: the fields to read; by default all.
        select: which samples: ``{"subject": "A"}``, ``{"session": ["a", "b"]}`` or ``f(metadata) -> bool``.
        transform: ``f(sample)`` or ``f(sample, rng)`` with a generator that depends on seed, epoch and sample only.
        handler: webdataset's ``reraise_exception``, ``warn_and_continue``, … for samples that cannot be read or
            transformed; what it lets go is counted in ``skipped``. An error at which it says stop is raised.
        rank, world_size: this process's share; by default as webdataset finds it (environment, ``torch.distributed``).
        block_size: samples read in one go when `shuffle` is True; by default about 1 MiB, a shard where compressed.
        io: ``"auto"``, ``"mmap"`` or ``"pread"``; see :class:`~neurofmx_wds.readers.ShardReader`.
        cache_dir, cache_size: where compressed shards are unpacked, and how many bytes they may take there.

    Raises:
        FileNotFoundError, ShardError, ManifestError: the dataset cannot be opened.
        ValueError: a bad argument.
    """

    def __init__(
        self,
        shard_dir: ShardDir,
        shard_pattern: str = DEFAULT_SHARD_PATTERN,
        shuffle: Shuffle = True,
        buffer_size: int = 1000,
        seed: int = 42,
        modalities: Sequence[str] | None = None,
        select: Select | None = None,
        transform: Transform | None = None,
        handler: Handler = wds.reraise_exception,
        rank: int | None = None,
        world_size: int | None = None,
        block_size: int | None = None,
        io: IOMode = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_size: int = DEFAULT_CACHE_SIZE,
    ) -> None:
        fetcher, fingerprint = open_dataset(
            shard_dir, shard_pattern, shuffle, buffer_size, seed, modalities, select, block_size, io, cache_dir,
            cache_size,
        )  # fmt: skip
        fetcher = replace(fetcher, transform=transform, handler=handler)
        super().__init__(fetcher, fingerprint, 1, False, rank, world_size)

    def _items(self, epoch: int, first: int, rank: int, world_size: int) -> Iterator[Any]:
        fetcher = replace(self.fetcher, start=Start(epoch, first, rank, world_size))
        return iter(self._stages(fetcher.start, fetcher.samples))


class ResumableWebDatasetLoader(WebDatasetLoader):
    """A :class:`WebDatasetLoader` that keeps its own checkpoint file and goes on from it by itself.

    Args:
        shard_dir: as :class:`WebDatasetLoader`.
        checkpoint_path: the file; by default ``.loader_checkpoint.json`` in the working directory. It is replaced in
            one step; of several ranks only rank 0 writes it.
        checkpoint_interval: delivered samples (of this rank) between two checkpoints; one is also written at the
            end of an epoch. A killed run repeats at most the samples since the last one.
        **options: as :class:`WebDatasetLoader`.

    Raises:
        StateError: the checkpoint belongs to another dataset, seed or shuffle, or is damaged.
    """

    def __init__(
        self,
        shard_dir: ShardDir,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_interval: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(shard_dir, **options)
        if checkpoint_interval < 1:
            raise ValueError(f"checkpoint_interval must be positive, not {checkpoint_interval}")
        self.checkpoint_path = Path(checkpoint_path or ".loader_checkpoint.json")
        self.checkpoint_interval = checkpoint_interval
        if self.checkpoint_path.exists():
            self.load_checkpoint()

    def save_checkpoint(self) -> None:
        """Write the state to the checkpoint file, whole or not at all (rank 0 only).

        Raises:
            OSError: the file cannot be written; the old one stays.
        """
        if self.rank == 0:
            write_atomic(self.checkpoint_path, json.dumps(self.state_dict()).encode())

    def load_checkpoint(self) -> dict[str, Any]:
        """Read the checkpoint file and go on from there.

        Returns:
            The state.

        Raises:
            FileNotFoundError: there is none.
            StateError: it is damaged, or of another dataset, seed or shuffle.
        """
        remedy = "delete it to start afresh"
        if self.checkpoint_path.stat().st_size > 1 << 16:
            raise StateError("the checkpoint is far too large", file=self.checkpoint_path, remedy=remedy)
        try:
            state = json.loads(self.checkpoint_path.read_bytes())
            self.load_state_dict(state)
        except StateError as error:
            raise StateError(error.problem, file=self.checkpoint_path, remedy=error.remedy or remedy) from error
        except (ValueError, RecursionError) as error:
            raise StateError(f"not a checkpoint: {error}", file=self.checkpoint_path, remedy=remedy) from error
        here = self.state_dict()
        logger.warning(
            "resuming from %s: epoch %d, shard %d, sample %d (position %d of %d)",
            self.checkpoint_path, here["epoch"], here["shard_idx"], here["sample_offset"],
            here["position"], here["num_samples"],
        )  # fmt: skip
        return dict(state)

    def _deliver(self) -> Iterator[Any]:
        writes = not in_worker()
        for count, item in enumerate(super()._deliver(), 1):
            yield item
            # The consumer is back for more: what it had so far is done with.
            if writes and count % self.checkpoint_interval == 0:
                self.save_checkpoint()
        if writes:
            self.save_checkpoint()


class WebDatasetDataLoader(ResumablePipeline):
    """Yields batches; made by :func:`create_webdataset_dataloader`.

    Args:
        fetcher: what reads batches.
        fingerprint: of the dataset and selection.
        batch_size, drop_last, rank, world_size: as there.
        num_workers: processes that read; 0: a thread of this process does.
        prefetch_factor: batches read ahead, by each worker or by the thread; 0 or None with no workers: no thread.
        pin_memory: put batches into page-locked memory, where there is a CUDA device.
        loader_options: further arguments of torch's DataLoader.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        fingerprint: str,
        batch_size: int,
        drop_last: bool,
        rank: int | None,
        world_size: int | None,
        num_workers: int,
        prefetch_factor: int | None,
        pin_memory: bool,
        loader_options: Mapping[str, Any],
    ) -> None:
        super().__init__(fetcher, fingerprint, batch_size, drop_last, rank, world_size)
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.loader_options = dict(loader_options)
        self._persistent: tuple[Start, torch.utils.data.DataLoader[Any]] | None = None

    def _items(self, epoch: int, first: int, rank: int, world_size: int) -> Iterator[Any]:
        memory = BatchMemory(self.pin_memory)
        if self.num_workers == 0:
            fetcher = replace(self.fetcher, start=Start(epoch, first, rank, world_size), memory=memory)
            return prefetched(self._stages(fetcher.start, fetcher.batches), self.prefetch_factor or 0)
        return self._from_workers(Start(epoch, first, rank, world_size), memory)

    def _from_workers(self, begin: Start, memory: BatchMemory) -> Iterator[Any]:
        # Persistent workers serve one iterator at a time: one begun meanwhile gets its own.
        workers, self._persistent = self._persistent or self._workers(), None
        start, loader = workers
        start.set(*begin.get())
        try:
            yield from unpack(loader, memory)
        finally:
            if self.loader_options.get("persistent_workers"):
                self._persistent = workers

    def _workers(self) -> tuple[Start, torch.utils.data.DataLoader[Any]]:
        depth = self.prefetch_factor or 2
        slots = Slots(depth + 1)
        fetcher = replace(self.fetcher, start=Start().share(), memory=slots)
        stages = self._stages(fetcher.start, fetcher.batches)
        stages.append(slots)
        return fetcher.start, torch.utils.data.DataLoader(
            stages,
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=depth,
            collate_fn=_as_is,
            **self.loader_options,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_persistent": None}


def _as_is(batch: Any) -> Any:
    return batch


def prefetched(source: Iterable[Any], depth: int) -> Iterator[Any]:
    """Yield what `source` yields, read ahead by a thread; 0 reads nothing ahead and starts no thread."""
    if depth < 1:
        yield from source
        return
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    room: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one True for each batch that may be read ahead
    end = object()
    for _ in range(depth):
        room.put(True)

    def read() -> None:
        try:
            batches = iter(source)
            while room.get():
                ready.put((next(batches, end), None))
        except BaseException as error:  # the consumer raises it
            ready.put((end, error))

    thread = threading.Thread(target=read, name="neurofmx_wds prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            room.put(True)
            yield item
    finally:
        room.put(False)
        if threading.current_thread() is not thread:  # it may be the one in which garbage is collected
            thread.join()


def create_webdataset_dataloader(
    shard_dir: ShardDir,
    batch_size: int = 32,
    num_workers: int = 4,
    shuffle: Shuffle = True,
    buffer_size: int = 1000,
    seed: int = 42,
    drop_last: bool = False,
    prefetch_factor: int | None = 2,
    pin_memory: bool = False,
    modalities: Sequence[str] | None = None,
    select: Select | None = None,
    transform: Transform | None = None,
    collate_fn: Collate = collate_webdataset,
    handler: Handler = wds.reraise_exception,
    rank: int | None = None,
    world_size: int | None = None,
    shard_pattern: str = DEFAULT_SHARD_PATTERN,
    block_size: int | None = None,
    io: IOMode = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int = DEFAULT_CACHE_SIZE,
    **loader_options: Any,
) -> WebDatasetDataLoader:
    """Batches of a dataset, in a reproducible order, resumable after any of them.

    A batch is a dict: field → tensor of shape (B, …), ``metadata`` → B dicts, ``__key__`` → B strings. The sequence of
    samples depends on dataset, selection, seed, epoch, shuffle, `buffer_size` and `block_size` only. With several
    ranks all get the same number of batches; at the end of an epoch what remains is dealt evenly. Only when fewer
    samples than ranks remain, some ranks get one again, and that batch has ``__mask__``, False for it; likewise with
    several ranks a batch of which `handler` has skipped every sample.

    Args:
        shard_dir, shard_pattern, shuffle, buffer_size, seed, modalities, select, transform, handler, rank, world_size,
            block_size, io, cache_dir, cache_size: as :class:`WebDatasetLoader`.
        batch_size: samples per batch and rank.
        num_workers: processes that read. 0 is fastest where there is no costly `transform`.
        drop_last: drop the samples that do not fill a batch on every rank.
        prefetch_factor: batches read ahead by each worker; with no workers, by one thread (0 or None: none).
        pin_memory: put batches into page-locked memory, where there is a CUDA device.
        collate_fn: makes a batch of a list of samples.
        **loader_options: of torch's DataLoader: ``persistent_workers``, ``multiprocessing_context``, ``timeout``,
            ``worker_init_fn``.

    Returns:
        An iterable of batches with ``len()``, ``state_dict()``, ``load_state_dict()``, ``set_epoch()`` and
        webdataset's ``.map(...)``, ``.compose(...)`` and so on.

    Raises:
        FileNotFoundError, ShardError, ManifestError: the dataset cannot be opened.
        ValueError: a bad argument.

    Example:
        >>> import tempfile
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"spikes": np.zeros((50, 100, 96), "float32")})
        >>> loader = create_webdataset_dataloader(out, batch_size=16, num_workers=0)
        >>> len(loader), next(iter(loader))["spikes"].shape
        (4, torch.Size([16, 100, 96]))
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, not {batch_size!r}")
    if num_workers < 0 or (prefetch_factor or 0) < 0:
        raise ValueError(f"num_workers and prefetch_factor must not be negative: {num_workers}, {prefetch_factor}")
    if not loader_options.pop("in_order", True):
        raise ValueError("in_order=False would make the order depend on the workers' speed; leave it out")
    refused = set(loader_options) - {"persistent_workers", "multiprocessing_context", "timeout", "worker_init_fn"}
    if refused:
        raise TypeError(f"create_webdataset_dataloader takes no argument {', '.join(sorted(refused))}")
    fetcher, fingerprint = open_dataset(
        shard_dir, shard_pattern, shuffle, buffer_size, seed, modalities, select, block_size, io, cache_dir, cache_size
    )
    fetcher = replace(fetcher, transform=transform, handler=handler, collate_fn=collate_fn)
    return WebDatasetDataLoader(
        fetcher, fingerprint, int(batch_size), drop_last, rank, world_size, num_workers, prefetch_factor, pin_memory,
        loader_options,
    )  # fmt: skip


def open_dataset(
    shard_dir: ShardDir,
    shard_pattern: str,
    shuffle: Shuffle,
    buffer_size: int,
    seed: int,
    modalities: Sequence[str] | None,
    select: Select | None,
    block_size: int | None,
    io: IOMode,
    cache_dir: str | os.PathLike[str] | None,
    cache_size: int,
) -> tuple[Fetcher, str]:
    """Open a dataset for loading; arguments and errors as :class:`WebDatasetLoader`.

    Returns:
        What reads it, and the fingerprint of dataset and selection.
    """
    shards = open_shards(shard_dir, shard_pattern, cache_dir, cache_size)
    fingerprint = hashlib.sha256(f"{ORDER_VERSION} {shards.fingerprint()}".encode()).hexdigest()[:32]
    selected = None if select is None else select_samples(shards, select)
    if selected is not None:
        fingerprint = hashlib.sha256(fingerprint.encode() + selected.tobytes()).hexdigest()[:32]
    reader = ShardReader(shards, modalities, selected, io)
    if block_size is None:
        block_size = _default_block_size(shards, buffer_size)
    spec = EpochSpec(reader.counts, seed, shuffle, buffer_size, block_size)
    spec.order(0)  # refuses bad values now, not in a worker
    return Fetcher(spec, reader), fingerprint


def _default_block_size(shards: ShardSet, buffer_size: int) -> int:
    """About 1 MiB of samples, but few enough for a window to mix 32 blocks; a shard where shards are unpacked first."""
    if shards.compressed:
        return max(1, int(shards.counts.max(initial=1)))
    sample_bytes = sum(record.n_bytes for record in shards.records) // max(1, shards.n_samples)
    return max(1, min(_BLOCK_BYTES // max(1, sample_bytes), buffer_size // 32))


def select_samples(shards: ShardSet, select: Select) -> np.ndarray:
    """The samples whose metadata, held in the indexes, fits.

    Args:
        shards: the dataset.
        select: ``{name: value or list of values}``, all of which must fit, or ``f(metadata) -> bool``.

    Returns:
        Sample ids, ascending, int64.

    Raises:
        ValueError: no sample fits.
    """
    fits = select if callable(select) else functools.partial(_fits, dict(select))
    selected = []
    first = 0
    for i in range(len(shards.paths)):
        index = shards.index(i)
        selected += [first + j for j, text in enumerate(index.sample_metadata) if fits(json.loads(text))]
        first += index.n_samples
    if not selected:
        raise ValueError(f"select={select!r} fits none of the {first} samples")
    return np.array(selected, np.int64)


def _fits(wanted: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    absent = object()
    for name, value in wanted.items():
        found = metadata.get(name, absent)
        if found not in value if isinstance(value, (list, tuple, set, frozenset)) else found != value:
            return False
    return True
