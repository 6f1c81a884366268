"""The stages that every loading process runs: batch plans, dealt over ranks and workers, and what reads them.

Knows order, cursor and readers; knows nothing of how far the trainer is.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.utils.data
import webdataset as wds
from webdataset.utils import pytorch_worker_info

from . import cursor as cursors
from .collate import collate_webdataset
from .cursor import BatchPlan
from .errors import NeurofmxError
from .memory import Memory
from .order import ORDER_VERSION, EpochOrder
from .readers import Handler, IOMode, ShardReader, skipping
from .shards import ShardDir, ShardSet, open_shards

logger = logging.getLogger("neurofmx_wds")

Shuffle = bool | Literal["full"]
Select = Mapping[str, Any] | Callable[[dict[str, Any]], bool]
Transform = Callable[..., Any]
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

    @property
    def only_copies(self) -> bool:
        """Whether nothing but copying is done to samples."""
        return self.transform is None and self.collate_fn is collate_webdataset

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
        if self.only_copies:
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
    return max(1, min(_BLOCK_BYTES // shards.sample_bytes, buffer_size // 32))


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
