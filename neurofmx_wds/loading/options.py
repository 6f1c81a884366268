"""The settings of a loader, as frozen values that refuse bad ones when they are made.

Knows the arguments of the public functions; knows nothing of files, processes or training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import numpy as np
import torch
import webdataset as wds

from ..format.finding import DEFAULT_SHARD_PATTERN, ShardDir
from ..format.groups import Groups
from ..nwb.choosing import Choice
from ..order.epoch import EpochOrder
from ..order.mixture import Length
from ..storage.cache import DEFAULT_CACHE_SIZE
from ..storage.objects import Objects, StorageOptions
from .collate import collate_webdataset
from .filling import Fill, PadUnits, check_filling
from .flattening import RaggedForm, check_ragged, flattening
from .labels import TargetTransform, as_target_transform
from .mixture import Mixture, Part, Weights
from .normalizing import Normalize, check_normalize
from .partition import Partition, Shares, as_partition
from .readers import Handler, IOMode
from .selection import Select
from .transforms import BatchTransform, Transform, as_batch_transforms
from .views import AsDtypes, torch_dtype_of
from .vocabulary import Vocabulary
from .windows import Windows

if TYPE_CHECKING:
    from .batch_by import BatchBy

Shuffle = bool | Literal["full"]
Collate = Callable[[Sequence[Any]], Any]
Datasets = ShardDir | Mapping[str, Part] | Mixture
MemorySize = int | float | str

DEFAULT_PREFETCH = 128 << 20  # bytes

_UNITS = {"": 1, "b": 1} | {f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)}
_UNITS |= {f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)}
_Options = TypeVar("_Options")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Which samples and fields of which dataset are read, and how. The attributes are those of the public loaders.

    Attributes:
        shard_dir: a directory, a pattern, a list of tars, or datasets that are mixed.
        windows: how windows are cut from segments; None: samples are read as they are stored.
        shard_pattern: which files of a directory are shards.
        modalities: names of the fields to read; None: all.
        select: which samples, by their metadata; None: all.
        group, groups: only the samples with the labels of this group, and where groups are defined.
        io: how shards are read.
        cache_dir, cache_size: where compressed shards are unpacked, and bytes that they may take there.
        checksums: whether payloads are compared with their checksums; None: where these are known.
        weights, epoch: proportions, and what an epoch is, of a mixture; None: equal, "longest".
        balance: the name of the samples' metadata whose values are mixed; None: none.
        units: which units, as an expression over the columns of ``loader.units``; None: all.
        storage_options: of the object store, where the shards are behind URLs.
        prefetch_bytes: how much is requested from there before it is needed.
        normalize: which fields are normalized, and by what; None: none.
        split, split_by, part, stratify, split_seed: which part of the dataset, see `partition`; None: all of it.
        pad_units: whether spikes have as many columns as the recording with most units, or how many.
        fill: which fields every sample has, zeros where it lacks them.
        vocabulary: whether batches have indices of sessions and units, or the vocabulary that these come from.
        as_dtype: dtypes of fields in batches; None: as they are stored.

    Raises:
        ValueError: a value that is not allowed.

    Example:
        >>> ReadOptions(shard_dir="shards", io="magic")
        Traceback (most recent call last):
        ValueError: io must be "auto", "mmap" or "pread", not 'magic'
    """

    shard_dir: Datasets
    windows: Windows | None = None
    shard_pattern: str = DEFAULT_SHARD_PATTERN
    modalities: Sequence[str] | str | None = None
    select: Select | None = None
    group: str | None = None
    groups: Groups | None = None
    io: IOMode = "auto"
    cache_dir: str | os.PathLike[str] | None = None
    cache_size: int = DEFAULT_CACHE_SIZE
    checksums: bool | None = None
    weights: Weights | None = None
    epoch: Length | None = None
    balance: str | None = None
    units: str | None = None
    storage_options: StorageOptions | None = field(default=None, repr=False)  # may hold credentials
    prefetch_bytes: MemorySize = DEFAULT_PREFETCH
    normalize: Normalize | None = None
    split: Shares | None = None
    split_by: str | None = None
    part: str | Sequence[str] | None = None
    stratify: str | None = None
    split_seed: int = 0
    pad_units: PadUnits = False
    fill: Fill = False
    vocabulary: bool | Vocabulary = False
    as_dtype: AsDtypes | None = None

    def __post_init__(self) -> None:
        check_normalize(self.normalize)
        check_filling(self.pad_units, self.fill)
        for dtype in self.as_dtype.values() if isinstance(self.as_dtype, Mapping) else [self.as_dtype]:
            if dtype is not None:
                torch_dtype_of(dtype)
        if not isinstance(self.vocabulary, (bool, Vocabulary)):
            raise ValueError(f"vocabulary must be True, False or a Vocabulary, not {self.vocabulary!r}")
        _check_units(self.units)
        Objects(self.storage_options)  # refuses bad ones
        object.__setattr__(self, "prefetch_bytes", parse_size(self.prefetch_bytes, "prefetch_bytes"))
        if self.io not in ("auto", "mmap", "pread"):
            raise ValueError(f'io must be "auto", "mmap" or "pread", not {self.io!r}')
        if not (self.select is None or callable(self.select) or isinstance(self.select, Mapping)):
            raise ValueError(f"select must be a mapping or a function of metadata, not {self.select!r}")
        if self.group is None and self.groups is not None:
            raise ValueError("groups= needs group=, the name of a group")
        if self.checksums not in (None, True, False):
            raise ValueError(f"checksums must be True, False or None, not {self.checksums!r}")
        if not (isinstance(self.cache_size, (int, float, np.integer)) and self.cache_size >= 0):
            raise ValueError(f"cache_size must be a number of bytes, not {self.cache_size!r}")
        if self.windows is not None and self.group is not None:
            raise ValueError("group chooses stored samples and windows cuts new ones: use one of them")
        object.__setattr__(self, "modalities", _names(self.modalities))
        self._check_several()

    @property
    def partition(self) -> Partition | None:
        """Which part of the dataset is read; None: all of it."""
        return as_partition(self.split, self.split_by, self.part, self.stratify, self.split_seed)

    def _check_several(self) -> None:
        _ = self.partition  # raises where its settings do not go together
        if self.balance is not None and (self.is_mixture or not isinstance(self.balance, str)):
            raise ValueError(f"balance must be a name of the metadata of one dataset, not {self.balance!r}")
        for name in ("weights", "epoch"):
            if getattr(self, name) is None:
                continue
            if isinstance(self.shard_dir, Mixture):
                raise ValueError(f"{name}= is a setting of mix() where a mixture is given")
            if not self.is_mixture and self.balance is None:
                raise ValueError(f"{name}= is a setting of a mixture: give several datasets by name, or balance=")

    @property
    def directory(self) -> ShardDir:
        """Where the shards of a single dataset are."""
        if isinstance(self.shard_dir, (Mapping, Mixture)):
            raise TypeError("several datasets are given")
        return self.shard_dir

    @property
    def is_mixture(self) -> bool:
        """Whether several datasets are given."""
        return isinstance(self.shard_dir, (Mapping, Mixture))


def _check_units(units: str | None) -> None:
    if units is not None:
        try:
            Choice(units)
        except ValueError as error:
            raise ValueError(f"units={units!r:.200}: {error}") from None


def _names(modalities: Sequence[str] | str | None) -> tuple[str, ...] | None:
    if modalities is None:
        return None
    names = (modalities,) if isinstance(modalities, str) else tuple(modalities)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"modalities must be names of fields, not {modalities!r}")
    return names


@dataclass(frozen=True, kw_only=True)
class OrderOptions:
    """In which order the samples of an epoch come.

    Attributes:
        seed: fixes the order of every epoch.
        shuffle: False, True (blocks, then samples within `buffer_size`) or ``"full"`` (uniform).
        buffer_size: positions among which samples are mixed when `shuffle` is True.
        block_size: neighbouring samples that stay together then; None: about 1 MiB of them.

    Raises:
        ValueError: a value that is not allowed.
    """

    seed: int = 42
    shuffle: Shuffle = True
    buffer_size: int = 1000
    block_size: int | None = None

    def __post_init__(self) -> None:
        checked = self.order([], default_block_size=1)  # of numpy's integers it makes Python's
        for name in ("seed", "buffer_size", "block_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(checked, name))

    def order(self, shard_counts: Sequence[int] | np.ndarray, default_block_size: int) -> EpochOrder:
        """Return the order of epoch 0 of a dataset.

        Args:
            shard_counts: samples in each shard, shape (n_shards,).
            default_block_size: where `block_size` is None.
        """
        block_size = default_block_size if self.block_size is None else self.block_size
        return EpochOrder(shard_counts, self.seed, 0, self.shuffle, self.buffer_size, block_size)


@dataclass(frozen=True, kw_only=True)
class ProcessingOptions:
    """What is done to samples that have been read.

    Attributes:
        transform: of a sample.
        target_transform: of a label.
        collate_fn: makes a batch of a list of samples; None: the list is the batch.
        batch_transform: of a batch; a tuple once the value is made.
        handler: asked about samples that cannot be read or transformed.
        ragged: the form of fields whose arrays differ in length.
        pad_to: the length of padded arrays is a multiple of this.

    Raises:
        TypeError: something that cannot be called.
        ValueError: a form that there is not.
    """

    transform: Transform | None = None
    target_transform: TargetTransform | None = None
    collate_fn: Collate | None = None
    batch_transform: BatchTransform | Sequence[BatchTransform] | None = None
    handler: Handler = wds.reraise_exception
    ragged: RaggedForm = "list"
    pad_to: int = 8

    def __post_init__(self) -> None:
        check_ragged(self.ragged)
        _set_count(self, "pad_to", least=1)
        as_target_transform(self.target_transform)
        object.__setattr__(self, "batch_transform", as_batch_transforms(self.batch_transform))
        for name in ("transform", "collate_fn"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise TypeError(f"{name} must be a function, not {getattr(self, name)!r}")
        if not callable(self.handler):
            raise TypeError(f"handler must be a function of an error, not {self.handler!r}")

    def for_ragged(self, fields: Mapping[str, torch.Tensor], where: str) -> ProcessingOptions:
        """Return the same with a first function of batches that brings ragged fields into their form.

        Args:
            fields: these fields, and an empty array of each.
            where: the dataset, for errors.

        Raises:
            ValueError: there are none, or a function of the user's makes the batches.
        """
        if self.ragged == "list":
            return self
        if self.collate_fn is not collate_webdataset:
            raise ValueError(f"ragged={self.ragged!r} is a form of batches that we make: leave it out, or collate_fn")
        form = flattening(self.ragged, self.pad_to, fields, where)
        return replace(self, batch_transform=(form, *as_batch_transforms(self.batch_transform)))


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How an epoch is cut into batches, and which share of them this process gets.

    Attributes:
        batch_size: samples per batch and rank.
        drop_last: whether samples that do not fill a batch on every rank are left out.
        rank, world_size: this process's share; None: as :func:`~neurofmx_wds.loading.ranks.find_rank` finds it.
        batch_by: what the samples of a batch have in common; None: nothing.

    Raises:
        ValueError: a value that is not allowed.
    """

    batch_size: int = 32
    drop_last: bool = False
    rank: int | None = None
    world_size: int | None = None
    batch_by: BatchBy | None = None

    def __post_init__(self) -> None:
        _set_count(self, "batch_size", least=1)
        rank, world_size = self.rank, self.world_size
        if (rank is None) != (world_size is None):
            raise ValueError(f"give rank and world_size together, not rank={rank} and world_size={world_size}")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), not {rank} of {world_size}")


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Which processes or threads read, how far ahead, and on which device batches are delivered.

    Attributes:
        num_workers: workers; 0: none; None: none where loading is only copying, else a few.
        prefetch_factor: batches read ahead by each worker, or by the thread that reads without workers; None: 2 for
            workers, 0 for the thread.
        pin_memory: whether batches are put into page-locked memory.
        memory_limit: bytes that loading may take; None: any number.
        persistent_workers, multiprocessing_context, timeout, worker_init_fn: as in torch's DataLoader.
        in_order: must be True.
        workers: what workers are: processes, or threads of this process.
        device: where the tensors of batches are delivered; None: where they were made.

    Raises:
        ValueError: a value that is not allowed.
    """

    num_workers: int | None = None
    prefetch_factor: int | None = 2
    pin_memory: bool = False
    memory_limit: MemorySize | None = None
    persistent_workers: bool = False
    multiprocessing_context: str | BaseContext | None = None
    timeout: float = 0
    worker_init_fn: Callable[[int], None] | None = None
    in_order: bool = True
    workers: Literal["processes", "threads"] = "processes"
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", as_device(self.device))
        if self.workers not in ("processes", "threads"):
            raise ValueError(f'workers must be "processes" or "threads", not {self.workers!r}')
        if self.workers == "threads":
            for name in ("persistent_workers", "multiprocessing_context", "timeout", "worker_init_fn"):
                if getattr(self, name):
                    raise ValueError(f'{name} concerns worker processes: leave it out with workers="threads"')
        for name in ("num_workers", "prefetch_factor"):
            if getattr(self, name) is not None:
                _set_count(self, name)
        if self.memory_limit is not None:
            object.__setattr__(self, "memory_limit", parse_size(self.memory_limit))
        if not self.in_order:
            raise ValueError("in_order=False would make the order depend on the workers' speed; leave it out")


class SampleLoaderOptions(TypedDict, total=False):
    """Keyword arguments of :class:`~neurofmx_wds.WebDatasetLoader`, for functions that hand them on."""

    shard_pattern: str
    shuffle: Shuffle
    buffer_size: int
    seed: int
    modalities: Sequence[str] | None
    select: Select | None
    transform: Transform | None
    handler: Handler
    rank: int | None
    world_size: int | None
    block_size: int | None
    io: IOMode
    cache_dir: str | os.PathLike[str] | None
    cache_size: int
    target_transform: TargetTransform | None
    group: str | None
    groups: Groups | None
    checksums: bool | None
    windows: Windows | None
    weights: Weights | None
    epoch: Length | None
    balance: str | None
    units: str | None
    storage_options: StorageOptions | None
    prefetch_bytes: MemorySize
    normalize: Normalize | None
    split: Shares | None
    split_by: str | None
    part: str | Sequence[str] | None
    stratify: str | None
    split_seed: int
    pad_units: PadUnits
    fill: Fill
    vocabulary: bool | Vocabulary
    as_dtype: AsDtypes | None


def take_options(kind: type[_Options], options: dict[str, Any], **defaults: Any) -> _Options:
    """Make a value of one of the kinds above of those `options` that it has, and remove these from the dictionary.

    Example:
        >>> options = {"seed": 1, "batch_size": 8}
        >>> take_options(OrderOptions, options, shuffle=False)
        OrderOptions(seed=1, shuffle=False, buffer_size=1000, block_size=None)
        >>> options
        {'batch_size': 8}
    """
    names = {field.name for field in fields(kind)} & set(options)  # type: ignore[arg-type]
    return kind(**{**defaults, **{name: options.pop(name) for name in names}})


def parse_size(size: MemorySize, name: str = "memory_limit") -> int:
    """Return a number of bytes, also given as ``"2GB"`` or ``"512 MiB"``.

    Raises:
        ValueError: no such number, or not positive.

    Example:
        >>> parse_size("1.5 GB"), parse_size("2KiB"), parse_size(1e6)
        (1500000000, 2048, 1000000)
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]*)", str(size).strip().lower())
    if isinstance(size, (int, float)) and not isinstance(size, bool) and 0 < size < 1 << 60:
        return int(size)
    if not isinstance(size, str) or found is None or found[2] not in _UNITS or not float(found[1]):
        raise ValueError(f'{name} must be a number of bytes, or like "2GB" or "512MiB", not {size!r}')
    return int(float(found[1]) * _UNITS[found[2]])


def as_device(device: str | torch.device | None) -> torch.device | None:
    """Return the device of this name.

    Raises:
        ValueError: torch knows no such device, or has no CUDA device here.

    Example:
        >>> as_device("cpu"), as_device(None)
        (device(type='cpu'), None)
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be the name of a torch device, such as 'cuda', not {device!r}") from error
    if found.type == "cuda" and not (found.index or 0) < torch.cuda.device_count():
        raise ValueError(f"device={device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return found


def count_of(name: str, value: int, least: int = 0) -> int:
    """Return an argument that counts something, numpy's integers as Python's.

    Raises:
        ValueError: it is no whole number, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a {'positive' if least else 'non-negative'} integer, not {value!r}")
    return int(value)


def _set_count(options: object, name: str, least: int = 0) -> None:
    """Check an attribute of a frozen value that counts something."""
    object.__setattr__(options, name, count_of(name, getattr(options, name), least))
