"""webdataset's ``WebDataset`` and ``WebLoader``, with their arguments, over our reader, order and state.

Knows the loaders; knows nothing of Lightning.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, TypeVar, cast

import numpy as np
import webdataset as wds

from ..errors import StateError
from ..loading.lightning_loops import EpochSampler, begin_iteration
from ..loading.loaders import WebDatasetLoader
from ..loading.pipeline import ResumablePipeline
from ..loading.progress import Progress
from ..loading.readers import ShardReader
from ..order import cursor as cursors

Pipeline = TypeVar("Pipeline", bound=wds.DataPipeline)
Stage = Callable[[Iterable[Any]], Iterator[Any]]
Stages = Stage | Iterable[Stage] | None
Call = tuple[str, Mapping[str, Any]]


def composed(pipeline: Pipeline, stages: Stages) -> Pipeline:
    """Return a pipeline with one stage or several stages after it."""
    if stages is None:
        return pipeline
    for stage in [stages] if callable(stages) or isinstance(stages, wds.PipelineStage) else stages:
        if isinstance(stage, wds.filters.FilterFunction) and stage.f is wds.filters._batched:
            pipeline = pipeline.batched(*stage.args, **stage.kw)  # webdataset's takes one sample more than it returns
        else:
            pipeline = pipeline.compose(stage)
    return pipeline


def invoked(pipeline: Pipeline, calls: Sequence[Call] | None) -> Pipeline:
    """Return a pipeline after calls of its methods, each ``(name, arguments)``."""
    for method, arguments in calls or ():
        pipeline = getattr(pipeline, method)(**arguments)
    return pipeline


def open_members(
    directory: str | os.PathLike[str], pattern: str, suffixes: Sequence[str], kwargs: Mapping[str, Any]
) -> ResumablePipeline:
    """Return the samples of a directory's tars, each the tuple of the values of some of its members.

    Args:
        directory: where the tars are.
        pattern: the pattern of their names.
        suffixes: the members' suffixes, or patterns for them: ``"tensor.pyd"``.
        kwargs: arguments of ``webdataset.WebDataset``, or of :class:`~neurofmx_wds.WebDatasetLoader`; without any,
            samples are not shuffled.

    Raises:
        TypeError: an unknown argument.
        ValueError: an argument of webdataset that has no meaning in our order.
        FileNotFoundError, ShardError, ManifestError: the tars cannot be opened.
    """
    samples = WebDatasetLoader(directory, shard_pattern=pattern, **_loader_options(kwargs))
    patterns = [f"*.{suffix}" for suffix in suffixes]
    reader = _MemberReader(cast(ShardReader, samples.opened.reader), patterns)
    samples.opened = replace(samples.opened, reader=reader)
    return samples.compose(wds.extract_keys(*patterns))


_OURS = frozenset(inspect.signature(WebDatasetLoader).parameters) - {"shard_dir", "shard_pattern"}
_THEIRS = {name: each.default for name, each in inspect.signature(wds.WebDataset).parameters.items() if name != "urls"}
_NEEDLESS = {"detshuffle", "empty_check", "verbose"}  # the order is always reproducible, and no tars are an error


def _loader_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate arguments of ``webdataset.WebDataset`` into ours."""
    options: dict[str, Any] = {"shuffle": False}
    for name, value in kwargs.items():
        if name == "shardshuffle":
            options["shuffle"] = bool(value) and value > 0
        elif name == "nodesplitter" and value is None:
            options |= {"rank": 0, "world_size": 1}
        elif name in _OURS:
            if not (value is None or (name == "cache_size" and value <= 0)):  # webdataset's ways of leaving it open
                options[name] = value
        elif name not in _THEIRS:
            raise TypeError(f"neither WebDataset nor WebDatasetLoader takes an argument {name}")
        elif name not in _NEEDLESS and value not in (_THEIRS[name], wds.split_by_node, wds.split_by_worker):
            raise ValueError(
                f"WebDataset({name}={value!r}) has no meaning here: each sample of the local tars is delivered once an "
                f"epoch and samples are dealt evenly over ranks and workers; leave it out"
            )
    return options


class _MemberReader(ShardReader):
    """Reads samples as webdataset does, suffix → value, but decoded so that nothing can run."""

    def __init__(self, reader: ShardReader, patterns: Sequence[str]) -> None:
        super().__init__(reader.shards, None, reader.selected, reader.io, checksums=reader.checksums)
        self.patterns = tuple(patterns)

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Return the samples with these ids: ``__key__``, ``__url__`` and the members that match the patterns."""
        return [self._members(*place) for place in zip(*self.locate(ids), strict=True)]

    def _members(self, shard_idx: int, row: int) -> dict[str, Any]:
        shard = self._pool[shard_idx]
        sample: dict[str, Any] = {"__key__": shard.index.sample_keys[row], "__url__": str(shard.path)}
        for name, column in shard.index.columns.items():
            suffix = shard.index.suffixes[column.suffix_id[row]]
            if column.offset[row] >= 0 and _fits(suffix, self.patterns):
                sample[suffix] = shard.decode(name, row)
        return sample


@functools.lru_cache(maxsize=1024)
def _fits(suffix: str, patterns: tuple[str, ...]) -> bool:
    """Return whether webdataset's ``extract_keys`` would match a member with one of the patterns."""
    return any(fnmatch(f".{suffix}", each) or fnmatch(suffix, each) for each in ";".join(patterns).split(";"))


class WebLoader(wds.WebLoader):  # type: ignore[misc]
    """webdataset's loader over our samples; it has a state, from which another one continues.

    Args:
        samples: the dataset, with its stages.
        **options: of torch's DataLoader.
    """

    def __init__(self, samples: ResumablePipeline, **options: Any) -> None:
        samples = copy.copy(samples)
        samples.progress = Progress()  # its own: another loader over the same dataset may be at another place
        # A worker makes whole batches of the samples it gets. If workers got single samples in turn, a batch would not
        # hold neighbours in the order, and no position could describe which samples have been delivered.
        samples.samples_per_worker_chunk = samples.samples_in_item * (options.get("batch_size", 1) or 1)
        super().__init__(samples, **options)
        self.samples = samples
        self.epoch = 0
        self.n_delivered = 0
        self._resume_after = 0
        if options.get("num_workers"):
            self.append(_Counted(samples, samples.samples_per_worker_chunk))

    batched = ResumablePipeline.batched

    def __len__(self) -> int:
        """Return the batches in an epoch, as set by :meth:`with_epoch`.

        Raises:
            TypeError: it was not called.
        """
        if self.nsamples < 1:
            raise TypeError("the number of batches is not known: set it by with_epoch(nbatches=…)")
        return int(self.nsamples)

    batch_sampler = None  # frameworks that look for a sampler also look for this

    @property
    def sampler(self) -> EpochSampler:
        """What Lightning looks for to announce an epoch."""
        return EpochSampler(self)

    def __iter__(self) -> Iterator[Any]:
        if not begin_iteration(self):
            return
        self.n_delivered, self._resume_after = self._resume_after, 0
        stop = len(self) - self.n_delivered if self.nsamples > 0 else None
        for batch in itertools.islice(self.iterator(), stop):
            self.n_delivered += 1
            if self.n_delivered == self.nsamples:
                self.set_epoch(self.epoch + 1)
            yield batch
        if stop is None:
            self.set_epoch(self.epoch + 1)

    def close(self) -> None:
        """Stop persistent workers; the next iteration starts new ones."""
        self.pipeline[0]._iterator = None

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of this epoch; a state loaded for this very epoch is kept.

        Raises:
            ValueError: `epoch` is not a whole number, or negative.
        """
        epoch = self.samples.order.of_epoch(epoch).epoch  # rejects bad values; numpy's integers are not for JSON
        if epoch != self.epoch:
            self.start_epoch(epoch)

    def start_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of this epoch, whatever state was loaded."""
        self.epoch, self.n_delivered, self._resume_after = epoch, 0, 0
        self.samples.start_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the trainer: for JSON, the same on every rank."""
        return {"epoch": self.epoch, "batches": self.n_delivered, "samples": self.samples.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue in the next iteration where `state` was taken.

        Raises:
            StateError: it is of another kind of loader, of other tars, another seed or shuffle.
        """
        if not {"epoch", "batches", "samples"} <= set(state):
            raise StateError("the state is not one of a WebLoader", remedy="pass what its state_dict() returned")
        self.samples.load_state_dict(state["samples"])
        self.epoch, self.n_delivered = state["epoch"], state["batches"]
        self._resume_after = self.n_delivered


class _Counted:
    """First stage after a DataLoader with workers: counts in the trainer's process what they have delivered."""

    def __init__(self, samples: ResumablePipeline, n_each: int) -> None:
        self.samples = samples
        self.n_each = n_each

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        progress, n_samples = self.samples.progress, len(self.samples.order)
        run = progress.begin()
        first, size = progress.position, (n_samples, 1, self.samples.world_size, False)
        last = cursors.n_steps(first, *size)
        for count, item in enumerate(items, 1):
            done = min(count * self.n_each, last)
            progress.take(run, cursors.position_after(first, done, *size), False)
            progress.deliver(run)
            yield item
        # Only when all workers are done: a late one that has nothing to do would start the epoch announced here.
        progress.take(run, n_samples, True)
        progress.deliver(run)
