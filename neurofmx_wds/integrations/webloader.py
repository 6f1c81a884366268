"""webdataset's ``WebDataset`` and ``WebLoader`` by their arguments, over our reader, order and state.

Knows the loaders; knows nothing of Lightning.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, cast

import numpy as np
import webdataset as wds

from ..errors import StateError
from ..loading.loaders import WebDatasetLoader
from ..loading.pipeline import ResumablePipeline
from ..loading.progress import Progress
from ..loading.readers import ShardReader
from ..order import cursor as cursors
from ..order.cursor import Cursor


def composed(pipeline: Any, stages: Any) -> Any:
    """A pipeline with a stage or several after it."""
    if stages is None:
        return pipeline
    for stage in [stages] if callable(stages) or isinstance(stages, wds.PipelineStage) else stages:
        if isinstance(stage, wds.filters.FilterFunction) and stage.f is wds.filters._batched:
            pipeline = pipeline.batched(*stage.args, **stage.kw)  # theirs takes one sample more than it hands on
        else:
            pipeline = pipeline.compose(stage)
    return pipeline


def invoked(pipeline: Any, calls: Sequence[tuple[str, Mapping[str, Any]]] | None) -> Any:
    """A pipeline after some of its methods were called."""
    for method, arguments in calls or ():
        pipeline = getattr(pipeline, method)(**arguments)
    return pipeline


def open_members(
    directory: str | os.PathLike[str], pattern: str, suffixes: Sequence[str], kwargs: Mapping[str, Any]
) -> ResumablePipeline:
    """The samples of a directory's tars, each a tuple of the values of some of its members.

    Args:
        directory, pattern: where the tars are, and which.
        suffixes: the members' suffixes, or patterns for them: ``"tensor.pyd"``.
        kwargs: arguments of ``webdataset.WebDataset``, or of :class:`~neurofmx_wds.WebDatasetLoader`. Unshuffled if
            they do not say otherwise.

    Raises:
        TypeError: an unknown argument.
        ValueError: one of webdataset's that has no meaning in our order.
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
    """Arguments of ``webdataset.WebDataset`` as ours."""
    options: dict[str, Any] = {"shuffle": False}
    for name, value in kwargs.items():
        if name == "shardshuffle":
            options["shuffle"] = bool(value) and value > 0
        elif name == "nodesplitter" and value is None:
            options |= {"rank": 0, "world_size": 1}
        elif name in _OURS:
            if not (value is None or (name == "cache_size" and value <= 0)):  # their ways of leaving it open
                options[name] = value
        elif name not in _THEIRS:
            raise TypeError(f"neither WebDataset nor WebDatasetLoader takes an argument {name}")
        elif name not in _NEEDLESS and value not in (_THEIRS[name], wds.split_by_node, wds.split_by_worker):
            raise ValueError(
                f"WebDataset({name}={value!r}) has no meaning here, where each sample of local tars comes once an "
                f"epoch and is dealt evenly over ranks and workers: leave it out"
            )
    return options


class _MemberReader(ShardReader):
    """Reads samples as webdataset gives them, suffix → value, but decoded so that nothing can run."""

    def __init__(self, reader: ShardReader, patterns: Sequence[str]) -> None:
        super().__init__(reader.shards, None, reader.selected, reader.io, checksums=reader.checksums)
        self.patterns = tuple(patterns)

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """The samples with these ids, with ``__key__``, ``__url__`` and the members that the patterns ask for."""
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
    """Whether webdataset's ``extract_keys`` would take a member for one of the patterns."""
    return any(fnmatch(f".{suffix}", each) or fnmatch(suffix, each) for each in ";".join(patterns).split(";"))


class WebLoader(wds.WebLoader):  # type: ignore[misc]
    """webdataset's loader over our samples: it knows where it is, and goes on from there.

    Args:
        samples: the dataset, with its stages.
        **options: of torch's DataLoader.
    """

    def __init__(self, samples: ResumablePipeline, **options: Any) -> None:
        samples = copy.copy(samples)
        samples.progress = Progress()  # its own: another loader over the same dataset may be elsewhere
        # A worker makes whole batches of what it gets: were it single samples in turn, a batch would not be of
        # neighbours in the order, and no position would say which samples have been delivered.
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
        """Batches in an epoch, where :meth:`with_epoch` has said it.

        Raises:
            TypeError: it has not.
        """
        if self.nsamples < 1:
            raise TypeError("the number of batches is not known: say it by with_epoch(nbatches=…)")
        return int(self.nsamples)

    def __iter__(self) -> Iterator[Any]:
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
        """Stop persistent workers; the next iteration starts others."""
        self.pipeline[0]._iterator = None

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of this epoch, from its start; a state loaded for this very epoch stays.

        Raises:
            ValueError: `epoch` is not a whole number, or negative.
        """
        epoch = self.samples.order.of_epoch(epoch).epoch  # refuses what is none; numpy's integers are not for JSON
        if epoch != self.epoch:
            self.epoch, self.n_delivered, self._resume_after = epoch, 0, 0
            self.samples.progress.set(Cursor(epoch, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: for JSON, the same on every rank."""
        return {"epoch": self.epoch, "batches": self.n_delivered, "samples": self.samples.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Raises:
            StateError: it is of another kind of loader, of other tars, another seed or shuffle.
        """
        if not {"epoch", "batches", "samples"} <= set(state):
            raise StateError("the state is not one of a WebLoader", remedy="pass what its state_dict() gave")
        self.samples.load_state_dict(state["samples"])
        self.epoch, self.n_delivered = state["epoch"], state["batches"]
        self._resume_after = self.n_delivered


class _Counted:
    """First stage after a DataLoader with workers: notes in the trainer's process what they have delivered."""

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
        # Only now that all workers are done: one that has nothing to do may be late, and would begin what it is told.
        progress.take(run, n_samples, True)
        progress.deliver(run)
