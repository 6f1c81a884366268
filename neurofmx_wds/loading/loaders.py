"""The loaders that people use: samples, samples with a checkpoint file, and batches.

Knows the resumable pipeline and the stages; knows nothing of recordings.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import webdataset as wds

from ..errors import StateError, suggest_keywords
from ..format.finding import DEFAULT_SHARD_PATTERN
from ..format.groups import Groups
from ..order.mixture import Length
from ..storage.atomic import write_atomic
from ..storage.cache import DEFAULT_CACHE_SIZE
from ..storage.objects import StorageOptions
from ..storage.regular import read_regular
from .batch_by import BatchBy, batched_by
from .batch_loader import BatchPipeline, WebDatasetDataLoader, as_dataloader
from .collate import collate_webdataset
from .filling import Fill, PadUnits
from .flattening import RaggedForm
from .labels import TargetTransform
from .mixture import Weights
from .normalizing import Normalize
from .open_mixture import open_datasets
from .options import (
    DEFAULT_PREFETCH,
    BatchOptions,
    Collate,
    Datasets,
    MemorySize,
    OrderOptions,
    ProcessingOptions,
    ReadOptions,
    SampleLoaderOptions,
    Shuffle,
    WorkerOptions,
    count_of,
)  # fmt: skip
from .partition import Shares
from .pipeline import ResumablePipeline
from .plans import Start
from .progress import in_worker
from .readers import Handler, IOMode
from .selection import Select
from .transforms import BatchTransform, Transform
from .views import AsDtypes
from .vocabulary import Vocabulary
from .windows import Windows

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger("neurofmx_wds")

_MAX_CHECKPOINT_BYTES = 1 << 16


class WebDatasetLoader(ResumablePipeline):
    """Yields the samples of a dataset, in a reproducible order, resumable after any of them.

    Each sample is a dict of writable numpy arrays, ``metadata`` (dict) and ``__key__`` (str). It is a webdataset
    pipeline (``.map``, ``.compose``, …) and a torch ``IterableDataset``: several DataLoader workers or DDP ranks share
    the samples among them. With several ranks all get the same number; the few that come again to fill the last step
    have ``sample["__mask__"] == False``.

    Args:
        shard_dir: a dataset's directory, or what webdataset takes: a brace pattern or a list of tars. Several datasets
            are mixed: name → directory, or what :func:`~neurofmx_wds.mix` returns; ``__dataset__`` is then the name of
            a sample's dataset. Each may be a URL:
            ``s3://``, ``gs://``, ``az://``, ``https://`` (extra ``cloud``), with the same order and bytes as on disk.
        shard_pattern: which files of the directory are shards.
        shuffle: False (as stored), True (blocks over the whole dataset, then samples within `buffer_size`), or
            ``"full"`` (uniform over the whole dataset).
        buffer_size: positions among which samples are mixed when `shuffle` is True.
        seed: fixes the order of every epoch, and the random numbers of `transform`.
        modalities: the fields to read, or the name of one; by default all.
        select: which samples: ``{"subject": "A"}``, ``{"session": ["a", "b"]}`` or ``f(metadata) -> bool``.
        transform: ``f(sample)`` or ``f(sample, rng)`` with a generator that depends on seed, epoch and sample only;
            what it returns is delivered.
        target_transform: ``f(label)`` or ``{label: new}`` for ``sample["label"]``; where there is no such field, for
            ``sample["metadata"]["label"]``. The result is ``sample["label"]``, before `transform`; the metadata stay.
        handler: webdataset's ``reraise_exception``, ``warn_and_continue``, … for samples that cannot be read or
            transformed; what it lets go is counted in ``skipped``. An error at which it says stop is raised.
        rank, world_size: this process's share; by default ``RANK`` and ``WORLD_SIZE``, ``torch.distributed``, or what
            ``mpirun`` or ``srun`` has set.
        block_size: samples read in one go when `shuffle` is True; by default about 1 MiB, a shard where compressed.
        io: ``"auto"``, ``"mmap"`` or ``"pread"``; see :class:`~neurofmx_wds.loading.readers.ShardReader`.
        cache_dir, cache_size: where compressed shards are unpacked, and how many bytes they may take there (one that
            is larger, and has no index, is refused).
        group: only the samples whose labels belong to the group of this name; ``sample["label"]`` is then the label's
            place in it, 0 … n−1. Their metadata stay as they are.
        groups: what groups there are, see :meth:`~neurofmx_wds.format.groups.Group.of`; by default the dataset's own
            file ``groups.yaml`` or ``groups.json`` says.
        checksums: compare each payload with the checksum in its shard's index: plain arrays the first time that this
            loader (or a worker forked for it) reads their sample, everything else whenever it is decoded. No byte that
            has changed since it was written can then come as data. None: where the index has checksums (those of this
            package's writers, and of the command ``index``); True: a shard without them is an error; False: never.
        windows: how windows are cut from a dataset of segments (made with layout "segments"), see
            :class:`~neurofmx_wds.Windows`; `modalities` then names modalities, and the first decides where windows are.
            `select` chooses among the windows by the metadata that they have without jitter, which then moves none to
            where other rows of interval tables are running than those it was chosen by.
        weights, epoch: of a mixture, as of :func:`~neurofmx_wds.mix`.
        balance: a name of the samples' metadata, or ``"label"``: the dataset is read as a mixture of the samples with
            each of its values, in equal shares, or as `weights` say: ``{"left": 3, "right": 1}``.
        units: which units the spikes are of, as an expression over the columns of ``loader.units``, such as
            ``'quality == "good" and location == "CA1"'``: see :class:`~neurofmx_wds.nwb.choosing.Choice`. Windows stay
            where they are with all units.
        storage_options: for URLs: ``endpoint``, ``region``, ``access_key_id``, … as obstore takes them, and
            ``timeout``, seconds for which a server may fail. What is not given comes from the environment
            (``AWS_…``, ``GOOGLE_…``, ``AZURE_…``).
        prefetch_bytes: for URLs: how much is requested before it is needed, a number or like ``"256MB"``.
        normalize: ``"zscore"``: each column of numbers less its mean, divided by its standard deviation, each recording
            by its own; ``"zscore_all"``: by those of all recordings together; ``{"lfp": "zscore", "behavior": (mean,
            std)}``: of some fields. Means and deviations are those of the selected samples only, with every window
            where it is without jitter: from the manifest where it has them, else by reading these samples once. NaN
            stays NaN. ``loader.normalization`` is what was used, and can be given to the loader of another split.
        split, part: which part of the dataset is read: ``split={"train": 0.8, "val": 0.1, "test": 0.1}, part="train"``,
            or ``split=5`` folds and ``part=["fold1", "fold2"]``. The parts are made of the whole dataset, of which
            `select` and `group` then choose.
        split_by: what stays together: ``"session"`` (default) or ``"subject"``, dealt as by ``convert --split``;
            ``"time"``: each recording is cut into blocks of time, in the order of the parts, with a window left out
            between two; ``"random"``: nothing; or a name of the samples' metadata: all samples with one value of it.
        stratify: a name of the samples' metadata (or ``"label"``): the samples of each of its values are split in these
            shares; by default at random, with `split_by` by what most samples of a group have.
        split_seed: another number deals groups and samples otherwise; `seed` does not.
        pad_units: ``spikes`` have as many columns as the recording with most units (of those selected), or this many;
            ``unit_mask`` (B, units) says which are units of the sample's recording. The others are 0.
        fill: every batch has the same fields in the same shapes: True, or names of fields. Where a sample lacks a
            field, or has fewer columns than others, there are zeros, and False in ``<field>_mask``.
        vocabulary: True: batches have ``session_index`` and ``subject_index`` (B,), and ``unit_index`` (B, units), or
            of each spike where spikes are not dense; ``loader.vocabulary`` says what they mean. Or a
            :class:`~neurofmx_wds.Vocabulary`, whose indices stay, and to which unknown sessions are added at the end.
        as_dtype: ``"float32"``: of ``spikes`` that are stored as uint8, for one; or ``{field: dtype}``.

    Raises:
        FileNotFoundError, ShardError, ManifestError: the dataset cannot be opened.
        GroupError: there is no such group, or the dataset does not have its labels.
        ValueError: a bad argument, or no sample fits `select`.
        NeurofmxError: `select` raised.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"x": np.arange(10)})
        >>> loader = WebDatasetLoader(out, shuffle=False, select=lambda metadata: True)
        >>> samples = iter(loader)
        >>> [int(next(samples)["x"]) for _ in range(3)], loader.state_dict()["position"]
        ([0, 1, 2], 3)
    """

    @suggest_keywords
    def __init__(
        self,
        shard_dir: Datasets,
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
        target_transform: TargetTransform | None = None,
        group: str | None = None,
        groups: Groups | None = None,
        checksums: bool | None = None,
        windows: Windows | None = None,
        weights: Weights | None = None,
        epoch: Length | None = None,
        units: str | None = None,
        storage_options: StorageOptions | None = None,
        prefetch_bytes: MemorySize = DEFAULT_PREFETCH,
        normalize: Normalize | None = None,
        split: Shares | None = None,
        split_by: str | None = None,
        part: str | Sequence[str] | None = None,
        stratify: str | None = None,
        split_seed: int = 0,
        balance: str | None = None,
        pad_units: PadUnits = False,
        fill: Fill = False,
        vocabulary: bool | Vocabulary = False,
        as_dtype: AsDtypes | None = None,
    ) -> None:
        read = ReadOptions(
            shard_dir=shard_dir, shard_pattern=shard_pattern, modalities=modalities, select=select, group=group,
            groups=groups, io=io, cache_dir=cache_dir, cache_size=cache_size, checksums=checksums, windows=windows,
            weights=weights, epoch=epoch, units=units,
            storage_options=storage_options, prefetch_bytes=prefetch_bytes,
            normalize=normalize, pad_units=pad_units, fill=fill, vocabulary=vocabulary,
            as_dtype=as_dtype,
            split=split, split_by=split_by, part=part, stratify=stratify, split_seed=split_seed, balance=balance,
        )  # fmt: skip
        order = OrderOptions(seed=seed, shuffle=shuffle, buffer_size=buffer_size, block_size=block_size)
        processing = ProcessingOptions(transform=transform, target_transform=target_transform, handler=handler)
        batches = BatchOptions(batch_size=1, rank=rank, world_size=world_size)
        super().__init__(open_datasets(read, order), processing, batches)

    def _items(self, epoch: int, first: int, rank: int, world_size: int) -> Iterator[Any]:
        fetcher = self._fetcher(Start(epoch, first, rank, world_size))
        return self._stages(fetcher.start, fetcher.samples, self.samples_per_worker_chunk).iterator1()


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

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"x": np.arange(10)})
        >>> path = os.path.join(out, "checkpoint.json")
        >>> loader = ResumableWebDatasetLoader(out, path, shuffle=False)
        >>> first = [int(sample["x"]) for _, sample in zip(range(4), loader)]
        >>> loader.save_checkpoint()
        >>> [int(sample["x"]) for sample in ResumableWebDatasetLoader(out, path, shuffle=False)]
        [4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self,
        shard_dir: Datasets,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_interval: int = 1000,
        **options: Unpack[SampleLoaderOptions],
    ) -> None:
        super().__init__(shard_dir, **options)
        self.checkpoint_path = Path(os.path.abspath(checkpoint_path or ".loader_checkpoint.json"))
        self.checkpoint_interval = count_of("checkpoint_interval", checkpoint_interval, least=1)
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
        text = read_regular(self.checkpoint_path, _MAX_CHECKPOINT_BYTES, StateError)
        try:
            state = json.loads(text)
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

    def iterator1(self) -> Iterator[Any]:
        """As its base's, with a checkpoint at the epoch's end."""
        yield from super().iterator1()
        if not in_worker():
            self.save_checkpoint()

    def _deliver(self, run: object) -> Iterator[Any]:
        writes = not in_worker()
        for count, item in enumerate(super()._deliver(run), 1):
            yield item
            # The consumer is back for more: what it had so far is done with.
            if writes and count % self.checkpoint_interval == 0:
                self.save_checkpoint()


@suggest_keywords
def create_webdataset_dataloader(
    shard_dir: Datasets,
    batch_size: int = 32,
    num_workers: int | None = None,
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
    target_transform: TargetTransform | None = None,
    batch_transform: BatchTransform | Sequence[BatchTransform] | None = None,
    group: str | None = None,
    groups: Groups | None = None,
    memory_limit: MemorySize | None = None,
    checksums: bool | None = None,
    persistent_workers: bool = False,
    multiprocessing_context: str | BaseContext | None = None,
    timeout: float = 0,
    worker_init_fn: Callable[[int], None] | None = None,
    in_order: bool = True,
    windows: Windows | None = None,
    workers: Literal["processes", "threads"] = "processes",
    device: str | torch.device | None = None,
    weights: Weights | None = None,
    epoch: Length | None = None,
    units: str | None = None,
    storage_options: StorageOptions | None = None,
    prefetch_bytes: MemorySize = DEFAULT_PREFETCH,
    normalize: Normalize | None = None,
    split: Shares | None = None,
    split_by: str | None = None,
    part: str | Sequence[str] | None = None,
    stratify: str | None = None,
    split_seed: int = 0,
    balance: str | None = None,
    pad_units: PadUnits = False,
    fill: Fill = False,
    vocabulary: bool | Vocabulary = False,
    as_dtype: AsDtypes | None = None,
    batch_by: BatchBy | None = None,
    ragged: RaggedForm = "list",
    pad_to: int = 8,
) -> WebDatasetDataLoader:
    """Batches of a dataset, in a reproducible order, resumable after any of them.

    A batch is a dict: field → tensor of shape (B, …), ``metadata`` → B dicts, ``__key__`` → B strings. A field that
    some samples lack is a list with None for these, also where a whole batch lacks it (known from the manifest or
    `modalities`); `transform` gets samples without it, and what it leaves out of a whole batch is not there. The
    sequence of samples depends on dataset, selection, seed, epoch, shuffle, `buffer_size` and `block_size` only. With
    several ranks all get the same number of batches; at the end of an epoch what remains is dealt evenly. Only when
    fewer samples than ranks remain, some ranks get one again, and that batch has ``__mask__``, False for it; likewise
    with several ranks a batch of which `handler` has skipped every sample.

    Args:
        shard_dir, shard_pattern, shuffle, buffer_size, seed, modalities, select, transform, handler, rank, world_size,
            block_size, io, cache_dir, cache_size, target_transform, group, groups, checksums, windows, weights,
            epoch, units, storage_options, prefetch_bytes, normalize, split, split_by, part, stratify, split_seed,
            pad_units, fill, vocabulary, as_dtype: as :class:`WebDatasetLoader`.
        batch_size: samples per batch and rank.
        num_workers: workers that read; 0: this process does, which is fastest where loading is only copying. None: 0
            where nothing is transformed, else 4, or the number of processor cores if that is smaller.
        drop_last: drop the samples that do not fill a batch on every rank; a warning says where none would be left.
        prefetch_factor: batches read ahead by each worker (small ones that are only copied: bundles of up to 16, or 8
            MiB); with no workers, by one thread (0 or None: none).
        pin_memory: put batches into page-locked memory, where there is a CUDA device.
        collate_fn: makes a batch of a list of samples. What makes several of them fail, but none alone, is asked of
            `handler` once, for all. Of a subclass of dict, workers and `pin_memory` deliver a plain dict.
        batch_transform: ``f(batch)`` or ``f(batch, rngs)``, or a list of them, called one after the other with what
            `collate_fn` made, in the process that read it; what the last returns is delivered. ``rngs[i]`` is the
            generator of the batch's i-th sample, the one that `transform` gets: it depends on seed, epoch and sample
            only, so no random number depends on how samples are put into batches. Tensors may be changed in place,
            replaced or kept.
        memory_limit: bytes that loading may take, as a number or like ``"2GB"``, beside the trainer's own memory and
            what the system can take back. A few samples are read (and transformed) to see how large they are. Where
            it would take more, there are fewer batches ahead, then fewer workers, and a warning says so; where batches
            of this size do not fit at all, that is an error. What composed stages hold back does not count, nor batches
            that the trainer keeps.
        persistent_workers, multiprocessing_context, timeout, worker_init_fn: as in torch's DataLoader.
        in_order: must be True: otherwise the order would depend on the workers' speed.
        workers: ``"processes"``, or ``"threads"`` of this process, between which nothing is copied: faster where
            transforms spend their time in numpy, torch and the like, which let other threads run, or in a free-threaded
            Python. They call `transform`, `collate_fn` and `batch_transform` at the same time.
        device: where the tensors of batches are delivered, such as ``"cuda"``: copied there, out of page-locked memory
            and on a stream of their own, while the step before is under way. ``.map(…)`` of the loader then works on
            the device: integers cross the bus at a quarter of float32, if they are cast behind it. None: the tensors
            stay in memory. A framework that reads the batches by itself (Accelerate) copies them itself.
        batch_by: what the samples of a batch have in common: ``"session_id"``, ``"subject"``, ``"__dataset__"`` of a
            mixture, or another name of stored samples' metadata; or ``Budget(of="spikes", tokens=4096)``: nearly the
            same length. Samples are rearranged inside each window of `buffer_size` positions, so their order depends on
            `batch_size` too; batches may have fewer samples than that (with tokens: another number), and the number of
            batches may differ from epoch to epoch. ``loader.padding`` reports what is saved.
        ragged: what stored fields whose arrays differ in length are in batches: ``"list"``: a list of B tensors (one
            tensor where they happen to be of one length); ``"flat"``: all one after the other, (n, …), and
            ``<field>_offsets`` (B + 1,); ``"padded"``: (B, n, …), zeros at the end, and ``<field>_mask`` (B, n).
            ``spike_times`` and ``spike_units`` share ``spike_offsets`` and ``spike_mask``, as with
            :class:`~neurofmx_wds.Windows`. `batch_transform` gets batches of this form.
        pad_to: the length of padded arrays is a multiple of this.

    Returns:
        An iterable of batches with ``len()``, ``state_dict()``, ``load_state_dict()``, ``set_epoch()`` and
        webdataset's ``.map(...)``, ``.compose(...)`` and so on.

    Raises:
        FileNotFoundError, ShardError, ManifestError: the dataset cannot be opened.
        ValueError: a bad argument, or no sample fits `select`.
        NeurofmxError: `select` raised.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"spikes": np.zeros((50, 100, 96), "float32")})
        >>> loader = create_webdataset_dataloader(out, batch_size=16, num_workers=0)
        >>> len(loader), next(iter(loader))["spikes"].shape
        (4, torch.Size([16, 100, 96]))
    """
    read = ReadOptions(
        shard_dir=shard_dir, shard_pattern=shard_pattern, modalities=modalities, select=select, group=group,
        groups=groups, io=io, cache_dir=cache_dir, cache_size=cache_size, checksums=checksums, windows=windows,
        weights=weights, epoch=epoch, units=units,
        storage_options=storage_options, prefetch_bytes=prefetch_bytes,
        normalize=normalize, pad_units=pad_units, fill=fill, vocabulary=vocabulary,
            as_dtype=as_dtype,
        split=split, split_by=split_by, part=part, stratify=stratify, split_seed=split_seed, balance=balance,
    )  # fmt: skip
    order = OrderOptions(seed=seed, shuffle=shuffle, buffer_size=buffer_size, block_size=block_size)
    opened = open_datasets(read, order)
    processing = ProcessingOptions(
        transform=transform, target_transform=target_transform, collate_fn=collate_fn, batch_transform=batch_transform,
        handler=handler, ragged=ragged, pad_to=pad_to,
    )  # fmt: skip
    processing = processing.for_ragged(opened.ragged, opened.reader.where)
    batches = BatchOptions(
        batch_size=batch_size, drop_last=drop_last, rank=rank, world_size=world_size, batch_by=batch_by
    )
    worker_options = WorkerOptions(
        num_workers=num_workers, prefetch_factor=prefetch_factor, pin_memory=pin_memory, memory_limit=memory_limit,
        persistent_workers=persistent_workers, multiprocessing_context=multiprocessing_context, timeout=timeout,
        worker_init_fn=worker_init_fn, in_order=in_order, workers=workers, device=device,
    )  # fmt: skip
    opened = batched_by(opened, batches.batch_by, batches.batch_size)
    return as_dataloader(BatchPipeline(opened, processing, batches, worker_options))
